"""Prompts that a generation keeps give the tokens of prompts that are computed at every step.

`model.generate.__wrapped__` is the method of the model's class, which keeps none.
"""

import pytest
import torch
from gates import open_gates
from tiny_run import tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, LogitsProcessor

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, set_adapter, use_adapter

IDS = torch.arange(3, 15).reshape(2, 6)
N_NEW = 5
SEARCHES = {
    "greedy": {},
    "beams": dict(num_beams=3, num_return_sequences=2),
    "samples": dict(do_sample=True, num_return_sequences=3),
}


@pytest.fixture
def model(tiny):
    """With adapters that differ in length and layers; both have open gates."""
    model = tiny(attn_implementation="sdpa")
    for name, settings in {"long": (5, 2), "short": (3, 3)}.items():
        open_gates(add_adaption_prompts(model, AdaptionPromptConfig(*settings), name), name)
    return model


def answers(generate, *processors, **options):
    """Tokens and logits, of as many tokens for each row."""
    settings = GenerationConfig(
        max_new_tokens=N_NEW,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        **{"do_sample": False} | options,
    )
    torch.manual_seed(4)
    found = generate(IDS, generation_config=settings, logits_processor=list(processors))
    return found.sequences, torch.stack(found.logits)


class AtEachToken(LogitsProcessor):
    """Do something between two tokens; the scores stay."""

    def __init__(self, do):
        self.do = do

    def __call__(self, ids, scores):
        self.do(ids)
        return scores


def assert_equal(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("choice", ["long", "short", None])
def test_one_adapter(model, search, choice):
    with use_adapter(model, choice):
        found = answers(model.generate, **SEARCHES[search])
        assert_equal(found, answers(model.generate.__wrapped__, **SEARCHES[search]))


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("choice", [["long", "short"], [None, "short"], ["long", None]])
def test_an_adapter_for_each_row(model, search, choice):
    options = SEARCHES[search]
    with use_adapter(model, choice):
        found = answers(model.generate, **options)
    times = options.get("num_beams") or options.get("num_return_sequences", 1)
    with use_adapter(model, [name for name in choice for _ in range(times)]):
        assert_equal(found, answers(model.generate.__wrapped__, **options))


def test_calls_of_more_and_of_fewer_rows_between_two_tokens(model):
    """As guidance does, that asks the model about other texts while an answer is made."""
    some = IDS.repeat(2, 1), IDS[:1]
    with torch.no_grad():
        wanted = [model(ids, use_cache=False).logits for ids in some]
    seen = []

    def ask(ids):
        seen.append([model(ids, use_cache=False).logits for ids in some])

    found = answers(model.generate, AtEachToken(ask))
    assert len(seen) == N_NEW
    for logits in seen:
        assert_equal(logits, wanted)
    assert_equal(found, answers(model.generate))


def test_another_adapter_from_the_third_token_on(model):
    def answer(generate, other):
        set_adapter(model, "long")
        change = AtEachToken(lambda ids: ids.shape[1] == 8 and set_adapter(model, other))
        return answers(generate, change)

    changed = answer(model.generate, "short")
    assert_equal(changed, answer(model.generate.__wrapped__, "short"))
    tokens, logits = zip(changed, answer(model.generate, "long"), strict=True)
    assert torch.equal(tokens[0][:, :9], tokens[1][:, :9])
    assert not torch.allclose(logits[0][3:], logits[1][3:])


def test_numbers_of_an_adapter_that_change_between_two_generations(model):
    before = answers(model.generate)
    open_gates(model, "short", std=2.0)
    after = answers(model.generate)
    assert not torch.allclose(before[1], after[1])
    assert_equal(after, answers(model.generate.__wrapped__))


def test_a_token_costs_an_attention_a_transpose_and_a_sum_for_each_layer(model, tiny):
    """What is left of an adapted layer in decoding, where each operation is time of the CPU."""

    class Count(TorchDispatchMode):
        n = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.n += 1
            return function(*args, **kwargs or {})

    def operations(model):
        count, at = Count(), []
        with count:
            answers(model.generate, AtEachToken(lambda ids: at.append(count.n)))
        return at[3] - at[2]

    added = operations(model) - operations(tiny(attn_implementation="sdpa"))
    assert added <= 3 * 3  # "short" has three layers


def test_a_generation_gets_a_name_and_a_picture_for_each_text():
    """Beams are made inside of `generate`: names and pictures are those of the texts given."""
    model = tiny_model()
    add_adaption_prompts(model, AdaptionPromptConfig(3, 2), "other")
    texts = torch.arange(4, 16).reshape(4, 3)
    for rows, more in ((4, {}), (1, {"num_beams": 2})):
        for given in ({"inputs": texts[:rows]}, {"input_ids": texts[:rows]}):
            with (
                use_adapter(model, ["default", "other"]),
                pytest.raises(ValueError, match=f"each of 2 rows, but the batch has {rows}"),
            ):
                model.generate(**given, **more, max_new_tokens=2, do_sample=False)
    with pytest.raises(ValueError, match="2 images for 4 texts"):
        model.generate(texts, images=torch.zeros(2, 3, 8, 8), max_new_tokens=2)
