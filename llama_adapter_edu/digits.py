"""scikit-learn's handwritten digits with questions about them, and a training loop for both.

    picture (8 x 8), question  ->  one word

The 1,797 pictures come with scikit-learn. They are split by picture. Some pairs of a kind of
question and a digit never occur in training, in no picture: `HELD_OUT`.

Shapes: b batch, n pictures, y and x a picture's rows and columns, s token positions.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from llama_adapter_edu.data import IGNORE_INDEX, collate
from llama_adapter_edu.finetune import TrainingConfig, answer_loss, learning_rate_factor

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
    images: Float[Tensor, "n y x"],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Tensor]:
    """What `model(**batch)` is trained on: `data.collate`'s tensors, and `images` (b y x).

    The answer is one word and the closing token.
    """
    rows = []
    for question in questions:
        asked = encode_question(tokenizer, question.text)
        answer = tokenizer(" " + question.answer, add_special_tokens=False)["input_ids"]
        answer.append(tokenizer.eos_token_id)
        rows.append({"input_ids": asked + answer, "labels": [IGNORE_INDEX] * len(asked) + answer})
    batch = collate(rows, tokenizer.pad_token_id)
    return batch | {"images": images[[question.picture for question in questions]]}


def shuffled_batches(questions: Sequence[Question], size: int, seed: int) -> Iterator[list]:
    """Batches without end: all questions in a new order, again and again."""
    rng = random.Random(seed)
    while True:
        order = rng.sample(questions, len(questions))
        yield from (order[i : i + size] for i in range(0, len(order) - size + 1, size))


def train_digits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainingConfig,
    *,
    vision_learning_rate: float = 3e-3,
) -> list[float]:
    """Train prompts, gates and the image encoder together, in place.

    Args:
        model: with `add_adaption_prompts` and `add_vision`.
        config: `learning_rate` is that of prompts and gates.
        vision_learning_rate: of encoder and projection.

    Returns:
        the loss of each step.
    """
    images, digits = digit_pictures("train")
    of_vision = [p for p in model.vision.parameters() if p.requires_grad]
    ids = {id(p) for p in of_vision}
    of_prompts = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    groups = [
        {"params": of_prompts, "lr": config.learning_rate},
        {"params": of_vision, "lr": vision_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, config.steps, config.warmup_steps)
    )
    losses = []
    batches = shuffled_batches(questions_about(digits), config.batch_size, config.seed)
    for questions in islice(batches, config.steps):
        batch = question_batch(questions, images, tokenizer)
        batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
        loss = answer_loss(partial(model, images=batch["images"]), batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(of_prompts + of_vision, config.max_grad_norm)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def answer_words(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    images: Float[Tensor, "n y x"] | None,
    batch_size: int = 120,
) -> list[str]:
    """The word that the model itself would say first, for each question; blind without images."""
    one_word = GenerationConfig(
        do_sample=False, max_new_tokens=1, pad_token_id=tokenizer.pad_token_id
    )
    words = []
    for start in range(0, len(questions), batch_size):
        rows = questions[start : start + batch_size]
        ids = {"input_ids": [encode_question(tokenizer, row.text) for row in rows]}
        batch = tokenizer.pad(ids, padding_side="left", return_tensors="pt").to(model.device)
        if images is not None:
            batch["images"] = images[[row.picture for row in rows]].to(model.device)
        said = model.generate(**batch, generation_config=one_word)
        words += [tokenizer.decode(token).strip() for token in said[:, -1]]
    return words


def accuracy(questions: Sequence[Question], words: Sequence[str]) -> dict[str, float]:
    """Share of right words (0 to 1) for each kind of question."""
    right: dict[str, list[bool]] = {}
    for question, word in zip(questions, words, strict=True):
        right.setdefault(question.kind, []).append(word == question.answer)
    return {kind: sum(found) / len(found) for kind, found in right.items()}
