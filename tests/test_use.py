"""The model in use after its adapters were added: logits stay what they were, in every case here.

Random orders of the common operations are in `test_law.py`. Here are those that take time or a
process of their own: other processes, offloading, compiling, wrappers, threads and tasks.
"""

import asyncio
import copy
import multiprocessing
import subprocess
import sys
import threading

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from torch.optim.swa_utils import AveragedModel
from transformers import GenerationConfig

from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    disable_adapter,
    gate_openings,
    load_adapter,
    remove_adapter,
    save_adapter,
    set_adapter,
    use_adapter,
)
from llama_adapter_edu.adapters.manage import adapter_prompts

SMALL = AdaptionPromptConfig(5, 2)
IDS = torch.arange(3, 12)[None]


def open_gates(model, name="default", seed=1):
    torch.manual_seed(seed)
    for prompt in adapter_prompts(model, name).values():
        prompt.gate.data.normal_()
        prompt.prompts.data.normal_()
    return model


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


@pytest.fixture
def model(tiny):
    return open_gates(add_adaption_prompts(tiny(attn_implementation="sdpa"), SMALL))


@pytest.fixture
def wanted(model):
    return logits(copy.deepcopy(model))


@pytest.fixture
def bare(tiny):
    return logits(tiny())


def test_the_fixtures_adapter_makes_a_difference(wanted, bare):
    assert (wanted - bare).abs().max() > 1e-3


LOADS = """
import sys, torch
model = torch.load(sys.argv[1] + "/model.pt", weights_only=False)
found, wanted = model(torch.arange(3, 12)[None]).logits, torch.load(sys.argv[1] + "/wanted.pt")
sys.exit(int(not torch.allclose(found, wanted, atol=1e-6)))
"""


@pytest.mark.heavy
def test_saved_whole_and_loaded_in_a_new_process(model, wanted, tmp_path):
    torch.save(model, tmp_path / "model.pt")
    torch.save(wanted, tmp_path / "wanted.pt")
    subprocess.run([sys.executable, "-c", LOADS, str(tmp_path)], check=True, timeout=300)


def _in_worker(model, answer):
    answer.put(logits(model).numpy())


@pytest.mark.heavy
def test_in_a_spawned_worker(model, wanted):
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    worker = context.Process(target=_in_worker, args=(model, answer))
    worker.start()
    found = torch.from_numpy(answer.get(timeout=300))
    worker.join()
    torch.testing.assert_close(found, wanted)


OFFLOADS = {
    "cpu": lambda model, folder: cpu_offload(model, execution_device="cpu"),
    "disk": lambda model, folder: disk_offload(model, str(folder), execution_device="cpu"),
    "dispatch": lambda model, folder: dispatch_model(
        model, {"": "cpu"}, main_device="cpu", force_hooks=True
    ),
}


@pytest.mark.parametrize("how", OFFLOADS)
@pytest.mark.parametrize("adapters", ["before", "after"])
def test_offloaded(tiny, model, wanted, tmp_path, how, adapters):
    if adapters == "after":
        model = tiny(attn_implementation="sdpa")
    OFFLOADS[how](model, tmp_path / "offload")
    if adapters == "after":
        open_gates(add_adaption_prompts(model, SMALL))
    torch.testing.assert_close(logits(model), wanted)
    assert model.generate(IDS, max_new_tokens=2, do_sample=False).shape == (1, 11)
    assert gate_openings(model).abs().max() > 0
    save_adapter(model, tmp_path / "saved")
    back = load_adapter(tiny(attn_implementation="sdpa"), tmp_path / "saved")
    assert torch.equal(logits(back), wanted)


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.heavy
def test_compiled_and_swapped(model, wanted, bare, backend):
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    torch.testing.assert_close(logits(compiled), wanted)
    add_adaption_prompts(model, SMALL, "second")
    open_gates(model, "second", seed=2)
    second = logits(model)
    torch.testing.assert_close(logits(compiled), second)
    with use_adapter(compiled, "default"):
        torch.testing.assert_close(logits(compiled), wanted)
    with disable_adapter(compiled):
        torch.testing.assert_close(logits(compiled), bare)
    torch.testing.assert_close(logits(compiled), second)


def test_exported(model, wanted):
    program = torch.export.export(model, (IDS,), {"use_cache": False}, strict=False)
    torch.testing.assert_close(program.module()(IDS, use_cache=False).logits, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_cast_and_back(model, wanted, dtype):
    model.to(dtype)
    assert logits(model).dtype == dtype
    torch.testing.assert_close(logits(model).float(), wanted, atol=2e-2, rtol=0)
    assert {p.dtype for p in adapter_prompts(model, "default")[2].parameters()} == {torch.float32}


def test_averaged(model, wanted, bare):
    averaged = AveragedModel(model)
    torch.testing.assert_close(logits(averaged), wanted)
    with disable_adapter(averaged):
        torch.testing.assert_close(logits(averaged), bare)


def test_another_attention_for_the_parts_by_name(model, wanted):
    model.set_attn_implementation({"": "eager"})
    torch.testing.assert_close(logits(model), wanted)
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("sdpa")
    add_adaption_prompts(twin, SMALL, "second")
    set_adapter(twin, "default")
    torch.testing.assert_close(logits(twin), wanted)
    torch.testing.assert_close(logits(model), wanted)


def test_gradients_of_a_block_are_those_of_its_adapter_though_backward_comes_later(model):
    """Checkpointed layers are computed again in the backward, when the block is long over."""
    add_adaption_prompts(model, AdaptionPromptConfig(3, 3), "second")
    model.requires_grad_(False)
    for prompt in adapter_prompts(model, "default").values():
        prompt.requires_grad_(True)

    def gradients():
        model.zero_grad()
        with use_adapter(model, "default"):
            loss = model(IDS, labels=IDS, use_cache=False).loss
        loss.backward()
        prompts = adapter_prompts(model, "default").values()
        return [p.grad.clone() for prompt in prompts for p in prompt.parameters()]

    model.train()
    plain = gradients()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(gradients(), plain)


@pytest.fixture
def two(model):
    """(model, {choice: its logits}); the second adapter has other lengths and layers."""
    add_adaption_prompts(model, AdaptionPromptConfig(3, 3), "second")
    open_gates(model, "second", seed=2)
    set_adapter(model, "default")
    found = {}
    for choice in ("default", "second", None):
        with use_adapter(model, choice):
            found[choice] = logits(model)
    return model, found


def test_blocks_of_several_threads_do_not_disturb_each_other(two):
    model, wanted = two
    wrong = []

    def work(choice):
        for _ in range(25):
            with use_adapter(model, choice):
                if not torch.allclose(logits(model), wanted[choice], atol=1e-5):
                    wrong.append(choice)

    threads = [threading.Thread(target=work, args=(choice,)) for choice in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert torch.equal(logits(model), wanted["default"])


def test_blocks_of_several_tasks_do_not_disturb_each_other(two):
    model, wanted = two
    wrong = []

    async def work(choice):
        for _ in range(5):
            with use_adapter(model, choice):
                await asyncio.sleep(0)
                if not torch.allclose(logits(model), wanted[choice], atol=1e-5):
                    wrong.append(choice)

    async def all_of_them():
        await asyncio.gather(*map(work, wanted))

    asyncio.run(all_of_them())
    assert wrong == []


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("cached", [True, False])
def test_rows_of_a_batch_answer_as_they_do_alone(two, beams, cached):
    model, _ = two
    choices = ["default", "second", None, "default"]
    torch.manual_seed(3)
    texts = [torch.randint(3, 90, (length,)) for length in (4, 7, 5, 6)]
    ids = torch.stack([torch.nn.functional.pad(text, (7 - len(text), 0)) for text in texts])
    options = dict(max_new_tokens=4, do_sample=False, num_beams=beams, use_cache=cached)
    options |= dict(eos_token_id=None, pad_token_id=0)
    with use_adapter(model, choices):
        together = model.generate(ids, attention_mask=(ids > 0).long(), **options)
    for row, (choice, text) in enumerate(zip(choices, texts, strict=True)):
        with use_adapter(model, choice):
            alone = model.generate(text[None], attention_mask=torch.ones(1, len(text)), **options)
        assert torch.equal(together[row, 7:], alone[0, len(text) :]), choice


def test_what_cannot_be_is_said(two):
    model, _ = two
    words = "names an adapter for each of 2 rows, but the batch has 4"
    with pytest.raises(ValueError, match=words), use_adapter(model, ["default", "second"]):
        model(IDS.expand(4, -1))
    words = "no adapter named 'x'; the model has"
    with pytest.raises(ValueError, match=words), use_adapter(model, ["default", "x"]):
        pass
    with pytest.raises(ValueError, match="empty list"), use_adapter(model, []):
        pass
    words = "Name the one you mean"
    with pytest.raises(ValueError, match=words), use_adapter(model, ["default", None]):
        save_adapter(model, "nowhere")


def test_what_was_asked_last_holds(two):
    model, wanted = two
    with disable_adapter(model):
        set_adapter(model, "second")
        assert torch.equal(logits(model), wanted["second"])
    assert torch.equal(logits(model), wanted["second"])
    with use_adapter(model, "default"), use_adapter(model, None):
        assert torch.equal(logits(model), wanted[None])
    with use_adapter(model, "default"):
        remove_adapter(model, "default")
        assert torch.equal(logits(model), wanted["second"])
    assert torch.equal(logits(model), wanted["second"])


def test_an_adapter_removed_by_another_thread_is_not_the_base_without_a_word(two):
    model, _ = two
    with use_adapter(model, "second"):
        thread = threading.Thread(target=remove_adapter, args=(model, "second"))
        thread.start()
        thread.join()
        with pytest.raises(ValueError, match="no adapter named 'second'"):
            logits(model)


def test_continuous_batching_in_a_block_is_refused(model):
    if not hasattr(model, "generate_batch"):
        pytest.skip("this transformers has no continuous batching")
    with pytest.raises(ValueError, match="Choose with set_adapter"), disable_adapter(model):
        model.generate_batch([IDS[0].tolist()])


@pytest.mark.slow
def test_continuous_batching_gives_the_adapters_tokens_or_refuses(model):
    """Where transformers itself cannot run it, its own error comes, and never the base's tokens."""
    options = dict(max_new_tokens=4, do_sample=False, eos_token_id=2, pad_token_id=0)
    wanted = model.generate(IDS, **options)[0, 9:].tolist()
    try:
        outputs = model.generate_batch(
            [IDS[0].tolist()], generation_config=GenerationConfig(**options), progress_bar=False
        )
        found = [list(output.generated_tokens) for output in outputs.values()]
    except Exception as error:
        pytest.skip(f"transformers: {type(error).__name__}: {error}")
    if not found:
        pytest.skip("transformers gave no answer")
    assert found == [wanted]
