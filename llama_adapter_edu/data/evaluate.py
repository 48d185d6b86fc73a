"""Answers of a model, and how many are right to the letter."""

from collections.abc import Sequence

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from llama_adapter_edu.data.encoding import encode_prompt


def generate_answers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    *,
    max_new_tokens: int,
    batch_size: int = 32,
    progress: bool = False,
) -> list[str]:
    """Greedy answers to the instructions of a dataset, in its order.

    Prompts of similar length share a batch, padded on the left, so that each answer is the one the
    row would get alone.
    """
    prompts = [encode_prompt(tokenizer, row["instruction"], row["input"]) for row in dataset]
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    greedy = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    answers = [""] * len(prompts)
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc="answering", unit="batch", disable=not progress):
        rows = order[start : start + batch_size]
        batch = tokenizer.pad(
            {"input_ids": [prompts[row] for row in rows]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        with torch.no_grad():
            ids = model.generate(**batch, generation_config=greedy)
        texts = tokenizer.batch_decode(
            ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
        )
        for row, text in zip(rows, texts, strict=True):
            answers[row] = text.strip()
    return answers


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


def longest_answer(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest expected answer, its closing token included: enough to score by."""
    return 1 + max(len(ids) for ids in tokenizer(dataset["output"][:])["input_ids"])
