"""Several processes, started by `accelerate launch` or torchrun, learn what one learns."""

import json
import os
import random
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import save_base, tiny_model, tiny_rows, tiny_run
from transformers import LlamaConfig, LlamaForCausalLM

from llama_adapter_edu import load_adapter
from llama_adapter_edu.adapters.manage import adapter_prompts

SCRIPT = str(Path(__file__).with_name("processes_run.py"))
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo as accelerate starts it")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def launch(folder, n_processes, *options):
    """The tiny run in so many processes. On a CPU, --multi_gpu is what starts several."""
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--multi_gpu", "--num_processes", str(n_processes), "--num_machines", "1"]
    command += ["--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += [SCRIPT, str(folder), *map(str, options)]
    # glibc gives freed memory back to the system, so that a process's memory says what it holds.
    given_back = dict.fromkeys(["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"], "1000000")
    environment = {**os.environ, **given_back}
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)


def facts(folder, name="facts"):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def one():
    """13 rows in batches of 5, micro-batches of 2: uneven in every way."""
    rows = tiny_rows(n=13)
    model = tiny_model(tie_word_embeddings=False)
    return tiny_run(model=model, rows=rows, batch_size=5, micro_batch_size=2, steps=6)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    model = tiny_model(adapter=False, tie_word_embeddings=False)
    return save_base(tmp_path_factory.mktemp("base"), model)


def check_equals_one(folder, one):
    history, model = one
    found = facts(folder)
    assert found["losses"] == pytest.approx(history.losses, abs=1e-5)
    adapter = tiny_model(adapter=False, tie_word_embeddings=False)
    load_adapter(adapter, folder / "adapter")
    for number, prompt in adapter_prompts(model, "default").items():
        other = adapter_prompts(adapter, "default")[number]
        torch.testing.assert_close(other.prompts, prompt.prompts, atol=1e-4, rtol=1e-4)
    ids = torch.arange(3, 9)[None]
    assert found["generated"] == adapter.generate(ids, max_new_tokens=5, do_sample=False).tolist()


slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("n_processes", "way", "told", "base_is"),
    [
        pytest.param(4, "whole", [], "Tensor", marks=slow),
        pytest.param(2, "whole", ["--as-gpus"], "Tensor", marks=slow),
        (2, "loaded", ["--as-gpus"], "DTensor"),
        pytest.param(4, "loaded", [], "DTensor", marks=slow),
        pytest.param(4, "sharded", ["--as-gpus"], "DTensor", marks=slow),
    ],
)
def test_processes_learn_what_one_learns_and_one_of_them_writes(
    tmp_path, one, base, n_processes, way, told, base_is
):
    """Each begins with other prompts: all go on with those of process 0."""
    done = launch(tmp_path, n_processes, way, *told, "--base", base)
    assert done.returncode == 0, done.stderr[-3000:]
    check_equals_one(tmp_path, one)
    main = facts(tmp_path)
    kind = "MULTI_GPU" if told else "MULTI_CPU"
    assert (main["processes"], main["kind"], main["base"]) == (n_processes, kind, base_is)
    assert {"state.safetensors", "adapter_config.json"} <= set(main["written"])
    for other in range(1, n_processes):
        assert facts(tmp_path, f"facts-{other}")["written"] == []
    kept = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    assert kept == ["step-000004", "step-000006"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["whole", "loaded"])
def test_one_process_of_two_is_killed_and_four_go_on(tmp_path, one, base, way):
    killed = launch(tmp_path, 2, way, "--base", base, "--killed-at", 3 * 2)  # 2 passes a step
    assert killed.returncode != 0
    assert [path.name for path in (tmp_path / "run").glob("step-*")] == ["step-000002"]
    done = launch(tmp_path, 4, way, "--base", base)
    assert done.returncode == 0, done.stderr[-3000:]
    check_equals_one(tmp_path, one)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["whole", "loaded"])
def test_torchrun_starts_again_what_died_at_a_random_step(tmp_path, one, base, way):
    command = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", "--max-restarts", "1", SCRIPT]
    killed_at = random.randrange(1, 12)
    options = [str(tmp_path), way, "--base", str(base), "--killed-at", str(killed_at)]
    # Else torchrun hands the second life the addresses of the first, and it may wait for the dead.
    new_store = {**os.environ, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    run = {"capture_output": True, "text": True, "timeout": 600, "env": new_store}
    done = subprocess.run(command + options, **run)
    assert done.returncode == 0, (killed_at, done.stderr[-3000:])
    check_equals_one(tmp_path, one)


def two_nodes(folders, *options):
    """Two nodes of two processes on this machine, each with a folder of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    nodes = []
    for rank, folder in enumerate(folders):
        command = [*TORCHRUN, "--nnodes", "2", "--node_rank", str(rank), "--nproc_per_node", "2"]
        command += ["--master_addr", "127.0.0.1", "--master_port", port, SCRIPT, str(folder)]
        nodes.append(subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True))
    return [(node.communicate(timeout=600)[1], node.returncode) for node in nodes]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["whole", "loaded"])
def test_nodes_without_a_shared_disk_go_on_from_the_main_process(tmp_path, one, base, way):
    folders = [tmp_path / "node0", tmp_path / "node1"]
    killed = two_nodes(folders, way, "--base", str(base), "--killed-at", "3")
    assert any(code != 0 for _, code in killed)
    assert [path.name for path in (folders[0] / "run").glob("step-*")] == ["step-000002"]
    for errors, code in two_nodes(folders, way, "--base", str(base)):
        assert code == 0, errors[-3000:]
    check_equals_one(folders[0], one)
    assert not (folders[1] / "run").exists()


@pytest.mark.slow
def test_no_process_ever_holds_the_whole_base(tmp_path):
    layers = 16
    sizes = dict(hidden_size=768, intermediate_size=2048, num_hidden_layers=layers, vocab_size=500)
    heads = dict(num_attention_heads=8, num_key_value_heads=8)
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads)).to(torch.bfloat16)
    n_bytes = 2 * model.num_parameters()
    save_base(tmp_path / "base", model, max_shard_size="40MB")
    done = launch(tmp_path, 4, "memory", "--base", tmp_path / "base")
    assert done.returncode == 0, done.stderr[-3000:]
    assert n_bytes > 200e6
    for name in ("facts", "facts-1", "facts-2", "facts-3"):
        taken = facts(tmp_path, name)
        assert taken["whole"] > 0.9 * n_bytes  # so it is seen when a process holds all
        # A fourth; the layer that computes and the next, each once more while they travel.
        assert taken["spread"] < n_bytes / 4 + 4 * n_bytes / layers + 30e6


@pytest.mark.slow
def test_a_tensor_parallel_plan_is_refused(tmp_path):
    done = launch(tmp_path, 2, "cut")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "without a tensor-parallel plan (tp_plan)" in facts(tmp_path)["refused"]
