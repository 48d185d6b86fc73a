"""Broken and hostile adapter files: refused in words, nothing run, no model half changed.

Some hundreds of cases here. `python benchmarks/fuzz.py` tries and records many more.
"""

import io
import json
import os
import struct
import zipfile
from functools import cache
from pathlib import Path

import pytest
import torch
from fuzzing import CASES, JSON, NUMBERS, TEXTS, edited, guard, mutated, settle, state_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    load_adapter,
    load_official_adapter,
    remove_adapter,
    save_adapter,
)
from llama_adapter_edu.files.download import LITGPT_FILE
from llama_adapter_edu.files.save_load import CONFIG_FILE, WEIGHTS_FILE, AdapterFileError

SCALE = int(os.environ.get("FUZZ_SCALE", 1))
MAY_RAISE = (AdapterFileError, FileNotFoundError)


def cases(number: int):
    """Settings of one test: `number` cases, the same ones each time, more in the recorded run."""
    return settings(
        max_examples=number * SCALE,
        derandomize=SCALE == 1,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module", autouse=True)
def record():
    """Write down how many cases there were, for `benchmarks/fuzz.py`."""
    yield
    if path := os.environ.get("FUZZ_RECORD"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(CASES) + "\n")
        CASES.clear()


@cache
def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": 96}
    return LlamaForCausalLM(LlamaConfig(**shape, **heads)).eval()


def fresh() -> LlamaForCausalLM:
    """A model that never had an adapter."""
    tiny.cache_clear()
    return tiny()


@cache
def saved(format: str) -> dict[str, bytes]:
    """The files of a good adapter, by name."""
    import tempfile

    model = add_adaption_prompts(fresh(), AdaptionPromptConfig(4, 2, gate="per_layer"))
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder, format=format)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    fresh()
    return files


def pickled(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def try_to_load(kind: str, folder: Path, files: dict[str, bytes], load=load_adapter) -> None:
    """One case: `files` in `folder` are loaded, or refused with the model as it was."""
    for path in folder.iterdir():
        path.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    model = tiny()
    before = state_of(model)
    with guard(folder):
        loaded = settle(kind, lambda: load(model, folder), *MAY_RAISE, about=folder.name)
    if loaded is None:
        assert state_of(model) == before
    else:
        with torch.no_grad():
            assert model(input_ids=torch.tensor([[5, 6]])).logits.shape == (1, 2, 96)
        remove_adapter(model, "default")
        fresh()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("adapter")


@cases(70)
@given(mutated([saved("llama_adapter_edu")[WEIGHTS_FILE], saved("peft")[WEIGHTS_FILE]]))
def test_faulty_bytes_in_a_safetensors_file(folder, content):
    for format in ("llama_adapter_edu", "peft"):
        files = saved(format) | {WEIGHTS_FILE: content}
        try_to_load("safetensors, faulty bytes", folder, files)


DTYPES = st.sampled_from(["F32", "F16", "BF16", "F64", "I64", "BOOL", "F8_E4M3", "C64", "X", ""])
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": DTYPES,
        "shape": st.lists(st.one_of(st.sampled_from([1, 4, 6, 48]), NUMBERS), max_size=4),
        "data_offsets": st.lists(st.one_of(st.integers(0, 2000), NUMBERS), max_size=3),
    }
)
KEYS = st.one_of(TEXTS, st.sampled_from(["layers.1.gate", "layers.2.prompts", "__metadata__"]))


@cases(60)
@given(
    st.dictionaries(KEYS, st.one_of(ENTRIES, JSON), max_size=5),
    st.booleans(),
    st.sampled_from([0, 0, 0, 1, -1, 2**20, 2**40, 2**62]),
)
def test_a_hostile_safetensors_header(folder, entries, on_top, longer):
    content = saved("llama_adapter_edu")[WEIGHTS_FILE]
    (length,) = struct.unpack("<Q", content[:8])
    good = json.loads(content[8 : 8 + length]) if on_top else {}
    header = json.dumps(good | entries).encode()
    written = struct.pack("<Q", max(0, len(header) + longer)) + header + content[8 + length :]
    files = saved("llama_adapter_edu") | {WEIGHTS_FILE: written}
    try_to_load("safetensors, hostile header", folder, files)


SETTINGS = [json.loads(saved(format)[CONFIG_FILE]) for format in ("llama_adapter_edu", "peft")]


@cases(80)
@given(edited(SETTINGS))
def test_strange_settings(folder, config):
    format = "peft" if "peft_type" in config else "llama_adapter_edu"
    files = saved(format) | {CONFIG_FILE: json.dumps(config).encode()}
    try_to_load("settings, strange values", folder, files)


@cases(50)
@given(st.one_of(mutated([saved("peft")[CONFIG_FILE]]), mutated([b"[" * 9000, b'{"a":' * 9000])))
def test_faulty_bytes_in_the_settings(folder, content):
    try_to_load("settings, faulty bytes", folder, saved("peft") | {CONFIG_FILE: content})


def official() -> bytes:
    gates = {f"layers.{i}.attention.gate": torch.zeros(1, 6, 1, 1) for i in range(3)}
    return pickled({"adapter_query.weight": torch.randn(8, 48), **gates})


def load_official(model, folder):
    return load_official_adapter(model, folder / LITGPT_FILE, gate_activation="tanh", adapter_len=4)


@cases(60)
@given(st.data())
def test_faulty_bytes_in_a_pickled_file(folder, data):
    seed, load = data.draw(
        st.sampled_from([(saved("litgpt")[LITGPT_FILE], load_adapter), (official(), load_official)])
    )
    content = data.draw(mutated([seed]))
    try_to_load("pickled, faulty bytes", folder, {LITGPT_FILE: content}, load)


class Runs:
    """Unpickles to a call of `function`."""

    def __init__(self, function: str, argument: str):
        self.module, _, self.name = function.rpartition(".")
        self.argument = argument

    def __reduce__(self):
        import importlib

        return getattr(importlib.import_module(self.module), self.name), (self.argument,)


CALLS = ["os.system", "builtins.exec", "builtins.eval", "os.mkdir", "os.unlink", "pathlib.Path"]
CALLS += ["builtins.open", "importlib.import_module", "subprocess.getoutput", "torch.load"]
TENSORS = st.builds(
    lambda shape, dtype, expanded, device: (
        torch.zeros(1, dtype=dtype, device=device).expand(shape)
        if expanded
        else torch.zeros([min(size, 60) for size in shape], dtype=dtype, device=device)
    ),
    st.lists(st.sampled_from([0, 1, 4, 6, 48, 10**4]), min_size=1, max_size=4),
    st.sampled_from([torch.float32, torch.float16, torch.float64, torch.int64, torch.complex64]),
    st.booleans(),
    st.sampled_from(["cpu", "cpu", "meta"]),
)
OBJECTS = st.one_of(
    TENSORS,
    JSON,
    st.builds(Runs, st.sampled_from(CALLS), st.just("touched")),
    st.builds(lambda: torch.nn.Parameter(torch.ones(1, 1, 6, 1))),
    st.builds(lambda: torch.eye(6).to_sparse()),
)
LIT_KEYS = st.sampled_from(
    [f"transformer.h.{i}.attn.{part}" for i in ("1", "2", "3", "01", "٣", "9" * 40)
     for part in ("adapter_wte.weight", "gating_factor", "x")]
    + ["adapter_query.weight", *(f"layers.{i}.attention.gate" for i in range(4))]
)  # fmt: skip


@cases(80)
@given(
    st.dictionaries(st.one_of(LIT_KEYS, TEXTS), OBJECTS, max_size=4),
    st.sampled_from(["litgpt", "litgpt", "official", "nothing"]),
    st.booleans(),
)
def test_hostile_content_of_a_pickled_file(folder, entries, base, wrapped):
    good = {
        "litgpt": torch.load(io.BytesIO(saved("litgpt")[LITGPT_FILE]), weights_only=True)["model"],
        "official": torch.load(io.BytesIO(official()), weights_only=True),
        "nothing": {},
    }[base]
    content = good | entries
    load = load_official if base == "official" else load_adapter
    files = {LITGPT_FILE: pickled({"model": content} if wrapped else content)}
    try_to_load("pickled, hostile content", folder, files, load)
    assert not Path("touched").exists()


@cases(40)
@given(
    st.sampled_from(["../../outside", "/outside", "archive/data.pkl", "x/data.pkl", "\u202e"]),
    st.one_of(st.binary(max_size=200), st.just(bytes(10**6))),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.booleans(),
)
def test_a_hostile_archive(folder, name, content, compression, only):
    file = io.BytesIO() if only else io.BytesIO(saved("litgpt")[LITGPT_FILE])
    with zipfile.ZipFile(file, "w" if only else "a", compression) as archive:
        archive.writestr(name, content)
    try_to_load("pickled, hostile archive", folder, {LITGPT_FILE: file.getvalue()})
    assert not list(folder.parent.glob("outside*"))


@cases(40)
@given(st.one_of(TEXTS, st.sampled_from(["pop", "items", "training", "forward", "_modules", "0"])))
def test_strange_names_of_adapters(name):
    model = fresh()
    before = state_of(model)
    added = settle(
        "names of adapters",
        lambda: add_adaption_prompts(model, AdaptionPromptConfig(4, 2), name),
        ValueError,
    )
    if added is None:
        assert state_of(model) == before
    fresh()
