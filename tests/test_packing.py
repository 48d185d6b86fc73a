"""Packed rows: every token once, and the same model, loss and gradients as padded rows."""

import pytest
import torch
from torch import nn
from transformers import DataCollatorWithFlattening

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, encode_dataset
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.course.tasks.packing import best_fit, collate_packed, pack, padding_share
from llama_adapter_edu.data.batches import collate
from llama_adapter_edu.data.encoding import IGNORE_INDEX


def random_rows(lengths: list[int], n_prompt: int = 2) -> list[dict]:
    """Rows of random tokens 3 to 95; what comes after the first `n_prompt` is labelled."""
    generator = torch.manual_seed(0)
    ids = [torch.randint(3, 96, (n,), generator=generator).tolist() for n in lengths]
    return [{"input_ids": row, "labels": [IGNORE_INDEX] * n_prompt + row[n_prompt:]} for row in ids]


def with_open_gates(model, layers: int):
    """The model with prompts whose gates are open, so that positions matter."""
    add_adaption_prompts(model, AdaptionPromptConfig(adapter_len=4, adapter_layers=layers))
    for number, prompt in adapter_prompts(model, "default").items():
        nn.init.constant_(prompt.gate, 0.3 + 0.1 * number)
    return model


# --- which row goes where ------------------------------------------------------------------------


def test_every_row_once_and_no_packed_row_too_long():
    lengths = torch.randint(1, 100, (203,), generator=torch.manual_seed(0)).tolist()
    groups = best_fit(lengths, 120)
    assert sorted(row for group in groups for row in group) == list(range(203))
    filled = [sum(lengths[row] for row in group) for group in groups]
    assert max(filled) <= 120
    fewest = sum(lengths) / 120
    assert len(groups) <= 11 / 9 * fewest + 1


def test_rows_that_fit_exactly_are_found():
    groups = best_fit([3, 7, 4, 6, 10], 10)
    assert sorted(map(sorted, groups)) == [[0, 1], [2, 3], [4]]
    assert best_fit([], 10) == []


def test_a_row_that_is_too_long_is_named():
    with pytest.raises(ValueError, match=r"Row 1 has 11 tokens.*length=10.*max_length=length"):
        best_fit([3, 11, 4], 10)
    with pytest.raises(ValueError, match="Row 1 has no tokens"):
        pack([*random_rows([3]), {"input_ids": [], "labels": []}], 10)


def test_padding_share_counts_the_places_that_hold_nothing():
    assert padding_share([2, 4, 4], [[0, 1], [2]]) == pytest.approx(2 / 12)
    assert padding_share([4, 4], [[0], [1]]) == 0


# --- what a packed row holds ---------------------------------------------------------------------


def test_a_packed_row_is_what_transformers_makes_of_its_examples():
    rows = random_rows([5, 3, 1], n_prompt=0)  # labelled from the first token on
    (packed,) = pack(rows, 9)
    theirs = DataCollatorWithFlattening()(rows, return_tensors="pt")
    for name, values in packed.items():
        assert values == theirs[name][0].tolist(), name


def test_the_batch_is_padded_with_an_example_of_its_own():
    rows = pack(random_rows([5, 3, 4]), 8)
    batch = collate_packed(rows, pad_token_id=0)
    assert sorted(batch) == ["input_ids", "labels", "position_ids", "use_cache"]
    assert batch["use_cache"] is False
    (short,) = (batch["input_ids"] == 0).any(dim=1).nonzero().flatten().tolist()
    assert batch["position_ids"][short].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert batch["input_ids"][short, 4:].tolist() == [0] * 4
    assert batch["labels"][short, 4:].tolist() == [IGNORE_INDEX] * 4


def test_collate_packed_refuses_what_it_cannot_pad():
    with pytest.raises(ValueError, match="at least one row"):
        collate_packed([], 0)
    with pytest.raises(ValueError, match="pad_token"):
        collate_packed(pack(random_rows([3]), 3), None)


# --- the model does not notice -------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_packed_and_padded_rows_give_the_same_loss_and_gradients(tiny, attention, family):
    """The answers differ in length, so a mean of each row's mean would not do."""
    model = with_open_gates(tiny(family, attention), layers=3)
    rows = random_rows([9, 4, 13, 6, 5, 3])
    gradients, losses = [], []
    for batch in (collate(rows, 0), collate_packed(pack(rows, 16), 0)):
        loss = model(**batch).loss
        gradients.append(
            torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad])
        )
        losses.append(loss.detach())
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    for padded, packed in zip(*gradients, strict=True):
        torch.testing.assert_close(padded, packed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_changing_an_example_changes_nothing_for_its_neighbours(tiny, attention):
    model = with_open_gates(tiny("llama", attention), layers=3)
    batch = collate_packed(pack(random_rows([6, 5, 4]), 15), 0)
    middle = slice(6, 11)
    changed = {**batch, "input_ids": batch["input_ids"].clone()}
    changed["input_ids"][:, middle] = 95 - changed["input_ids"][:, middle]
    with torch.no_grad():
        one, other = model(**batch).logits, model(**changed).logits
    assert torch.equal(one[:, :6], other[:, :6]) and torch.equal(one[:, 11:], other[:, 11:])
    assert not torch.allclose(one[:, middle], other[:, middle])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_each_example_is_computed_as_it_would_be_alone(tiny, attention):
    model = with_open_gates(tiny("llama", attention), layers=3)
    rows = random_rows([6, 5, 4])
    with torch.no_grad():
        packed = model(**collate_packed(pack(rows, 15), 0)).logits[0]
        alone = [model(torch.tensor([row["input_ids"]])).logits[0] for row in rows]
    torch.testing.assert_close(packed, torch.cat(alone), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spoil", ["attention_mask", "use_cache", "position_ids"])
def test_the_ways_to_spoil_a_packed_batch_would_be_noticed(tiny, spoil):
    """Why a packed batch has no mask, no cache, and positions that restart: each one matters."""
    model = with_open_gates(tiny("llama", "sdpa"), layers=3)
    rows = random_rows([6, 5, 4])
    batch = collate_packed(pack(rows, 15), 0)
    with torch.no_grad():
        right = model(**batch).logits
        wrong = {
            "attention_mask": {**batch, "attention_mask": torch.ones_like(batch["input_ids"])},
            "use_cache": {**batch, "use_cache": True},
            "position_ids": {**batch, "position_ids": torch.arange(15)[None]},
        }[spoil]
        assert (model(**wrong).logits - right).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_courses_llama_learns_the_same_from_packed_and_padded_rows(fresh_llama, attention):
    model, tokenizer = fresh_llama
    model.set_attn_implementation(attention)
    add_adaption_prompts(model)
    for prompt in adapter_prompts(model, "default").values():
        nn.init.constant_(prompt.gate, 0.003)
    rows = encode_dataset(home_commands("train", 4), tokenizer).to_list()
    rows[1] = {name: rows[1][name][-20:] for name in ("input_ids", "labels")}  # not all alike
    padded, packed = collate(rows, tokenizer.pad_token_id), pack(rows, 150)
    assert 1 < len(packed) < 4
    with torch.no_grad():
        losses = [
            model(**batch).loss
            for batch in (padded, collate_packed(packed, tokenizer.pad_token_id))
        ]
        moved = model(**padded, position_ids=torch.arange(padded["labels"].shape[1])[None] + 9).loss
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    assert abs(moved - losses[0]) > 1e-4  # the gates are open: positions matter
