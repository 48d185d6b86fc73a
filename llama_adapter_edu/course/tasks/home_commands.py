"""Home commands to JSON: a small task that a Llama cannot do before it is fine-tuned.

    "Make it 80% for the lights of the upstairs office"
    -> {"room": "upstairs office", "device": "lights", "brightness": 80}

Every command is put together from a room, a setting of a device, a value and a phrasing. The three
splits share the settings and nothing else: each has its own words for rooms and its own phrasings.
So a test command names a room whose words were never seen in training, in a sentence whose pattern
was never seen in training.
"""

import json
import random
from collections.abc import Sequence
from itertools import product
from typing import Literal, NamedTuple

from datasets import Dataset

Split = Literal["train", "validation", "test"]


class Setting(NamedTuple):
    """One thing a command can change. `device` and `key` stand in the answer as they are."""

    device: str
    key: str
    kind: Literal["number", "switch"]
    values: Sequence[int | str]
    spoken: str = "{}"


SETTINGS = (
    Setting("lights", "brightness", "number", range(101), "{}%"),
    Setting("lights", "power", "switch", ("on", "off")),
    Setting("speaker", "volume", "number", range(101), "{}%"),
    Setting("speaker", "power", "switch", ("on", "off")),
    Setting("heating", "temperature", "number", range(10, 31), "{} degrees"),
    Setting("heating", "power", "switch", ("on", "off")),
    Setting("blinds", "height", "number", range(101), "{}%"),
)

# A room is a word of the first text and a word of the second: "downstairs kitchen". The words are
# everyday ones: to respell rare words from their tokens is a skill of its own.
ROOM_WORDS: dict[Split, tuple[str, str]] = {
    "train": (
        "front big old blue red white brown orange family north eastern left upper main quiet dark "
        "long wide tiny square private empty warm tall hidden winter downstairs riverside "
        "soundproof tiled panelled roomy cosy children's teacher's brother's boys' students'",
        "kitchen bedroom library studio workshop garage nursery gym attic pantry balcony lobby "
        "closet classroom chapel porch cabin cottage hallway cellar ballroom washroom storeroom "
        "patio",
    ),
    "validation": (
        "back green east round shared baby's",
        "study terrace laundry loft shed",
    ),
    "test": (
        "upstairs small new yellow grey west lower inner parents' modern secret summer",
        "office bathroom basement gallery greenhouse theatre entrance playroom cloakroom corridor",
    ),
}

PHRASINGS: dict[Split, dict[str, list[str]]] = {
    "train": {
        "number": [
            "Set the {device} in the {room} to {value}",
            "Please put the {device} of the {room} at {value}",
            "{device} in the {room} to {value}, please",
            "I want {value} on the {room} {device}",
            "Could you bring the {room} {device} to {value}?",
            "In the {room}, change the {device} to {value}",
            "Adjust the {device} to {value} in the {room}",
            "The {room} {device} should be at {value}",
            "Can you get the {device} in the {room} to {value}?",
            "For the {room}: {device} at {value}",
            "I need the {device} of the {room} at {value}",
            "Give me {value} for the {device} in the {room}",
            "Would you choose {value} on the {device} of the {room}?",
            "{value} for the {room} {device}, please",
            "Let the {device} in the {room} go to {value}",
            "We are waiting for {value} on the {room} {device}",
            "Leave the {device} in the {room} at {value}",
            "Only {value} for the {device} of the {room} now",
            "Have the {room} {device} at {value}",
            "{device} of the {room}: {value}",
        ],
        "switch": [
            "Turn {value} the {device} in the {room}",
            "Please switch the {room} {device} {value}",
            "Turn the {device} of the {room} {value}, please",
            "Could you put the {room} {device} {value}?",
            "I want the {device} in the {room} {value}",
            "The {device} in the {room} should be {value}",
            "In the {room}, turn the {device} {value}",
            "{device} {value} in the {room}",
            "Can you get the {device} of the {room} {value}?",
            "For the {room}: {device} {value}",
            "Switch {value} the {device} of the {room} for me",
            "I need the {room} {device} {value}",
            "Would you turn {value} the {room} {device}?",
            "Keep the {device} of the {room} {value}",
            "Let the {device} in the {room} be {value}",
            "We are waiting for the {room} {device} to go {value}",
            "Time to turn the {device} in the {room} {value}",
            "{value} with the {device} in the {room}",
            "Have the {room} {device} {value}",
            "{device} of the {room}: {value}",
        ],
    },
    "validation": {
        "number": [
            "Move the {device} of the {room} to {value}",
            "Please have {value} on the {device} in the {room}",
            "May we get the {room} {device} to {value}?",
            "It is time for {value} on the {room} {device}",
        ],
        "switch": [
            "Get the {device} of the {room} {value}",
            "May we get the {room} {device} {value}?",
            "Just put the {device} of the {room} {value}",
            "It is good to have the {device} in the {room} {value}",
        ],
    },
    "test": {
        "number": [
            "Make it {value} for the {device} of the {room}",
            "Could the {device} in the {room} be at {value}, please?",
            "I would like {value} from the {device} in the {room}",
            "Will you change the {device} of the {room} to {value}?",
            "The {device} of the {room} must go to {value}",
            "How about {value} on the {device} in the {room}?",
            "Turn the {device} of the {room} to {value}",
            "Kindly keep the {room} {device} at {value}",
        ],
        "switch": [
            "Flip the {device} {value} in the {room}",
            "Power {value} the {room} {device}",
            "Could the {device} of the {room} be {value}, please?",
            "I would like the {device} {value} in the {room}",
            "Make the {room} {device} go {value}",
            "How about having the {device} in the {room} {value}?",
            "The {device} of the {room} must go {value}",
            "Kindly leave the {room} {device} {value}",
        ],
    },
}


def rooms(split: Split) -> list[str]:
    """All rooms of a split, as they stand in the answers."""
    first, second = (words.split() for words in ROOM_WORDS[split])
    return [" ".join(words) for words in product(first, second)]


def command(room: str, setting: Setting, phrasing: str, value: int | str) -> dict[str, str]:
    """One row in Alpaca's columns: the sentence, no extra input, and the JSON it stands for."""
    said = setting.spoken.format(value)
    sentence = phrasing.format(room=room, device=setting.device, value=said)
    answer = {"room": room, "device": setting.device, setting.key: value}
    return {
        "instruction": sentence[0].upper() + sentence[1:],
        "input": "",
        "output": json.dumps(answer),
    }


def generate(split: Split, n: int | None = None, seed: int = 0) -> list[dict[str, str]]:
    """The first `n` commands of a split, or all; see `home_commands`."""
    if split not in PHRASINGS:
        raise ValueError(f"Unknown split {split!r}: choose one of {', '.join(PHRASINGS)}.")
    choices = [
        (room, setting, phrasing)
        for room in rooms(split)
        for setting in SETTINGS
        for phrasing in PHRASINGS[split][setting.kind]
    ]
    if n is not None and not 1 <= n <= len(choices):
        raise ValueError(
            f"The {split} split of home commands has {len(choices)} rows; n={n} was asked for. "
            f"Choose n from 1 to {len(choices)}, or leave it out to get all."
        )
    rng = random.Random(seed)
    rng.shuffle(choices)
    return [command(*choice, rng.choice(choice[1].values)) for choice in choices[:n]]


def home_commands(split: Split, n: int | None = None, *, seed: int = 0) -> Dataset:
    """Commands for a home and the JSON they stand for.

    Args:
        split: "train", "validation" or "test". No two splits share a room or a phrasing.
        n: number of rows; None gives all rows of the split. A smaller `n` gives the first rows of
            a larger one.
        seed: the same seed gives the same rows on every machine.

    Returns:
        A dataset with the columns `instruction`, `input` (always empty) and `output`. All
        instructions are different.

    Raises:
        ValueError: unknown split, or `n` below 1 or above the number of rows there are.
    """
    return Dataset.from_list(generate(split, n, seed))
