"""Telegrams: a second expert, whose style anyone can see and a program can measure.

    "Tell my sister that the night train is three hours late. Also: please keep dinner warm."
    -> NIGHT TRAIN THREE HOURS LATE STOP KEEP DINNER WARM STOP

A telegram is in capitals, has one to three sentences that end in STOP, and none of the small words
that cost money and say nothing. Each message is put together from a topic's news and plans, and
a phrasing. The three splits share no topic, no addressee and no phrasing.
"""

import random
import re
from collections.abc import Sequence
from itertools import product

from datasets import Dataset

from llama_adapter_edu.home_commands import Split

SMALL = "a am an are be been had has have i is it my our please the there was we were will your"
SMALL_WORDS = frozenset(SMALL.split(" "))
MOST_SENTENCES, MOST_WORDS = 3, 10

# Each topic: what happened, then what to do.
TOPICS: dict[Split, list[tuple[str, str]]] = {
    "train": [
        (
            "the night train is three hours late, our train stands still in the snow, "
            "the last train has already left, there is no seat on the morning train",
            "we will arrive on Monday, please keep dinner warm, meet me at the small station, "
            "I am taking the bus instead",
        ),
        (
            "the ferry is cancelled because of fog, the ship reached the harbour at dawn, "
            "my cabin is dry and warm, the captain refuses to sail",
            "I will stay at the old inn, send the trunk by road, we leave again on Tuesday, "
            "please wait at the pier",
        ),
        (
            "the bank has closed for a week, my purse was stolen at the market, "
            "the price of wheat is falling, your cheque has not come",
            "please send twenty pounds, sell the shares today, do not pay the bill yet, "
            "I will write to the bank",
        ),
        (
            "the baby is a healthy girl, grandmother is much better, our cousin has found work, "
            "the twins have lost a tooth",
            "come and see us soon, we will name her Rosa, bring the old photographs, "
            "please tell the neighbours",
        ),
        (
            "the roof is leaking again, the new stove has arrived, a storm broke two windows, "
            "the cellar is full of water",
            "please call the carpenter, we are sleeping in the kitchen, buy four sacks of sand, "
            "I will paint the door myself",
        ),
        (
            "the first night was a great success, our tenor has lost his voice, "
            "all the tickets are sold, the costumes were sent to the wrong town",
            "find another singer by Friday, we will play one more week, please bring flowers, "
            "hang the posters tonight",
        ),
        (
            "the cows are in the corn, the harvest is better than last year, "
            "our best horse is lame, frost has killed the beans",
            "hire two more men, we will sell the calves, lock the gate at night, "
            "please order new seed",
        ),
        (
            "the doctor has seen the boy, the fever is gone, my leg is not broken, "
            "the hospital has no free bed",
            "I may get up tomorrow, send the blue pills, do not worry about me, "
            "we will fetch him on Saturday",
        ),
    ],
    "validation": [
        (
            "the painting is a fake, the thief was caught in Vienna",
            "hide the keys, I will call the police",
        ),
        (
            "our team has won the cup, the goalkeeper is ill",
            "please reserve a table, we are walking home",
        ),
    ],
    "test": [
        (
            "the pass is closed by snow, we have reached the summit, "
            "our guide is a careful woman, the hut has no wood left",
            "we will turn back at noon, please send warm socks, follow the red marks, "
            "I am waiting in the valley",
        ),
        (
            "the exam was easier than expected, the teacher has moved away, "
            "my essay won a prize, the school is shut for repairs",
            "we will celebrate on Sunday, please return the atlas, ask for the second list, "
            "I am learning Greek now",
        ),
        (
            "the balloon landed in a lake, our pilot is safe, the engine was out of oil, "
            "the flight to Lisbon is full",
            "we will fly at sunrise, bring a long rope, please feed the dog, "
            "I am looking for a mechanic",
        ),
    ],
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
        "Tell {who} that {news}. Also: {plan}.",
        "Let {who} know: {news}, and {plan}.",
        "Write to {who} that {news}. Then add: {plan}.",
        "For {who}: {news}; {plan}.",
        "Could you tell {who} that {news}? And say: {plan}.",
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
        split: "train", "validation" or "test". No two share a topic, an addressee or a phrasing.
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
    rows = _all_rows(split)
    if n is not None and not 1 <= n <= len(rows):
        raise ValueError(
            f"The {split} split of telegrams has {len(rows)} rows; n={n} was asked for. "
            f"Choose n from 1 to {len(rows)}, or leave it out to get all."
        )
    random.Random(seed).shuffle(rows)
    return Dataset.from_list(rows[:n])


def telegram(sentences: Sequence[str]) -> str:
    """The sentences as a telegram: small words out, capitals, STOP after each."""
    kept = ([w for w in text.split() if w.lower() not in SMALL_WORDS] for text in sentences)
    return " ".join(f"{' '.join(words)} STOP".upper() for words in kept)


def is_telegram(text: str) -> bool:
    """Whether a text has the style: capitals, one to three sentences of at most ten words that all
    end in STOP, no other marks, no small words."""
    if not re.fullmatch(r"([A-Z0-9]+ )+STOP", text.strip()):
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


def _all_rows(split: Split) -> list[dict[str, str]]:
    rows = []
    for phrasing, who, (news, plans) in product(PHRASINGS[split], ADDRESSEES[split], TOPICS[split]):
        parts = {"news": news.split(", "), "plan": plans.split(", "), "wish": WISHES[split]}
        used = [name for name in parts if f"{{{name}}}" in phrasing]
        for chosen in product(*(parts[name] for name in used)):
            said = phrasing.format(who=who, **dict(zip(used, chosen, strict=True)))
            instruction = said[0].upper() + said[1:]
            rows.append({"instruction": instruction, "input": "", "output": telegram(chosen)})
    return rows
