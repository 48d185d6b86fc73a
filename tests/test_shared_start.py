"""Rows that begin alike, side by side: the same losses and gradients as each row by itself."""

from statistics import mean

import pytest
import torch
import torch.nn.functional as F
from gates import open_gates
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny_run import tiny_model, tiny_rows, tiny_run
from transformers import AutoTokenizer

from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    add_cartridge,
    encode_dataset,
    use_adapter,
)
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.data.token_rows import Rows
from llama_adapter_edu.training.loss import answer_loss_sum
from llama_adapter_edu.training.shared_start import SharedStart, common_start

START = [7, 8, 9, 10]
NOWHERE = torch.device("cpu")


def rows_with(start=START, n=12, **settings):
    """Tiny rows behind the same tokens."""
    return [
        {
            "input_ids": start + row["input_ids"],
            "labels": [-100] * len(start) + [-100, *row["labels"][1:]],
        }
        for row in tiny_rows(n, **settings)
    ]


def adapted(model, **settings):
    torch.manual_seed(0)
    add_adaption_prompts(model, AdaptionPromptConfig(5, 2, **settings))
    open_gates(model)
    return model


def one_by_one(model, rows):
    """The loss sum without any code of ours: each row alone, no batch, no mask, no position."""
    total = 0
    for row in rows:
        logits = model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        total = total + F.cross_entropy(logits.float(), labels, reduction="sum")
    return total


def gradients(model, loss):
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(loss, trained, allow_unused=True)


FAMILIES = {
    "llama": {},
    "qwen3": {"head_dim": 16},
    "phi3": {},
    "gemma3_text": {"head_dim": 16, "sliding_window": 64},
    "granite": {"attention_multiplier": 0.3},
    "mixtral": {"num_local_experts": 2},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_losses_and_gradients_are_those_of_each_row_by_itself(tiny, family, attention):
    model = adapted(tiny(family, attention, **FAMILIES[family]))
    rows = rows_with()
    shared = SharedStart(Rows(rows, 0, NOWHERE), model)
    assert shared.n_shared == 4
    for numbers in ([0, 1, 2, 3], [5], [11, 2, 7]):
        batch = shared.batch(numbers)
        n_tokens = 4 + sum(len(rows[number]["input_ids"]) - 4 for number in numbers)
        assert batch["input_ids"].shape == (1, n_tokens)
        loss, n_labelled = answer_loss_sum(model, batch)
        expected = one_by_one(model, [rows[number] for number in numbers])
        assert n_labelled == shared.n_labelled(numbers)
        torch.testing.assert_close(loss, expected, atol=2e-4, rtol=1e-5)
        for mine, right in zip(gradients(model, loss), gradients(model, expected), strict=True):
            torch.testing.assert_close(mine, right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("settings", [{"bias_scale": True, "norms": True}, {"adapter_layers": 3}])
def test_other_adapters(settings):
    model = add_adaption_prompts(tiny_model(adapter=False), AdaptionPromptConfig(5, **settings))
    open_gates(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    rows = rows_with()
    loss, _ = answer_loss_sum(model, SharedStart(Rows(rows, 0, NOWHERE), model).batch(range(4)))
    torch.testing.assert_close(loss, one_by_one(model, rows[:4]), atol=2e-4, rtol=1e-5)


def test_lora_around_the_model():
    model = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"], r=2))
    rows = rows_with()
    loss, _ = answer_loss_sum(model, SharedStart(Rows(rows, 0, NOWHERE), model).batch(range(4)))
    torch.testing.assert_close(loss, one_by_one(model, rows[:4]), atol=2e-4, rtol=1e-5)


def test_a_cartridge_before_all_of_it():
    model = tiny_model(adapter=False)
    add_cartridge(model, torch.tensor([[3, 4, 5, 6, 7]]))
    rows = rows_with()
    loss, _ = answer_loss_sum(model, SharedStart(Rows(rows, 0, NOWHERE), model).batch(range(4)))
    torch.testing.assert_close(loss, one_by_one(model, rows[:4]), atol=2e-4, rtol=1e-5)


def test_training_learns_the_same(tmp_path):
    rows = rows_with(n=40)
    plain, _ = tiny_run(rows=rows)
    shared, model = tiny_run(rows=rows, share_start=True)
    assert shared.losses == pytest.approx(plain.losses, abs=1e-4)
    cut, _ = tiny_run(rows=rows, share_start=True, micro_batch_size=3)
    assert cut.losses == pytest.approx(plain.losses, abs=1e-4)
    assert not model.training
    # A run may go on with it or without: what is learnt is the same.
    tiny_run(tmp_path, rows=rows)
    again, _ = tiny_run(tmp_path, rows=rows, share_start=True)
    assert again.losses == pytest.approx(plain.losses, abs=1e-4)


def test_a_home_command_begins_with_24_of_its_63_tokens(small_llama_folder):
    """As NOTES.md says."""
    tokenizer = AutoTokenizer.from_pretrained(small_llama_folder)
    rows = Rows(encode_dataset(home_commands("train", 520), tokenizer), 0, NOWHERE)
    assert common_start(rows) == 24
    assert round(mean(rows.lengths)) == 63


def test_rounding_in_the_real_llama_with_open_gates_is_no_refusal(fresh_llama):
    """Where training goes on: its states are large, so rows in a padded batch round, too."""
    model, tokenizer = fresh_llama
    torch.manual_seed(0)
    add_adaption_prompts(model, AdaptionPromptConfig(10, 30))
    open_gates(model)
    rows = encode_dataset(home_commands("train", 8), tokenizer)
    assert SharedStart(Rows(rows, 0, NOWHERE), model).n_shared == 24


def test_the_start_ends_where_rows_differ_or_are_labelled():
    def n_shared(*rows):
        rows = [{"input_ids": ids, "labels": labels} for ids, labels in rows]
        return SharedStart(Rows(rows, 0, NOWHERE), tiny_model()).n_shared

    no = [-100] * 5
    assert n_shared(([5, 6, 7, 8, 9], [*no[:4], 9]), ([5, 6, 7, 9, 9], [*no[:4], 9])) == 3
    # Token 4 is predicted from token 3, which stands before it in its own row.
    assert n_shared(([5, 6, 7, 8, 9], [*no[:4], 9]), ([5, 6, 7, 8, 4], [*no[:4], 4])) == 3
    assert n_shared(([5, 6, 7, 8, 9], [*no[:2], 7, 8, 9]), ([5, 6, 7, 8, 4], no)) == 1
    # A label of the first token never counts.
    assert n_shared(([5, 6, 7, 8], [5, *no[:2], 8]), ([5, 6, 7, 9], [*no[:3], 9])) == 2
    # A row that is only the start still has its tokens.
    assert n_shared(([5, 6, 7], no[:3]), ([5, 6, 7, 8, 9], [*no[:4], 9])) == 3


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (tiny_rows(), "do not begin with the same tokens"),
        ([{"input_ids": [5, n], "labels": [5, n]} for n in (6, 7)], "do not begin"),
        ([{"input_ids": [5, 6], "labels": [5, 6], "position_ids": [0, 1]}], "packed"),
    ],
)
def test_rows_that_share_nothing_are_refused(rows, words):
    model = tiny_model()
    with pytest.raises(ValueError, match=words):
        tiny_run(model=model, rows=rows, share_start=True)
    assert not model.training


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("mistral", {"sliding_window": 8}, "only in a window"),
        ("gemma3_text", {"head_dim": 16, "sliding_window": 8}, "only in a window"),
        ("mpt", {"d_model": 48, "n_heads": 6, "n_layers": 3}, "where the mask does not let it"),
        ("bloom", {"n_head": 6, "n_layer": 3}, "cannot share the start"),
        ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}, r"\['conv'\] take no mask"),
    ],
)
def test_models_that_would_compute_something_else_are_refused(tiny, family, settings, words):
    rows = Rows(rows_with(longest=20), 0, NOWHERE)
    with pytest.raises(ValueError, match=words):
        SharedStart(rows, tiny(family, **settings).train())


def test_a_model_that_repacks_in_evaluation_mode_stays_in_training_mode():
    """As bitsandbytes does with 4 bits on some CPUs, for good."""

    class Linear4bit(torch.nn.Linear):
        def forward(self, x):
            assert self.training
            return super().forward(x)

    model = tiny_model()
    layer = model.model.layers[0].mlp
    four_bit = Linear4bit(48, 64, bias=False)
    four_bit.load_state_dict(layer.up_proj.state_dict())
    layer.up_proj = four_bit.requires_grad_(False)
    assert len(tiny_run(model=model, rows=rows_with(), share_start=True)[0].losses) == 6


def test_out_of_memory_is_no_refusal():
    def no_memory(*args):
        raise torch.OutOfMemoryError("nothing left")

    model = tiny_model()
    model.register_forward_pre_hook(no_memory)
    with pytest.raises(torch.OutOfMemoryError, match="nothing left"):
        SharedStart(Rows(rows_with(), 0, NOWHERE), model)


def test_with_what_else_it_does_not_go():
    ids = torch.tensor([[3, 4]])
    with pytest.raises(ValueError, match="leave out cuda_graphs and document_ids"):
        tiny_run(rows=rows_with(), share_start=True, document_ids=ids)
    prompted = get_peft_model(
        tiny_model(adapter=False), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    )
    with pytest.raises(ValueError, match="cannot share the start"):
        tiny_run(model=prompted, rows=rows_with(), share_start=True)
    model = tiny_model()
    rows = SharedStart(Rows(rows_with(), 0, NOWHERE), model)
    with use_adapter(model, ["default", None]), pytest.raises(ValueError, match="the batch has 1"):
        answer_loss_sum(model, rows.batch([0, 1]))
