"""Several processes, started by `accelerate launch`, learn what one learns."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_model, tiny_rows, tiny_run

from llama_adapter_edu import load_adapter
from llama_adapter_edu.adapters.manage import adapter_prompts

SCRIPT = str(Path(__file__).with_name("processes_run.py"))
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo as accelerate starts it")


def launch(folder, n_processes, *options):
    """The tiny run in so many processes. On a CPU, --multi_gpu is what starts several."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--multi_gpu", "--num_processes", str(n_processes), "--num_machines", "1"]
    command += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += [SCRIPT, str(folder), *map(str, options)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600)


def facts(folder, name="facts"):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def one():
    """13 rows in batches of 5, micro-batches of 2: uneven in every way."""
    return tiny_run(rows=tiny_rows(n=13), batch_size=5, micro_batch_size=2, steps=6)


def check_equals_one(folder, one):
    history, model = one
    assert facts(folder)["losses"] == pytest.approx(history.losses, abs=1e-5)
    adapter = load_adapter(tiny_model(adapter=False), folder / "adapter")
    for number, prompt in adapter_prompts(model, "default").items():
        other = adapter_prompts(adapter, "default")[number]
        torch.testing.assert_close(other.prompts, prompt.prompts, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("n_processes", "way", "base"),
    [
        (4, "whole", "Tensor"),
        pytest.param(4, "sharded", "DTensor", marks=pytest.mark.slow),
        pytest.param(2, "whole", "Tensor", marks=pytest.mark.slow),
        pytest.param(2, "sharded", "DTensor", marks=pytest.mark.slow),
    ],
)
def test_processes_learn_what_one_learns_and_one_of_them_writes(
    tmp_path, one, n_processes, way, base
):
    done = launch(tmp_path, n_processes, way)
    assert done.returncode == 0, done.stderr[-3000:]
    check_equals_one(tmp_path, one)
    main = facts(tmp_path)
    assert (main["processes"], main["kind"], main["base"]) == (n_processes, "MULTI_CPU", base)
    assert {"state.safetensors", "state.json"} <= set(main["written"])
    for other in range(1, n_processes):
        assert facts(tmp_path, f"facts-{other}")["written"] == []
    kept = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    assert kept == ["step-000004", "step-000006"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["whole", "sharded"])
def test_one_process_of_two_is_killed_and_four_go_on(tmp_path, one, way):
    killed = launch(tmp_path, 2, way, 3 * 2)  # two micro-batches a step
    assert killed.returncode != 0
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-000002"]
    done = launch(tmp_path, 4, way)
    assert done.returncode == 0, done.stderr[-3000:]
    check_equals_one(tmp_path, one)


@pytest.mark.slow
def test_a_tensor_parallel_plan_is_refused(tmp_path):
    done = launch(tmp_path, 2, "cut")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "without a tensor-parallel plan (tp_plan)" in facts(tmp_path)["refused"]
