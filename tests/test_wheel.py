"""The wheel: the whole package, seen by type checkers, and enough without any extra."""

import functools
import json
import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "llama_adapter_edu"
BUILD = "from hatchling.build import build_wheel; import sys; build_wheel(sys.argv[1])"
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"^```python\n(.*?)^```", README, re.M | re.S)[1]
WRONG_USES = """
AdaptionPromptConfig(adapter_len="ten")  # wrong
load_llama(3.5)  # wrong
finetune(model, tokenizer, rows, steps=100)  # wrong
finetune(model, tokenizer, encode_dataset(rows, tokenizer)).loss  # wrong
set_adapter("second", model)  # wrong
from llama_adapter_edu import nothing  # wrong
"""
OWN = {"load_llama()": "load_llama(sys.argv[1])", '"rows.jsonl"': "sys.argv[2]"}
OWN |= {"adapter_len=10": "adapter_len=10, adapter_layers=2", "steps=100": "steps=10"}
OWN_MODEL = f"""
import sys, torch
{functools.reduce(lambda text, pair: text.replace(*pair), OWN.items(), EXAMPLE)}
ids = torch.tensor([encode_dataset(rows, tokenizer)[0]["input_ids"]])
again, _ = load_llama(sys.argv[1])
with disable_adapter(model):
    assert torch.equal(model(ids).logits, again(ids).logits)
load_adapter(again, "runs/mine")
assert torch.equal(model(ids).logits, again(ids).logits)
with disable_adapter(again):
    assert not torch.equal(model(ids).logits, again(ids).logits)
print(sorted({{"gguf", "matplotlib", "IPython", "pytest"}} & sys.modules.keys()), "trained")
try:
    load_llama()
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], cwd=ROOT, check=True)
    [path] = folder.glob("llama_adapter_edu-*-py3-none-any.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(folder)
    return folder


def files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_it_holds_the_whole_package_and_nothing_else(unpacked):
    there = {name for name in files(unpacked) if ".dist-info/" not in name}
    assert there == {f"llama_adapter_edu/{name}" for name in files(PACKAGE)}
    needed = {"course/reference/lesson_00.py", "course/results/ablations.json", "py.typed"}
    assert {f"llama_adapter_edu/{name}" for name in needed} <= there


def test_installing_it_brings_the_plugin_and_the_licence(unpacked):
    [entry_points] = unpacked.glob("*.dist-info/entry_points.txt")
    plugin = "[pytest11]\nllama_adapter_edu = llama_adapter_edu.course.progress.pytest_plugin"
    assert plugin in entry_points.read_text()
    assert list(unpacked.glob("*.dist-info/licenses/LICENSE"))


def type_errors(code: str, unpacked: Path, folder: Path) -> set[int]:
    """The lines of `code` that a type checker refuses, with the package from the wheel."""
    (folder / "consumer.py").write_text(code)
    command = [sys.executable, "-m", "ty", "check", "--output-format", "concise"]
    command += ["--python", sys.executable, "--extra-search-path", str(unpacked), "consumer.py"]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert said.returncode in (0, 1), said.stderr
    return {int(line) for line in re.findall(r"^consumer\.py:(\d+):", said.stdout, re.M)}


def test_a_type_checker_accepts_right_use_and_finds_each_wrong_one(unpacked, tmp_path):
    code = EXAMPLE + WRONG_USES
    wrong = {i for i, line in enumerate(code.splitlines(), 1) if line.endswith("# wrong")}
    assert len(wrong) == 6
    assert type_errors(code, unpacked, tmp_path) == wrong


def test_each_public_name_has_a_type(unpacked, tmp_path):
    """Whatever is seen as `Any` could be called a number."""
    import llama_adapter_edu

    names = llama_adapter_edu.__all__
    imported = f"from llama_adapter_edu import {', '.join(names)}"
    lines = [imported, *(f"_{i}: int = {name}" for i, name in enumerate(names))]
    refused = type_errors("\n".join(lines), unpacked, tmp_path)
    assert refused == set(range(2, len(lines) + 1))


@pytest.fixture(scope="module")
def own_model(tmp_path_factory) -> Path:
    """The folder of a small random Llama with a byte tokenizer of its own."""
    folder = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(["</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    sizes = {"vocab_size": 257, "hidden_size": 48, "intermediate_size": 64, "eos_token_id": 0}
    heads = {"num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    row = {"instruction": "Say yes.", "output": "yes"}
    path.write_text(f"{json.dumps(row)}\n" * 4)
    return path


def needed_by(name: str, found: dict[str, metadata.Distribution]) -> None:
    """Adds to `found` what an install of `name` without extras brings, itself included."""
    if name in found:
        return
    found[name] = metadata.distribution(name)
    for text in found[name].requires or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed_by(canonicalize_name(requirement.name), found)


@pytest.fixture(scope="module")
def without_extras(unpacked, tmp_path_factory) -> Path:
    """A folder to import from: the wheel, and links to what it needs, as if freshly installed."""
    folder = tmp_path_factory.mktemp("without-extras") / "site-packages"
    folder.mkdir()
    found: dict[str, metadata.Distribution] = {}
    needed_by("llama-adapter-edu", found)
    del found["llama-adapter-edu"]
    for path in unpacked.iterdir():
        (folder / path.name).symlink_to(path)
    for distribution in found.values():
        for name in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            if not (folder / name).exists():
                (folder / name).symlink_to(distribution.locate_file(name))
    return folder


def run(command: list, folder: Path, packages: Path | None = None) -> str:
    """What a Python prints that sees only these packages, and no Llama."""
    own = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PYTEST_"))}
    own |= {"LLAMA_ADAPTER_EDU_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    if packages:
        command[1:1] = ["-S"]
        own["PYTHONPATH"] = str(packages)
    done = subprocess.run(list(map(str, command)), cwd=folder, env=own, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def works_alone(python, packages, folder, own_model, rows) -> None:
    """The README's example, and more; the course's Llama, plot and doctor say what they lack."""
    said = run([python, "-c", OWN_MODEL, own_model, rows], folder, packages)
    assert "[] trained" in said
    assert "extra `course`" in said and "pip install gguf" in said
    assert not (folder / "cache").exists()

    settings = ["--cpu", "--steps=1", "--batch-size=1", "--test-rows=1", "--adapter-layers=1"]
    command = [python, "-m", "llama_adapter_edu", "finetune", "--model", own_model, *settings]
    said = run([*command, "--output=demo"], folder, packages)
    assert "no plot: `pip install matplotlib`" in said
    assert (folder / "demo" / "adapter_model.safetensors").exists()
    assert not (folder / "demo" / "training.png").exists()

    said = run([python, "-m", "llama_adapter_edu", "doctor"], folder, packages)
    assert re.search(r"^\[note\] gguf\S+ is missing$", said, re.M)
    assert said.endswith("Everything is ready.\n")


@pytest.mark.heavy
def test_without_extras_it_is_enough_for_a_model_of_your_own(
    without_extras, own_model, rows, tmp_path
):
    works_alone(sys.executable, without_extras, tmp_path, own_model, rows)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_fresh_environment_with_nothing_but_the_wheel(wheel, own_model, rows, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    run([python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wheel], tmp_path)
    works_alone(python, None, tmp_path, own_model, rows)
