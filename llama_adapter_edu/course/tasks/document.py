r"""A short document, and questions about it in two phrasings: what a trained cache has to hold.

    "Notes on the house by the lake. The spare key is under the blue pot. ..."
    "Q: Where is the spare key?\nA: The spare key is" -> " under the blue pot."

The `train` questions are what the ways of lesson 10 learn from; the `test` questions ask for the
same facts in other words, which never occur in training.
"""

import random
from typing import Literal, NamedTuple

from torch import Tensor, full, tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

Split = Literal["train", "test"]

TITLE = "Notes on the house by the lake."
# (what the document says, the question of `train`, that of `test`, the answer). A question brings
# the first words of its answer along: what is left to say are the words that matter.
FACTS = (
    ("The spare key is {}.",
     ("Where is the spare key?", "The spare key is"),
     ("I need the spare key. Where do I look?", "You look"), "under the blue pot"),
    ("The boat belongs to {}.",
     ("Whose boat is it?", "The boat belongs to"),
     ("Who owns the boat?", "The owner is"), "Mrs Hall"),
    ("The dog is called {}.",
     ("What is the dog called?", "The dog is called"),
     ("How do I call the dog?", "Its name is"), "Pepper"),
    ("The stove burns {}.",
     ("What does the stove burn?", "The stove burns"),
     ("With what do I heat the stove?", "You heat it with"), "birch wood"),
    ("The rubbish is fetched on {}.",
     ("When is the rubbish fetched?", "The rubbish is fetched on"),
     ("On which day do they take the rubbish?", "They come on"), "Thursday"),
    ("The bread is sold at {}.",
     ("Where is the bread sold?", "The bread is sold at"),
     ("Where can I buy bread?", "You find it at"), "the mill"),
    ("The roof was painted {}.",
     ("Which colour was the roof painted?", "The roof was painted"),
     ("What colour is the roof?", "Its colour is"), "green"),
    ("The well has a depth of {}.",
     ("How deep is the well?", "The well has a depth of"),
     ("I dive in the well. How far down?", "You go down"), "nine metres"),
)  # fmt: skip


class Rows(NamedTuple):
    """Questions with their answers as token ids (b s), padded on the right, and which of the
    positions predict a token of the answer (b s, True or False)."""

    input_ids: Tensor
    attention_mask: Tensor
    predicts: Tensor


def document(seed: int = 0) -> str:
    """The whole text: a title and a sentence for each fact; another seed, another order of them."""
    sentences = [said.format(answer) for said, _, _, answer in FACTS]
    random.Random(seed).shuffle(sentences)
    return " ".join([TITLE, *sentences]) + "\n"


def questions(split: Split) -> list[tuple[str, str]]:
    """(question, answer) for each fact, as the model reads and writes them."""
    column = {"train": 1, "test": 2}[split]
    pairs = [(*fact[column], fact[3]) for fact in FACTS]
    return [(f"Q: {asked}\nA: {begun}", f" {answer}.") for asked, begun, answer in pairs]


def question_rows(tokenizer: PreTrainedTokenizerBase, split: Split) -> Rows:
    """All questions of a split as one batch. The position before a token is what predicts it."""
    ids, predicts = [], []
    for question, answer in questions(split):
        asked, said = (tokenizer(text).input_ids for text in (question, answer))
        ids.append(tensor(asked + said))
        predicts.append(tensor([0] * (len(asked) - 1) + [1] * len(said) + [0]))
    mask = pad_sequence([full((len(row),), 1) for row in ids], batch_first=True)
    padded = pad_sequence(ids, batch_first=True, padding_value=tokenizer.pad_token_id)
    return Rows(padded, mask, pad_sequence(predicts, batch_first=True).bool())
