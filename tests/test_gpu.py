"""On NVIDIA GPUs (make test-gpu): one, or several, learn what the CPU learns."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, dispatch_model
from accelerate.state import AcceleratorState
from tiny_run import TOKENIZER, save_base, tiny_model, tiny_rows, tiny_run

from llama_adapter_edu import (
    AdaptionPromptConfig,
    TrainingConfig,
    add_adaption_prompts,
    finetune,
    load_adapter,
    save_adapter,
)
from llama_adapter_edu.adapters.manage import adapter_prompts

SCRIPT = str(Path(__file__).with_name("processes_run.py"))
SETTINGS = {"batch_size": 5, "steps": 6}
IDS = torch.arange(3, 9)[None]


def gpus(number):
    found = torch.cuda.device_count()
    return pytest.mark.skipif(
        found < number, reason=f"needs {number} NVIDIA GPUs, here are {found}"
    )


@pytest.fixture(scope="module")
def one():
    """The run of one process on the CPU."""
    AcceleratorState._reset_state(reset_partial_state=True)
    model = tiny_model(tie_word_embeddings=False)
    history, model = tiny_run(model=model, rows=tiny_rows(n=13), **SETTINGS)
    AcceleratorState._reset_state(reset_partial_state=True)
    return history, model


def on_gpu(model, **options):
    """`finetune` on the GPU, with the rows of `one`."""
    options = {"accelerator": Accelerator(), "progress": False, **options}
    return finetune(model, TOKENIZER, tiny_rows(n=13), TrainingConfig(**SETTINGS), **options)


def check_equals_one(losses, prompts, one):
    history, model = one
    assert losses == pytest.approx(history.losses, abs=1e-3)
    for number, prompt in adapter_prompts(model, "default").items():
        gate = prompts[number].gate.detach().cpu()
        torch.testing.assert_close(gate, prompt.gate.detach(), atol=1e-3, rtol=1e-2)


@gpus(1)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cuda_graphs": True},
        {"compile_layers": True},
        {"fused": True},
        {"fused": True, "cuda_graphs": True},
    ],
)
def test_one_gpu(one, options):
    model = tiny_model(tie_word_embeddings=False)
    losses = on_gpu(model.to("cuda") if options else model, **options).losses
    check_equals_one(losses, adapter_prompts(model, "default"), one)


@pytest.mark.parametrize(
    "places",
    [
        pytest.param((0, 0, 1, 1), marks=gpus(2), id="two GPUs"),
        pytest.param((0, 1, 0, 1), marks=gpus(2), id="to and fro"),
        pytest.param((0, 0, "cpu", 0), marks=gpus(1), id="a layer in the CPU's memory"),
        pytest.param(("cpu", "cpu", 0, 0), marks=gpus(1), id="half in the CPU's memory"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"compile_layers": True}])
def test_a_device_map(one, tmp_path, places, options):
    embedding, *layers, head = places[0], *places[:3], places[3]
    names = ["model.embed_tokens", *(f"model.layers.{n}" for n in range(3))]
    device_map = dict(zip(names, (embedding, *layers), strict=True))
    device_map |= {"model.norm": head, "lm_head": head, "model.rotary_emb": 0}
    model = dispatch_model(tiny_model(adapter=False, tie_word_embeddings=False), device_map)
    add_adaption_prompts(model, AdaptionPromptConfig(5, 2))
    first = adapter_prompts(tiny_model(tie_word_embeddings=False), "default")
    for number, prompt in adapter_prompts(model, "default").items():
        prompt.load_state_dict(first[number].state_dict())
    losses = on_gpu(model, resume_folder=tmp_path / "run", **options).losses
    check_equals_one(losses, adapter_prompts(model, "default"), one)
    generated = model.generate(IDS.to("cuda"), max_new_tokens=5, do_sample=False)
    save_adapter(model, tmp_path / "adapter")
    whole = tiny_model(adapter=False, tie_word_embeddings=False)
    load_adapter(whole, tmp_path / "adapter")
    assert generated.tolist() == whole.generate(IDS, max_new_tokens=5, do_sample=False).tolist()


@pytest.mark.parametrize("n_processes", [pytest.param(n, marks=gpus(n)) for n in (2, 4)])
@pytest.mark.parametrize("way", ["whole", "sharded", "loaded"])
@pytest.mark.parametrize("compiled", [[], ["--compiled"]])
def test_processes(one, tmp_path, n_processes, way, compiled):
    base = tmp_path / "base"
    save_base(base, tiny_model(adapter=False, tie_word_embeddings=False))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", str(n_processes), SCRIPT, str(tmp_path), way]
    command += ["--gpu", "--base", str(base), *compiled]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "facts.json").read_text())
    assert (found["kind"], found["processes"]) == ("MULTI_GPU", n_processes)
    whole = tiny_model(adapter=False, tie_word_embeddings=False)
    load_adapter(whole, tmp_path / "adapter")
    check_equals_one(found["losses"], adapter_prompts(whole, "default"), one)
    generated = whole.generate(IDS, max_new_tokens=5, do_sample=False).tolist()
    assert found["generated"] == generated
