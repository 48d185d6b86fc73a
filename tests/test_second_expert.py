"""Telegrams: the rows, the splits, and the measure of style."""

import pytest

from llama_adapter_edu.course.tasks.home_commands import generate
from llama_adapter_edu.course.tasks.telegrams import (
    ADDRESSEES,
    PHRASINGS,
    WISHES,
    WORDS,
    is_telegram,
    style_score,
    telegram,
    telegrams,
)

SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("split", SPLITS)
def test_every_expected_answer_has_the_style_and_every_instruction_is_new(split):
    rows = telegrams(split)
    assert style_score(rows["output"][:]) == 1.0
    assert len(set(rows["instruction"][:])) == len(rows)
    assert style_score(rows["instruction"][:]) == 0.0


@pytest.mark.parametrize("parts", [ADDRESSEES, WISHES, PHRASINGS])
def test_the_splits_share_nothing(parts):
    used = [{repr(item) for item in parts[split]} for split in SPLITS]
    assert not used[0] & used[1] and not used[0] & used[2] and not used[1] & used[2]


@pytest.mark.parametrize("kind", WORDS["train"])
def test_the_splits_share_no_thing_no_person_no_fact_and_no_plan(kind):
    used = [set(WORDS[split][kind].split(", ")) for split in SPLITS]
    assert not used[0] & used[1] and not used[0] & used[2] and not used[1] & used[2]


def test_no_test_answer_occurs_in_training():
    trained = set(telegrams("train")["output"][:])
    assert not trained & set(telegrams("test")["output"][:])


def test_rows_are_the_same_each_time_and_a_start_of_more_rows():
    assert telegrams("train", 5, seed=3)[:] == telegrams("train", 9, seed=3).select(range(5))[:]
    assert telegrams("train", 5, seed=3)[:] != telegrams("train", 5, seed=4)[:]


@pytest.mark.parametrize(("split", "n"), [("dev", None), ("test", 0), ("test", 10**6)])
def test_what_there_is_not(split, n):
    with pytest.raises(ValueError, match=r"Unknown split|has \d+ rows"):
        telegrams(split, n)


def test_a_telegram_by_hand():
    said = ["the ferry is cancelled because of fog", "I will stay at the old inn"]
    assert telegram(said) == "ferry cancelled because of fog STOP stay at old inn STOP"


@pytest.mark.parametrize(
    "text", ["Paris STOP", "train 3 hours late STOP", " A1 STOP B STOP c STOP ", "DO NOT WAIT STOP"]
)
def test_the_style(text):
    assert is_telegram(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Paris stop", "STOP in small letters"),
        ("PARIS", "no STOP"),
        ("PARIS STOP FRANCE", "does not end in STOP"),
        ("STOP", "an empty sentence"),
        ("PARIS STOP STOP", "an empty sentence"),
        ("A STOP", "a small word"),
        ("WE COME STOP", "a small word"),
        ("PARIS, FRANCE STOP", "another mark"),
        ("PARIS STOP.", "another mark"),
        ("B STOP C STOP D STOP E STOP", "four sentences"),
        ("ONE TWO THREE FOUR FIVE SIX SEVEN EIGHT NINE TEN ELEVEN STOP", "too long"),
        ("", "nothing"),
        ("NONSTOP", "STOP is not a word of its own"),
        ("PARIS\nSTOP", "a new line"),
    ],
)
def test_not_the_style(text, why):
    assert not is_telegram(text), why


def test_the_other_expert_does_not_have_it():
    assert style_score([row["output"] for row in generate("test", 50)]) == 0.0


def test_the_score_is_a_share():
    assert style_score(["PARIS STOP", "Paris"]) == 0.5
    with pytest.raises(ValueError, match="no texts"):
        style_score([])
