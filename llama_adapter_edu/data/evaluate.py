"""Answers of a model, and how many are right to the letter."""

import copy
import inspect
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    Cache,
    DynamicCache,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)

from llama_adapter_edu.data.chats import prompt_ids
from llama_adapter_edu.data.encoding import IGNORE_INDEX, encode, encode_prompt

Rows = Iterable[Mapping[str, Any]]

_one_at_a_time = threading.Lock()  # several threads may ask one model


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Rows,
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    progress: bool = False,
    expected: Sequence[str] | None = None,
    share_start: bool = False,
) -> list[str]:
    """Greedy answers to the instructions of a dataset, in its order; of a chat, its last answer.

    They are greedy whatever the model's `generation_config` says about sampling and penalties. Of
    it only the tokens that end an answer count; the token that rows are trained to end with ends
    it, too. Prompts of similar length share a batch, padded on the left, so that each answer is the
    one the row would get alone.

    Args:
        max_new_tokens: longer answers are cut.
        expected: if you only want to know which answers are right: the right one of each row. An
            answer is cut as soon as it differs, which saves most of the time where many are wrong.
        share_start: compute the tokens with which all prompts begin, as a system prompt, once and
            not for each row. The model must take a cache, and one adapter act for all rows.

    Raises:
        ValueError: another number of expected answers than of rows.
    """
    prompts = [_prompt(tokenizer, row) for row in dataset]
    if expected is not None and len(expected) != len(prompts):
        raise ValueError(f"{len(expected)} expected answers for {len(prompts)} rows.")
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=ending_tokens(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
    )
    opening = _opening(tokenizer)
    n_shared = _common_start(prompts) if share_start else 0
    shared = torch.tensor([prompts[0][:n_shared] if prompts else []], device=model.device).long()
    kept = _cache_of(model, shared) if n_shared else {}
    answers = [""] * len(prompts)
    firsts = range(0, len(order), batch_size)
    for first in tqdm(firsts, desc="answering", unit="batch", disable=not progress):
        rows = order[first : first + batch_size]
        own = {"input_ids": [prompts[row][n_shared:] for row in rows]}
        own = tokenizer.pad(own, padding_side="left", return_tensors="pt").to(model.device)
        begun = shared.expand(len(rows), -1)
        pairs = {"input_ids": begun, "attention_mask": torch.ones_like(begun)}
        batch = {name: torch.cat([start, own[name]], dim=1) for name, start in pairs.items()}
        cache = copy.deepcopy(kept)
        for of_one_row in cache.values():
            of_one_row.batch_repeat_interleave(len(rows))
        n_read, stop = batch["input_ids"].shape[1], []
        if expected is not None:
            stop = [_Wrong(tokenizer, n_read, [expected[row] for row in rows], opening)]
        with torch.no_grad(), _settings(model, greedy):
            ids = model.generate(**batch, **cache, stopping_criteria=stop)
        texts = tokenizer.batch_decode(ids[:, n_read:], skip_special_tokens=True)
        for row, text in zip(rows, texts, strict=True):
            answers[row] = text.strip().removeprefix(opening).strip()
    return answers


def _common_start(prompts: Sequence[Sequence[int]]) -> int:
    """With how many equal tokens all prompts begin; one more of each is its own."""
    most, n = min(map(len, prompts), default=1) - 1, 0
    while n < most and len({prompt[n] for prompt in prompts}) == 1:
        n += 1
    return n


@torch.no_grad()
def _cache_of(model: PreTrainedModel, ids: Int[Tensor, "1 s"]) -> dict[str, Cache]:
    """What the model keeps of these tokens, by the name under which it takes that."""
    names = inspect.signature(model.forward).parameters
    name = "cache" if "cache" in names else "past_key_values"  # so it was called before 5.24
    cache = {name: DynamicCache(config=model.config)}
    model(input_ids=ids, use_cache=True, logits_to_keep=1, **cache)
    return cache


class _Wrong(StoppingCriteria):
    """Ends the answers of a batch that can no longer become the expected ones.

    Spaces are not compared, nor a letter of which only a part has been written.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, n_read: int, expected: list[str], opening: str
    ) -> None:
        self.tokenizer, self.n_read = tokenizer, n_read
        self.right = [(_letters(text), _letters(opening + text)) for text in expected]

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs) -> Bool[Tensor, " b"]:
        texts = self.tokenizer.batch_decode(input_ids[:, self.n_read :], skip_special_tokens=True)
        so_far = (_letters(text).rstrip("\N{REPLACEMENT CHARACTER}") for text in texts)
        wrong = [
            not any(text.startswith(begun) for text in right)
            for begun, right in zip(so_far, self.right, strict=True)
        ]
        return torch.tensor(wrong, device=input_ids.device)


def _letters(text: str) -> str:
    return "".join(text.split())


@contextmanager
def _settings(model: PreTrainedModel, settings: GenerationConfig) -> Iterator[None]:
    """Inside, `generate` has these settings alone: it would fill gaps from the model's own."""
    with _one_at_a_time:
        own = model.generation_config
        model.generation_config = settings
        try:
            yield
        finally:
            model.generation_config = own


def ending_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the model's, the tokenizer's, and the chat template's."""
    own = model.generation_config.eos_token_id
    own = own if isinstance(own, list) else [own]
    learnt = encode({"instruction": "x", "output": "x"}, tokenizer, None)["labels"][-1]
    return sorted({*own, tokenizer.eos_token_id, learnt} - {None})


def expected_answers(dataset: Rows) -> list[str]:
    """What the rows say that `generate_answers` should give."""
    return [
        row["messages"][last_answer(row)]["content"] if "messages" in row else row["output"]
        for row in dataset
    ]


def _prompt(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> list[int]:
    if "messages" in row:
        return prompt_ids(tokenizer, row["messages"][: last_answer(row)])
    return encode_prompt(tokenizer, row["instruction"], row.get("input") or "")


def last_answer(row: Mapping[str, Any]) -> int:
    """Which of a chat's turns is the last one of the assistant."""
    roles = [message["role"] for message in row["messages"]]
    return len(roles) - 1 - roles[::-1].index("assistant")


def _opening(tokenizer: PreTrainedTokenizerBase) -> str:
    """What the chat template itself writes in front of each answer, as an empty thought."""
    labels = encode({"instruction": "x", "output": "answer"}, tokenizer, None)["labels"]
    learnt = [label for label in labels if label != IGNORE_INDEX]
    return tokenizer.decode(learnt, skip_special_tokens=True).partition("answer")[0].strip()


def exact_match(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Share of answers (0 to 1) that equal the expected text, spaces at the ends aside.

    Raises:
        ValueError: no answers, or another number of them than expected texts.
    """
    if not answers or len(answers) != len(expected):
        raise ValueError(f"{len(answers)} answers to compare with {len(expected)} expected texts.")
    return sum(a.strip() == e.strip() for a, e in zip(answers, expected, strict=True)) / len(
        answers
    )


def longest_answer(dataset: Rows, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest expected answer, its closing token included: enough to score by."""
    lengths = []
    for row in dataset:
        labels = encode(row, tokenizer, max_length=None)["labels"][::-1]
        lengths.append(labels.index(IGNORE_INDEX))
    return max(lengths)
