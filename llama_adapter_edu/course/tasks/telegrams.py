"""Telegrams: a second expert, whose style anyone can see and a program can measure.

    "Tell my sister that the night train is three hours late. Also: please keep dinner warm."
    -> night train three hours late STOP keep dinner warm STOP

A telegram has one to three sentences that end in STOP, no other marks, and none of the small words
that cost money and say nothing. Each message is put together from a thing or a person, what
happened to it, a plan, and a phrasing. The three splits share none of these.
"""

import random
import re
from collections.abc import Sequence
from itertools import product

from datasets import Dataset

from llama_adapter_edu.course.tasks.home_commands import Split

SMALL = "a am an are be been had has have i is it my our please the there was we were will your"
SMALL_WORDS = frozenset(SMALL.split(" "))
MOST_SENTENCES, MOST_WORDS = 3, 10

# News: a thing or a person, and what happened to it. Plans: what to do, about a thing.
WORDS: dict[Split, dict[str, str]] = {
    "train": {
        "things": (
            "the night train, our old stove, the piano, my best coat, the harvest, the new "
            "car, your letter, the wedding dress, the ferry, our tent, the brown horse, the"
            " rent, a box of books, the school bus, my camera, the roof, the heavy trunk, "
            "our boat, the front door, the bank cheque, the garden gate, a sack of flour, "
            "the radio, the blue lamp, the cellar, your passport, the kitchen clock, our "
            "bicycle, the violin, the parcel"
        ),
        "facts of things": (
            "is late, has arrived, was stolen, is broken again, was sold on Friday, is "
            "ready, was sent to the wrong town, is still here, was found in the attic, is "
            "too small, needs repair, is covered with snow, was left at the station, is "
            "much better now, cost twenty pounds, fell into the river, is clean, has been "
            "paid, will come by ship, is gone"
        ),
        "people": (
            "grandmother, our cousin, the captain, my neighbour, the twins, Uncle Henry, "
            "the baker, our tenor, the new teacher, your sister, the carpenter, Mrs Hall, "
            "my lawyer, the old farmer, our youngest son, the nurse"
        ),
        "facts of people": (
            "has found work, missed the boat, will marry in June, is waiting at the pier, "
            "was seen in town, has a cold, lost the key, wants more money, is coming home, "
            "asked for you, has moved to Paris, is very happy, will stay two weeks, sends "
            "love, was in hospital, cannot walk yet"
        ),
        "plans": (
            "please send {}, bring {}, do not sell {}, we will pay for {}, look for {} "
            "tonight, I am painting {}, keep {} dry, forget {}, please ask about {}, we "
            "will fetch {} on Monday, buy {} today, hide {} well, I will repair {} myself, "
            "wait for {}"
        ),
    },
    "validation": {
        "things": ("the statue, our sledge, a gold ring"),
        "facts of things": ("is a fake, was caught by customs"),
        "people": ("the goalkeeper, my aunt"),
        "facts of people": ("is ill, has won the cup"),
        "plans": ("I will insure {}, carry {} upstairs"),
    },
    "test": {
        "things": (
            "the balloon, our telescope, the silver spoon, my essay, the mountain hut, the "
            "flight to Lisbon, a crate of wine, the engine, the museum key, the red atlas"
        ),
        "facts of things": (
            "landed in a lake, is full, was shut for repairs, has vanished, is the best of "
            "all, was out of oil, will leave at sunrise, is under the bed"
        ),
        "people": ("the pilot, our guide, Professor Lind, my partner, the mechanic, Cousin Vera"),
        "facts of people": (
            "is safe, has reached the summit, is learning Greek, won a prize, will turn "
            "back at noon, was easy to find"
        ),
        "plans": (
            "please return {}, we will examine {}, I am looking for {}, follow {} quickly, "
            "clean {} before Sunday, do not lend {} to anybody"
        ),
    },
}

ADDRESSEES: dict[Split, list[str]] = {
    "train": ["my sister", "Uncle Paul", "the landlord", "Mrs Baker", "our lawyer", "my parents"],
    "validation": ["my friend", "Captain Hill"],
    "test": ["my brother", "Aunt Clara", "the manager", "Doctor Reed"],
}

WISHES: dict[Split, list[str]] = {
    "train": [
        "love to all",
        "the weather is lovely",
        "a letter follows",
        "thanks for the cake",
    ],
    "validation": ["good luck with the garden", "we are in good spirits"],
    "test": ["greetings from everybody", "give my best to the children", "more news is coming"],
}

PHRASINGS: dict[Split, list[str]] = {
    "train": [
        "Tell {who} that {news}.",
        "Let {who} know that {news}.",
        "Inform {who}: {news}.",
        "I want {who} to hear that {news}.",
        "Please write to {who} because {news}.",
        "A message for {who}: {news}.",
        "Tell {who} that {news}. Also: {plan}.",
        "Let {who} know: {news}, and {plan}.",
        "Write to {who} that {news}. Then add: {plan}.",
        "For {who}: {news}; {plan}.",
        "Could you tell {who} that {news}? And say: {plan}.",
        "{who} should know two things. One: {news}. Two: {plan}.",
        "Write to {who}: {news}. Next: {plan}.",
        "Tell {who} that {news}. Also: {plan}. End with: {wish}.",
        "Inform {who}: {news}, {plan}, and {wish}.",
        "Write to {who} that {news}. Then add: {plan}. And: {wish}.",
    ],
    "validation": [
        "Pass this on to {who}: {news}.",
        "Please explain to {who} that {news}; {plan}.",
    ],
    "test": [
        "Send word to {who} that {news}.",
        "Say to {who}: {news}.",
        "Get a message to {who}, because {news}. Message also: {plan}.",
        "{who} must be told that {news}, and then: {plan}.",
        "A note for {who}. First: {news}. Second: {plan}.",
        "Say to {who}: {news}. Next: {plan}. Last: {wish}.",
    ],
}


def telegrams(split: Split, n: int | None = None, *, seed: int = 0) -> Dataset:
    """Messages in everyday words, and the telegrams to send.

    Args:
        split: "train", "validation" or "test". No two share a sentence, an addressee or a
            phrasing.
        n: number of rows; None gives all of the split. A smaller `n` gives the first rows of
            a larger one.
        seed: the same seed gives the same rows on every machine.

    Returns:
        A dataset with the columns `instruction`, `input` (always empty) and `output`.

    Raises:
        ValueError: unknown split, or `n` below 1 or above the number of rows there are.
    """
    if split not in PHRASINGS:
        raise ValueError(f"Unknown split {split!r}: choose one of {', '.join(PHRASINGS)}.")
    choices = list(product(PHRASINGS[split], ADDRESSEES[split], news(split)))
    if n is not None and not 1 <= n <= len(choices):
        raise ValueError(
            f"The {split} split of telegrams has {len(choices)} rows; n={n} was asked for. "
            f"Choose n from 1 to {len(choices)}, or leave it out to get all."
        )
    rng, things = random.Random(seed), _list(split, "things")
    rng.shuffle(choices)
    rows = []
    for phrasing, who, event in choices[:n]:
        plan = rng.choice(_list(split, "plans")).format(rng.choice(things))
        rows.append(message(phrasing, who, news=event, plan=plan, wish=rng.choice(WISHES[split])))
    return Dataset.from_list(rows)


def news(split: Split) -> list[str]:
    """All that can have happened: a thing or a person, and a fact that fits it."""
    pairs = [
        pair
        for kind in ("things", "people")
        for pair in product(_list(split, kind), _list(split, f"facts of {kind}"))
    ]
    return [" ".join(pair) for pair in pairs]


def message(phrasing: str, who: str, **parts: str) -> dict[str, str]:
    """One row in Alpaca's columns; the telegram holds the parts that the phrasing asks for."""
    said = phrasing.format(who=who, **parts)
    used = [part for name, part in parts.items() if f"{{{name}}}" in phrasing]
    return {
        "instruction": said[0].upper() + said[1:],
        "input": "",
        "output": telegram(used),
    }


def telegram(sentences: Sequence[str]) -> str:
    """The sentences as a telegram: small words out, STOP after each."""
    kept = ([w for w in text.split() if w.lower() not in SMALL_WORDS] for text in sentences)
    return " ".join(f"{' '.join(words)} STOP" for words in kept)


def is_telegram(text: str) -> bool:
    """Whether a text has the style: one to three sentences of at most ten words that all end in
    STOP, no other marks, no small words."""
    if not re.fullmatch(r"([A-Za-z0-9]+ )+STOP", text.strip()):
        return False
    sentences = [part.split() for part in re.split(r"\bSTOP\b", text.strip())[:-1]]
    words = {word.lower() for sentence in sentences for word in sentence}
    lengths = [len(sentence) for sentence in sentences]
    return (
        len(sentences) <= MOST_SENTENCES
        and all(1 <= length <= MOST_WORDS for length in lengths)
        and not words & SMALL_WORDS
    )


def style_score(texts: Sequence[str]) -> float:
    """Share of texts (0 to 1) that have a telegram's style, whatever they say.

    Raises:
        ValueError: no texts.
    """
    if not texts:
        raise ValueError("there are no texts to score.")
    return sum(map(is_telegram, texts)) / len(texts)


def _list(split: Split, name: str) -> list[str]:
    return WORDS[split][name].split(", ")
