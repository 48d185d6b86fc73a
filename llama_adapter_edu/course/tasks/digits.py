"""scikit-learn's handwritten digits, with questions about them.

    picture (8 x 8), question  ->  one word

The 1,797 pictures come with scikit-learn. They are split by picture. Some pairs of a kind of
question and a digit never occur in training, in no picture: `HELD_OUT`.

Shapes: b batch, n pictures, y and x a picture's rows and columns, s token positions.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from llama_adapter_edu.data.batches import collate
from llama_adapter_edu.data.encoding import IGNORE_INDEX

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
QUESTIONS = {
    "digit": "What digit is in the picture?",
    "parity": "Is the digit even or odd?",
    "after": "Which number comes after it?",
}
HELD_OUT = frozenset({("parity", 4), ("parity", 7), ("after", 3), ("after", 8)})
TEST_PICTURES = 360


@dataclass(frozen=True)
class Question:
    """A question of one kind about picture number `picture` of its split."""

    picture: int
    kind: str
    text: str
    answer: str


def digit_pictures(split: Literal["train", "test"]) -> tuple[Float[Tensor, "n y x"], list[int]]:
    """Pictures with numbers from 0 (paper) to 1 (ink), and the digit that each shows.

    The same split on every machine; each digit has its share in both halves.

    Raises:
        ValueError: unknown split.
        ImportError: scikit-learn is missing; the message says how to install it.
    """
    if split not in ("train", "test"):
        raise ValueError(f'split is {split!r}, expected "train" or "test".')
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install scikit-learn") from error
    bunch = load_digits()
    train, test, train_labels, test_labels = train_test_split(
        bunch.images / 16,
        bunch.target,
        test_size=TEST_PICTURES,
        stratify=bunch.target,
        random_state=0,
    )
    images, labels = (train, train_labels) if split == "train" else (test, test_labels)
    return torch.tensor(images, dtype=torch.float32), labels.tolist()


def answer_to(kind: str, digit: int) -> str:
    """The right word.

    Raises:
        ValueError: unknown kind of question.
    """
    if kind == "digit":
        return NUMBERS[digit]
    if kind == "parity":
        return "odd" if digit % 2 else "even"
    if kind == "after":
        return NUMBERS[digit + 1]
    raise ValueError(f"kind is {kind!r}, expected one of {list(QUESTIONS)}.")


def questions_about(digits: Sequence[int], *, held_out: bool = False) -> list[Question]:
    """Every question about every picture: those of the training, or those held out of it."""
    return [
        Question(picture, kind, text, answer_to(kind, digit))
        for picture, digit in enumerate(digits)
        for kind, text in QUESTIONS.items()
        if ((kind, digit) in HELD_OUT) == held_out
    ]


def encode_question(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a question. A short template: what is short trains fast on a CPU."""
    return tokenizer(f"Question: {text} Answer:")["input_ids"]


def question_batch(
    questions: Sequence[Question],
    images: Float[Tensor, "n y x"] | None,
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Tensor]:
    """What `model(**batch)` is trained on: `data.collate`'s tensors, and `images` (b y x) if given.

    The answer is one word and the closing token.
    """
    rows = []
    for question in questions:
        asked = encode_question(tokenizer, question.text)
        answer = tokenizer(" " + question.answer, add_special_tokens=False)["input_ids"]
        answer.append(tokenizer.eos_token_id)
        rows.append({"input_ids": asked + answer, "labels": [IGNORE_INDEX] * len(asked) + answer})
    batch = collate(rows, tokenizer.pad_token_id)
    if images is not None:
        batch["images"] = images[[question.picture for question in questions]]
    return batch


def shuffled_batches(questions: Sequence[Question], size: int, seed: int) -> Iterator[list]:
    """Batches without end: all questions in a new order, again and again."""
    rng = random.Random(seed)
    while True:
        order = rng.sample(questions, len(questions))
        yield from (order[i : i + size] for i in range(0, len(order) - size + 1, size))


def accuracy(questions: Sequence[Question], words: Sequence[str]) -> dict[str, float]:
    """Share of right words (0 to 1) for each kind of question."""
    right: dict[str, list[bool]] = {}
    for question, word in zip(questions, words, strict=True):
        right.setdefault(question.kind, []).append(word == question.answer)
    return {kind: sum(found) / len(found) for kind, found in right.items()}
