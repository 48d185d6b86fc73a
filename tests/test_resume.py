"""Runs that are stopped in every way, and go on as if nothing had happened."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, cpu_offload
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_run import run_in_process, run_with_limits, tiny_model, tiny_rows, tiny_run

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, load_adapter
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.training import resume as folder_module
from llama_adapter_edu.training.interrupts import caught_interrupts
from llama_adapter_edu.training.resume import resume_folder
from llama_adapter_edu.training.state import ResumeError

posix = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL on Windows")


def steps_in(folder):
    return sorted(path.name for path in folder.glob("step-*"))


def content(path):
    """Every file below a path, to see that nothing was changed."""
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


# What `tiny_run` imports; itself it is not found by the server, which does not know its folder.
IMPORTED = ["llama_adapter_edu.training.loop", "transformers.models.llama.modeling_llama"]


@pytest.fixture
def processes():
    """Starts processes that have torch and all else imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED, "llama_adapter_edu.adapters.manage", "datasets"])
    return context


def finish(processes, folder, **settings):
    process = processes.Process(target=run_in_process, args=(folder,), kwargs=settings)
    process.start()
    process.join()
    assert process.exitcode == 0
    newest = max(folder.glob("step-*"))
    return (newest / "state.safetensors").read_bytes()


@posix
@pytest.mark.heavy
def test_killed_at_20_random_moments_it_ends_bit_for_bit_like_an_unbroken_run(tmp_path, processes):
    settings = {"steps": 200, "save_every": 4}
    unbroken = finish(processes, tmp_path / "unbroken", **settings)
    rng, folder, kills, reached = random.Random(0), tmp_path / "killed", 0, []
    while kills < 20:
        started = processes.Event()
        process = processes.Process(target=run_in_process, args=(folder, started), kwargs=settings)
        process.start()
        started.wait()
        process.join(timeout=rng.uniform(0.0, 0.5))
        process.kill()
        process.join()
        if process.exitcode == 0:  # it came to its end: begin again elsewhere
            assert finish(processes, folder, **settings) == unbroken
            folder = tmp_path / f"after-kill-{kills}"
            continue
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        reached.append(max(steps_in(folder), default=""))
    assert len(set(reached)) > 3  # the kills were spread over the run
    assert finish(processes, folder, **settings) == unbroken
    assert not list(folder.glob(".unfinished-*"))


@posix
@pytest.mark.heavy
def test_killed_at_any_file_operation_of_a_save(tmp_path, processes):
    settings = {"steps": 3, "save_every": 1}
    unbroken = finish(processes, tmp_path / "unbroken", **settings)
    for die_at in range(1000):
        folder = tmp_path / str(die_at)
        kwargs = {"die_at": die_at, **settings}
        process = processes.Process(target=run_in_process, args=(folder,), kwargs=kwargs)
        process.start()
        process.join()
        run_in_process(folder, **settings)  # goes on, here
        end = (folder / "step-000003" / "state.safetensors").read_bytes()
        assert end == unbroken, f"killed at operation {die_at}"
        if process.exitcode == 0:
            break
    assert die_at > 30  # three saves were cut at every operation


def test_a_run_in_parts_ends_like_a_run_at_once(tmp_path):
    at_once, whole = tiny_run(steps=6)
    with pytest.raises(FloatingPointError):  # something stops it after step 4
        tiny_run(tmp_path, model=poisoned(tiny_model(), at_call=5), steps=6, save_every=2)
    in_parts, resumed = tiny_run(tmp_path, steps=6, save_every=2)
    assert in_parts.losses == at_once.losses
    assert all(map(torch.equal, in_parts.gates, at_once.gates))
    for mine, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_finished_run_is_loaded_and_not_repeated(tmp_path):
    first, trained = tiny_run(tmp_path)
    before = content(tmp_path)
    again, loaded = tiny_run(tmp_path)
    assert again.losses == first.losses
    assert content(tmp_path) == before
    assert all(map(torch.equal, loaded.parameters(), trained.parameters()))


def test_a_checkpoint_is_an_adapter_too(tmp_path):
    _, trained = tiny_run(tmp_path)
    loaded = load_adapter(tiny_model(adapter=False), tmp_path / "step-000006")
    for number, prompt in adapter_prompts(trained, "default").items():
        other = adapter_prompts(loaded, "default")[number]
        assert torch.equal(prompt.prompts, other.prompts) and torch.equal(prompt.gate, other.gate)


def test_the_two_newest_checkpoints_stay(tmp_path):
    tiny_run(tmp_path, steps=5, save_every=1)
    assert steps_in(tmp_path) == ["step-000004", "step-000005"]


def test_without_adaption_prompts_whatever_trains_is_kept(tmp_path):
    first, trained = tiny_run(tmp_path, model=tiny_model(adapter=False), learning_rate=1e-3)
    again, loaded = tiny_run(tmp_path, model=tiny_model(adapter=False), learning_rate=1e-3)
    assert again.losses == first.losses
    assert all(map(torch.equal, loaded.parameters(), trained.parameters()))


def one_weight_changed():
    model = tiny_model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-6
    return model


def with_identity_gates():
    config = AdaptionPromptConfig(5, 2, gate_activation="identity")
    return add_adaption_prompts(tiny_model(adapter=False), config)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"learning_rate": 0.01}, "learning_rate was 0.03, now it is 0.01"),
        ({"steps": 9}, "steps was 6, now it is 9"),
        ({"rows": tiny_rows(seed=1)}, "data was"),
        ({"model": tiny_model(adapter=False)}, "what trains was"),
        ({"model": tiny_model(seed=1)}, "base was"),
        ({"model": one_weight_changed()}, "base was"),
        ({"model": with_identity_gates()}, "gate_activation was 'tanh', now it is 'identity'"),
    ],
)
def test_another_run_is_refused_and_nothing_changes(tmp_path, change, words):
    tiny_run(tmp_path)
    before = content(tmp_path)
    model = change.get("model") or tiny_model()
    parameters = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ResumeError, match=words):
        tiny_run(tmp_path, **change | {"model": model})
    assert content(tmp_path) == before
    assert all(map(torch.equal, parameters, model.parameters()))


def test_an_offloaded_base_is_the_same_base_and_trains_alike(tmp_path):
    def offloaded():
        model = cpu_offload(tiny_model(adapter=False), execution_device="cpu")
        assert model.lm_head.weight.is_meta
        return add_adaption_prompts(model, AdaptionPromptConfig(5, 2))

    whole, _ = tiny_run()
    assert tiny_run(model=offloaded())[0].losses == whole.losses
    with pytest.raises(FloatingPointError):
        tiny_run(tmp_path / "half", model=poisoned(tiny_model(), at_call=4))
    assert tiny_run(tmp_path / "half", model=offloaded())[0].losses == whole.losses


def test_adapters_that_were_offloaded_with_their_base_are_refused_in_words():
    with pytest.raises(ValueError, match="offload the base, and then add the adapters"):
        tiny_run(model=cpu_offload(tiny_model(), execution_device="cpu"))


def test_another_micro_batch_size_may_go_on(tmp_path):
    tiny_run(tmp_path)
    assert len(tiny_run(tmp_path, micro_batch_size=2)[0].losses) == 6


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def empty(path):
    path.write_bytes(b"")


def delete(path):
    path.unlink()


@pytest.mark.parametrize("harm", [cut, flip, empty, delete])
def test_a_broken_checkpoint_is_refused_and_the_one_before_goes_on(tmp_path, harm):
    whole, _ = tiny_run(tmp_path, steps=6, save_every=3)
    harm(tmp_path / "step-000006" / "state.safetensors")
    before, model = content(tmp_path), tiny_model()
    parameters = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ResumeError, match="Delete it, and the run goes on from step 3"):
        tiny_run(tmp_path, model=model, steps=6, save_every=3)
    assert content(tmp_path) == before
    assert all(map(torch.equal, parameters, model.parameters()))

    shutil.rmtree(tmp_path / "step-000006")
    assert tiny_run(tmp_path, steps=6, save_every=3)[0].losses == whole.losses


@pytest.mark.parametrize("change", [{"format": "x"}, {"about": 1}, {"sha256": "2"}, {"about": "x"}])
def test_a_file_of_tensors_that_is_no_state(tmp_path, change):
    tiny_run(tmp_path)
    file = tmp_path / "step-000006" / "state.safetensors"
    with safe_open(file, framework="pt") as state:
        run = json.dumps({**json.loads(state.metadata()["run"]), **change})
    for header in (None, {"run": "null"}, {"run": "["}, {"run": run}):
        save_file(load_file(file), file, metadata=header)
        with pytest.raises(ResumeError, match="from the beginning"):
            tiny_run(tmp_path)


def test_a_changed_setting_in_the_header_reads_like_another_run(tmp_path):
    tiny_run(tmp_path)
    file = tmp_path / "step-000006" / "state.safetensors"
    file.write_bytes(file.read_bytes().replace(b"learning_rate", b"learning_rote"))
    with pytest.raises(ResumeError, match="of another run: learning_rote was"):
        tiny_run(tmp_path)


def test_two_runs_in_one_folder(tmp_path):
    accelerator = Accelerator(cpu=True)
    with (
        resume_folder(tmp_path, {}, accelerator),
        pytest.raises(ResumeError, match="another run is working"),
    ):
        tiny_run(tmp_path)
    tiny_run(tmp_path)  # free again


def test_a_folder_that_cannot_be_written_is_told_before_the_training(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(folder_module.FileLock, "acquire", refuse)
    with pytest.raises(OSError, match=r"cannot write .*Read-only file system.*another folder"):
        tiny_run(tmp_path / "runs")


def what_stops(processes, folder, **limits):
    hear, say = processes.Pipe(duplex=False)
    process = processes.Process(target=run_with_limits, args=(folder, say), kwargs=limits)
    process.start()
    process.join()
    assert process.exitcode == 0
    return hear.recv()


@posix
@pytest.mark.heavy
def test_a_read_only_folder(processes):
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        runs = Path(folder, "runs")
        tiny_run(runs, save_every=2)
        before = content(runs)
        runs.chmod(0o555)
        Path(folder).chmod(0o555)
        nobody = {"user": 65534} if os.geteuid() == 0 else {}
        for place in (runs, runs / "deeper", Path(folder, "new")):
            said = what_stops(processes, place, **nobody)
            assert f"cannot write {place}: Permission denied" in said
            assert "take another folder" in said
        Path(folder).chmod(0o755)
        runs.chmod(0o755)
        assert content(runs) == before


@posix
@pytest.mark.heavy
def test_a_file_that_cannot_be_written_to_its_end(tmp_path, processes):
    """What a full disk does, by the system itself: `write` fails in the middle of a file."""
    whole, _ = tiny_run()
    said = what_stops(processes, tmp_path, largest_file=4000)
    assert "cannot write" in said and "step-000004: File too large. Earlier checkpoints" in said
    assert steps_in(tmp_path) == ["step-000002"]
    assert not list(tmp_path.glob(".unfinished-*"))
    assert tiny_run(tmp_path, save_every=2)[0].losses == whole.losses


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "runs").write_text("mine")
    with pytest.raises(OSError, match="cannot write"):
        tiny_run(tmp_path / "runs")
    assert (tmp_path / "runs").read_text() == "mine"


@pytest.mark.parametrize("operation", ["fsync", "rename", "mkdir"])
def test_a_full_disk_keeps_the_earlier_checkpoint(tmp_path, monkeypatch, operation):
    whole, _ = tiny_run(steps=6)
    done = getattr(os, operation)

    def full_after_the_first_save(*args, **options):
        if steps_in(tmp_path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return done(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, operation, full_after_the_first_save)
        with pytest.raises(OSError, match=r"cannot write .*No space left .*Earlier .* whole"):
            tiny_run(tmp_path, steps=6, save_every=2)
    assert steps_in(tmp_path) == ["step-000002"]
    assert not list(tmp_path.glob(".unfinished-*"))
    assert tiny_run(tmp_path, steps=6, save_every=2)[0].losses == whole.losses


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    at_once, _ = tiny_run(steps=6)
    model = tiny_model()
    calls = []

    def press(*inputs):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)

    hook = model.register_forward_pre_hook(press)
    with pytest.raises(
        KeyboardInterrupt, match=r"after step 3 of 6.*step-000003.*same lines again"
    ):
        tiny_run(tmp_path, model=model, steps=6)
    hook.remove()
    assert steps_in(tmp_path) == ["step-000003"]
    assert not model.training
    assert tiny_run(tmp_path, steps=6)[0].losses == at_once.losses


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), caught_interrupts() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_two_ctrl_c_in_the_middle_of_a_save_lose_no_earlier_checkpoint(tmp_path, monkeypatch):
    whole, _ = tiny_run()
    write = os.fsync

    def press_twice_after_the_first_save(*args):
        if steps_in(tmp_path):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return write(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", press_twice_after_the_first_save)
        tiny_run(tmp_path, save_every=2)
    assert steps_in(tmp_path) == ["step-000002"]
    assert not list(tmp_path.glob(".unfinished-*"))
    assert tiny_run(tmp_path, save_every=2)[0].losses == whole.losses


def poisoned(model, at_call):
    """The model with a loss of NaN from that forward pass on."""
    calls = []

    def spoil(module, inputs, output):
        calls.append(1)
        if len(calls) >= at_call:
            output.logits = output.logits * float("nan")
        return output

    model.register_forward_hook(spoil)
    return model


def test_nan_stops_with_step_rows_and_advice_and_keeps_the_last_good_state(tmp_path):
    _, good = tiny_run(steps=6)
    model = poisoned(tiny_model(), at_call=4)
    with pytest.raises(FloatingPointError) as error:
        tiny_run(tmp_path, model=model, steps=6)
    for words in ("loss became nan", "at step 3", "rows [", "lower learning_rate", "step-000003"):
        assert words in str(error.value)
    assert all(p.isfinite().all() for p in model.parameters())
    saved = load_file(tmp_path / "step-000003" / "state.safetensors")
    assert len(saved["losses"]) == 3
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.equal(saved[f"model.{name}"], parameter)
    _, resumed = tiny_run(tmp_path, steps=6)
    assert all(map(torch.equal, resumed.parameters(), good.parameters()))


def test_nan_in_the_first_step_keeps_the_beginning(tmp_path):
    good, _ = tiny_run()
    with pytest.raises(FloatingPointError, match=r"at step 0, in the rows .*step-000000"):
        tiny_run(tmp_path, model=poisoned(tiny_model(), at_call=1))
    assert tiny_run(tmp_path)[0].losses == good.losses


def test_infinite_gradients_stop_too():
    model = tiny_model()
    prompt = adapter_prompts(model, "default")[2]
    prompt.gate.register_hook(lambda gradient: gradient * float("inf"))
    before = prompt.gate.detach().clone()
    with pytest.raises(FloatingPointError, match="gradients became"):
        tiny_run(model=model)
    assert torch.equal(prompt.gate, before)
