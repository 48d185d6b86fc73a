"""Adapters on disk: what comes back, what a file holds, and every way in which it can be broken."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from safetensors.torch import load_file, save_file

from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    load_adapter,
    load_llama,
    save_adapter,
)
from llama_adapter_edu.adapters.manage import adapter_configs, adapter_prompts
from llama_adapter_edu.files import safe_files as adapter_files
from llama_adapter_edu.files.save_load import CONFIG_FILE, WEIGHTS_FILE, AdapterFileError

CONFIG = AdaptionPromptConfig(4, 2, gate="per_head", gate_activation="identity", init_std=0.5)


@pytest.fixture
def words():
    torch.manual_seed(1)
    return torch.randint(3, 96, (2, 7))


@pytest.fixture
def adapted(tiny):
    """A tiny model whose adapter has learnt something."""
    model = add_adaption_prompts(tiny(), CONFIG)
    for prompt in adapter_prompts(model, "default").values():
        torch.nn.init.normal_(prompt.gate)
    return model


@pytest.fixture
def saved(adapted, tmp_path) -> Path:
    return save_adapter(adapted, tmp_path / "new" / "adapter")


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("gate", ["per_head", "per_layer"])
@pytest.mark.parametrize("activation", ["tanh", "identity"])
def test_a_round_trip_is_exact(tiny, words, tmp_path, gate, activation):
    config = AdaptionPromptConfig(5, 3, gate=gate, gate_activation=activation, init_std=0.2)
    model = add_adaption_prompts(tiny(), config, "mine")
    for prompt in adapter_prompts(model, "mine").values():
        torch.nn.init.normal_(prompt.gate)
    save_adapter(model, tmp_path)
    again = load_adapter(tiny(), tmp_path, "yours")
    assert adapter_configs(again) == {"yours": config}
    assert torch.equal(logits(again, words), logits(model, words))
    assert not torch.equal(logits(again, words), logits(tiny(), words))


def test_the_real_llamas_file_is_small_and_holds_nothing_of_the_base(fresh_llama, tmp_path):
    model, tokenizer = fresh_llama
    add_adaption_prompts(model)
    for prompt in adapter_prompts(model, "default").values():
        torch.nn.init.normal_(prompt.gate, std=0.2)
    save_adapter(model, tmp_path)
    assert sorted(os.listdir(tmp_path)) == [CONFIG_FILE, WEIGHTS_FILE]
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    expected = {f"layers.{i}.{part}" for i in range(30) for part in ("prompts", "gate")}
    assert tensors.keys() == expected
    assert sum(tensor.numel() for tensor in tensors.values()) == 173_070
    assert (tmp_path / WEIGHTS_FILE).stat().st_size < 1_000_000
    again = load_adapter(load_llama()[0], tmp_path)
    ids = tokenizer("Turn on the lights", return_tensors="pt")["input_ids"]
    assert torch.equal(logits(again, ids), logits(model, ids))


def test_a_half_precision_base_keeps_float32_on_disk(tiny, tmp_path):
    model = add_adaption_prompts(tiny(dtype=torch.bfloat16), CONFIG)
    save_adapter(model, tmp_path)
    assert {t.dtype for t in load_file(tmp_path / WEIGHTS_FILE).values()} == {torch.float32}
    again = load_adapter(tiny(dtype=torch.bfloat16), tmp_path)
    for number, prompt in adapter_prompts(again, "default").items():
        assert torch.equal(prompt.prompts, adapter_prompts(model, "default")[number].prompts)


def test_an_offloaded_model_is_saved_whole(adapted, tiny, words, tmp_path):
    before = logits(adapted, words)
    cpu_offload(adapted, execution_device="cpu")  # its numbers lie elsewhere until a layer runs
    save_adapter(adapted, tmp_path)
    assert torch.equal(logits(load_adapter(tiny(), tmp_path), words), before)


def test_the_adapter_of_that_name_is_saved_and_loaded_beside_others(adapted, words, tmp_path):
    first = logits(adapted, words)
    add_adaption_prompts(adapted, CONFIG, "second")
    save_adapter(adapted, tmp_path, "default")
    load_adapter(adapted, tmp_path, "third")
    assert torch.equal(logits(adapted, words), first)
    assert list(adapter_configs(adapted)) == ["default", "second", "third"]


def test_a_save_killed_between_its_two_files_is_noticed(adapted, saved, tiny, monkeypatch):
    other = add_adaption_prompts(tiny(), replace(CONFIG, gate_activation="tanh"))
    move = os.replace

    def killed_after_the_first(source, target):
        move(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(adapter_files.os, "replace", killed_after_the_first)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(other, saved)
    monkeypatch.undo()
    with pytest.raises(AdapterFileError, match="are not of the same save"):
        load_adapter(tiny(), saved)
    save_adapter(other, saved)
    load_adapter(tiny(), saved)


def test_a_folder_in_the_way_of_a_file_loses_nothing(adapted, saved, tiny):
    before = (saved / WEIGHTS_FILE).read_bytes()
    (saved / CONFIG_FILE).unlink()
    (saved / CONFIG_FILE).mkdir()
    with pytest.raises(IsADirectoryError, match=r"is a folder\. Expected to write a file there"):
        save_adapter(add_adaption_prompts(tiny(), CONFIG), saved)
    assert (saved / WEIGHTS_FILE).read_bytes() == before
    assert sorted(os.listdir(saved)) == [CONFIG_FILE, WEIGHTS_FILE]


def test_saving_what_is_not_there(tiny, tmp_path):
    with pytest.raises(ValueError, match="no active adapter to save"):
        save_adapter(tiny(), tmp_path / "x")
    with pytest.raises(ValueError, match="no adapter named 'y'"):
        save_adapter(add_adaption_prompts(tiny(), CONFIG), tmp_path / "x", "y")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_an_interrupted_save_leaves_the_earlier_one_whole(
    adapted, saved, tiny, words, monkeypatch, fails
):
    before = logits(adapted, words)

    def full(*_):
        raise OSError(28, "No space left on device")

    for prompt in adapter_prompts(adapted, "default").values():
        torch.nn.init.zeros_(prompt.gate)
    monkeypatch.setattr(adapter_files.os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        save_adapter(adapted, saved)
    monkeypatch.undo()
    assert sorted(os.listdir(saved)) == [CONFIG_FILE, WEIGHTS_FILE]
    assert torch.equal(logits(load_adapter(tiny(), saved), words), before)


def edit_config(folder: Path, **changes) -> None:
    content = json.loads((folder / CONFIG_FILE).read_text()) | changes
    kept = {key: value for key, value in content.items() if value is not ...}
    (folder / CONFIG_FILE).write_text(json.dumps(kept))


def edit_weights(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    change(tensors)
    save_file(tensors, folder / WEIGHTS_FILE)


def truncate(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


BROKEN = {
    "a key is missing": (
        lambda f: edit_weights(f, lambda t: t.pop("layers.1.gate")),
        "layers.1.gate is missing",
    ),
    "an extra key": (
        lambda f: edit_weights(f, lambda t: t.update({"model.x": torch.zeros(2)})),
        "'model.x' does not belong there",
    ),
    "a wrong shape": (
        lambda f: edit_weights(f, lambda t: t.update({"layers.2.prompts": torch.zeros(4, 6)})),
        "layers.2.prompts is (4, 6), expected (4, 48)",
    ),
    "a wrong dtype": (
        lambda f: edit_weights(f, lambda t: t.update({"layers.2.gate": torch.zeros(6).long()})),
        "layers.2.gate is torch.int64, expected torch.float32",
    ),
    "NaN": (
        lambda f: edit_weights(f, lambda t: t["layers.2.gate"].fill_(float("nan"))),
        "layers.2.gate holds NaN or infinity",
    ),
    "weights cut short": (lambda f: truncate(f / WEIGHTS_FILE, 900), "corrupt or was cut short"),
    "weights empty": (lambda f: truncate(f / WEIGHTS_FILE, 0), "corrupt or was cut short"),
    "weights are something else": (
        lambda f: (f / WEIGHTS_FILE).write_bytes(b"\x80\x04 pickle"),
        "corrupt or was cut short",
    ),
    "config cut short": (lambda f: truncate(f / CONFIG_FILE, 40), "is not the settings file"),
    "config is no dictionary": (
        lambda f: (f / CONFIG_FILE).write_text("[1]"),
        "is not the settings file",
    ),
    "config not UTF-8": (
        lambda f: (f / CONFIG_FILE).write_bytes(b"\xff\xfe\x00"),
        "is not the settings file",
    ),
    "a setting is missing": (
        lambda f: edit_config(f, gate=...),
        "settings ['gate'] are missing or unknown",
    ),
    "an unknown setting": (
        lambda f: edit_config(f, speed=3),
        "settings ['speed'] are missing or unknown",
    ),
    "a setting out of range": (lambda f: edit_config(f, adapter_layers=0), "at least 1, got 0"),
    "another format": (
        lambda f: edit_config(f, format="llama_adapter_edu/9"),
        "its format is not 'llama_adapter_edu/1'",
    ),
    "another base": (
        lambda f: edit_config(f, base={"hidden_size": 64, "model_type": "llama"}),
        "was made for another base model: hidden_size 64, here it is 48",
    ),
    "files of two saves": (
        lambda f: edit_config(f, gate_activation="tanh"),
        "are not of the same save",
    ),
    "no base": (lambda f: edit_config(f, base=...), "is not the settings file"),
    "other settings than weights": (
        lambda f: edit_config(f, adapter_len=7),
        "is (4, 48), expected (7, 48)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_adapter_is_named_and_changes_nothing(saved, tiny, words, case):
    break_it, text = BROKEN[case]
    break_it(saved)
    model = tiny()
    modules = [name for name, _ in model.named_modules()]
    with pytest.raises(AdapterFileError) as caught:
        load_adapter(model, saved)
    assert text in str(caught.value)
    assert str(saved) in str(caught.value)
    assert [name for name, _ in model.named_modules()] == modules
    assert model.config._attn_implementation == "eager"
    assert torch.equal(logits(model, words), logits(tiny(), words))


@pytest.mark.parametrize("missing", [CONFIG_FILE, WEIGHTS_FILE, "folder"])
def test_a_missing_file(saved, tiny, missing):
    shutil.rmtree(saved) if missing == "folder" else (saved / missing).unlink()
    with pytest.raises(FileNotFoundError, match=f"no adapter in {saved}"):
        load_adapter(tiny(), saved)


def test_an_adapter_for_another_shape_or_a_taken_name(saved, tiny, adapted):
    with pytest.raises(AdapterFileError, match="num_hidden_layers 3, here it is 4"):
        load_adapter(tiny(num_hidden_layers=4), saved)
    with pytest.raises(AdapterFileError, match="model_type 'llama', here it is 'qwen2'"):
        load_adapter(tiny("qwen2"), saved)
    with pytest.raises(ValueError, match="already has an adapter named 'default'"):
        load_adapter(adapted, saved)


def test_a_folder_that_cannot_be_made(adapted, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):
        save_adapter(adapted, tmp_path / "file" / "adapter")


def test_a_model_in_a_wrapper_is_saved_like_the_model_itself(tmp_path, tiny):
    model = add_adaption_prompts(tiny(), AdaptionPromptConfig(5, 2))
    save_adapter(model, tmp_path / "bare")
    save_adapter(torch.nn.DataParallel(model), tmp_path / "wrapped")
    bare, wrapped = tmp_path / "bare", tmp_path / "wrapped"
    config = "adapter_config.json"
    assert json.loads((wrapped / config).read_text()) == json.loads((bare / config).read_text())
    weights = [load_file(folder / "adapter_model.safetensors") for folder in (bare, wrapped)]
    torch.testing.assert_close(weights[1], weights[0], rtol=0, atol=0)
