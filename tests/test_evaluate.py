"""Answers of a model: greedy whatever its settings say, and ended where `generate` ends."""

import threading

import pytest
import torch
from gates import open_gates
from test_chats import CHATML, THINKING, byte_tokenizer
from transformers import GenerationConfig

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, generate_answers
from llama_adapter_edu.data.encoding import encode, encode_prompt
from llama_adapter_edu.data.evaluate import expected_answers, longest_answer

ROWS = [
    {"instruction": "Say hi", "input": "", "output": "hi"},
    {"instruction": "Add the numbers, please", "input": "2 and 3", "output": "It is 5, surely"},
]
CHAT = {
    "messages": [
        {"role": "user", "content": "Say hi"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": "Again?"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "Thanks"},
    ]
}


@pytest.fixture
def tokenizer():
    tokenizer = byte_tokenizer(CHATML)
    tokenizer.pad_token = "<s>"
    return tokenizer


@pytest.fixture
def model(tiny, tokenizer):
    """Its answers differ, repeat themselves, and meet every token within some tens."""
    model = tiny(vocab_size=len(tokenizer), initializer_range=0.7)
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=2.0,
        top_k=3,
        repetition_penalty=3.0,
        no_repeat_ngram_size=2,
        suppress_tokens=[65, 66],
        min_new_tokens=3,
        transformers_version="4.56.0",
    )
    return model


def greedy(model, prompt: list[int], n: int, ends: set[int]) -> list[int]:
    """The likeliest token again and again, computed without `generate`."""
    ids = list(prompt)
    for _ in range(n):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


def prompts(tokenizer) -> list[list[int]]:
    return [encode_prompt(tokenizer, row["instruction"], row["input"]) for row in ROWS]


def test_answers_are_greedy_whatever_the_models_settings(model, tokenizer):
    before = model.generation_config.to_dict()
    answers = generate_answers(model, tokenizer, ROWS, max_new_tokens=24)
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    expected = [greedy(model, prompt, 24, ends) for prompt in prompts(tokenizer)]
    assert answers == [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]
    assert model.generation_config.to_dict() == before


@pytest.mark.parametrize("as_list", [False, True])
def test_answers_end_where_generate_ends(model, tokenizer, as_list):
    """With a token of the model's own settings; the tokenizer knows nothing of it."""
    plain = [greedy(model, prompt, 24, set()) for prompt in prompts(tokenizer)]
    end = plain[1][7]
    model.generation_config.eos_token_id = [end, 3] if as_list else end
    answers = generate_answers(model, tokenizer, ROWS, max_new_tokens=24)
    ends = {end, tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    ends |= {3} if as_list else set()
    expected = [greedy(model, prompt, 24, ends) for prompt in prompts(tokenizer)]
    assert len(expected[1]) <= 8
    assert answers == [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]


def test_answers_end_with_the_token_that_rows_are_trained_to_end_with(model, tokenizer):
    """The template's closing token need not be the tokenizer's eos token, nor the model's."""
    closing = encode(ROWS[0], tokenizer)["labels"][-1]
    assert closing != tokenizer.eos_token_id
    with torch.no_grad():  # a model that says nothing else
        model.lm_head.weight.zero_()
        model.lm_head.weight[closing] = 1.0
        model.lm_head.weight[:closing] = -1.0
    model.generation_config.suppress_tokens = None
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    generate_answers(model, tokenizer, ROWS, max_new_tokens=24)
    last = greedy(model, prompts(tokenizer)[0], 24, {closing})
    assert (len(calls) == 1 + len(last)) == (last == [closing])


def test_the_models_settings_are_its_own_again_also_after_an_error(model, tokenizer):
    before = model.generation_config
    threads = [
        threading.Thread(target=generate_answers, args=(model, tokenizer, ROWS),
                         kwargs={"max_new_tokens": 4})
        for _ in range(4)
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.generation_config is before
    model.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        generate_answers(model, tokenizer, ROWS, max_new_tokens=4)
    assert model.generation_config is before


def test_with_adapters_too(model, tokenizer):
    add_adaption_prompts(model, AdaptionPromptConfig(3, 3))
    base = generate_answers(model, tokenizer, ROWS, max_new_tokens=12)
    for name, parameter in model.named_parameters():
        if name.endswith("gate"):
            parameter.data.fill_(3.0)
    answers = generate_answers(model, tokenizer, ROWS, max_new_tokens=12)
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    expected = [greedy(model, prompt, 12, ends) for prompt in prompts(tokenizer)]
    assert answers == [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]
    assert answers != base


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_prompts_that_share_their_start_are_answered_as_each_alone(model, tokenizer, batch_size):
    add_adaption_prompts(model, AdaptionPromptConfig(3, 3))
    open_gates(model)
    rows = [*ROWS, ROWS[0], {"instruction": "Sing", "input": "", "output": "la"}]
    read = []
    model.model.register_forward_hook(
        lambda module, args, kwargs, output: read.append(output[0].shape[:2]), with_kwargs=True
    )
    answers = generate_answers(
        model, tokenizer, rows, max_new_tokens=12, batch_size=batch_size, share_start=True
    )
    encoded = [encode_prompt(tokenizer, row["instruction"], row["input"]) for row in rows]
    n_shared = [len(set(tokens)) > 1 for tokens in zip(*encoded, strict=False)].index(True)
    assert read[0] == (1, n_shared) and n_shared > 5
    assert max(n for _, n in read[1:]) == max(map(len, encoded)) - n_shared
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    expected = [greedy(model, prompt, 12, ends) for prompt in encoded]
    assert answers == [tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in expected]


@pytest.mark.parametrize("rows", [[], ROWS[:1], [ROWS[0]] * 3], ids=["none", "one", "all alike"])
def test_few_rows_may_share_their_start_too(model, tokenizer, rows):
    how = {"max_new_tokens": 6}
    shared = generate_answers(model, tokenizer, rows, share_start=True, **how)
    assert shared == generate_answers(model, tokenizer, rows, **how)


def test_of_a_chat_the_last_answer(model, tokenizer):
    assert expected_answers([CHAT, ROWS[0]]) == ["hello", "hi"]
    given = tokenizer.apply_chat_template(
        CHAT["messages"][:3], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    ends = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    expected = tokenizer.decode(greedy(model, given, 9, ends), skip_special_tokens=True)
    assert generate_answers(model, tokenizer, [CHAT], max_new_tokens=9) == [expected.strip()]
    assert longest_answer([CHAT, ROWS[0]], tokenizer) == len("hello") + 1
    assert longest_answer(ROWS, tokenizer) == len("It is 5, surely") + 1


def test_what_the_template_writes_in_front_of_an_answer_is_no_part_of_it(model, monkeypatch):
    tokenizer = byte_tokenizer(THINKING)
    tokenizer.pad_token = "<s>"
    said = tokenizer("<think>\n\n</think>\n\nhi", add_special_tokens=False)["input_ids"]
    model.generate = lambda input_ids, **_: torch.cat([input_ids, torch.tensor([said])], dim=1)
    assert generate_answers(model, tokenizer, ROWS[:1], max_new_tokens=40) == ["hi"]
    assert longest_answer(ROWS[:1], tokenizer) == len(said) + 1


@pytest.mark.parametrize("template", [CHATML, THINKING])
def test_answers_that_cannot_be_right_any_more_are_cut_and_right_ones_stay(tiny, template):
    tokenizer = byte_tokenizer(template)
    tokenizer.pad_token = "<s>"
    model = tiny(vocab_size=len(tokenizer), initializer_range=0.7)
    rows = [{"instruction": f"Say {n} é", "input": "", "output": "?"} for n in range(8)]
    settings = {"max_new_tokens": 24, "batch_size": 3}
    full = generate_answers(model, tokenizer, rows, **settings)
    # Every second row expects what the model says; the others something else after some letters.
    expected = [
        text if n % 2 else text[: n // 2] + "\N{SNOWMAN}" + text for n, text in enumerate(full)
    ]
    scored = generate_answers(model, tokenizer, rows, expected=expected, **settings)
    for n in range(8):
        assert (scored[n] == expected[n]) == (full[n] == expected[n]) == bool(n % 2)
        assert scored[n] == full[n] if n % 2 else len(scored[n]) < len(full[n])


def test_each_row_needs_its_expected_answer(model, tokenizer):
    with pytest.raises(ValueError, match="1 expected answers for 2 rows"):
        generate_answers(model, tokenizer, ROWS, max_new_tokens=2, expected=["hi"])
