"""Numbers in written texts: which a reader takes for facts, and whether they are a given value."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

ROUND = 3  # zeros at the end from which a whole number is taken for a rounded one
SMALL = 12  # whole numbers up to here that measure nothing are words: "3 heads", "2 rows"
UNIT = {"percent": 0.01, "%": 0.01, "thousand": 1e3, "K": 1e3, "million": 1e6, "billion": 1e9}
MEASURES = r"times|×|x|hours?|h|minutes?|seconds?|ms|s|[kMG]i?B|bytes?|points?|epochs?|parameters?"
NUMBER = re.compile(
    r"(?<![\w.\-/,^])(?P<sign>[-−]?)(?P<digits>\d{1,3}(?:,\d{3})+|\d+)(?:\.(?P<part>\d+))?"
    r"(?:e(?P<power>-?\d+))?(?:\s?(?P<unit>%|percent\b|thousand\b|K\b|million\b|billion\b))?"
    rf"(?P<measure>\s(?:{MEASURES})\b)?(?![\w]|-\w)"
)
SHARED = re.compile(r"(?:(?:,|,? and|,? or| to) -?\d[\d.]*)+\s?%")  # "82.08, 83.85 and 83.94 %"
LABELS = (
    "app|appendix|batch|bit|blocks?|card|cells?|chapter|column|eqs?|equations?|exercises?|field|"
    "fig|figures?|head|hints?|issues?|layers?|lessons?|number|place|positions?|prompt|question|"
    "rank|requests?|rows?|sections?|seeds?|slot|step|tables?|token|version"
)
NAMED = re.compile(  # a label: "lesson 03", "Tables 4, 5 and 6", "equations 2 to 5"
    rf"\b(?:{LABELS})\.?\s\d[\d.]*(?:(?:,|,? and| to| or|-|–)\s?\d[\d.]*(?!\s?%))*\b", re.I
)
VERSION = r"\b(?:PEFT|transformers|torch|Python|CUDA)\s[\d.]*\d|\b\d+\.\d+\.\d+\b"
EXERCISE = r"\b(?:in|from|of|see|since|your|and|to) \d{1,2}\.\d(?=[\s,.;:)])(?!\s?%)"
BLOCKS = [  # what is no sentence
    re.compile(r"^(```+|~~~+).*?^\1[ \t]*$", re.M | re.S),  # code
    re.compile(r"\$\$.*?\$\$|\$[^$\n]+\$|`(?:[^`\n]|\n(?!\n))+`", re.S),
    re.compile(r"<[^>]+>|\]\([^)]*\)|https?://\S+"),
    re.compile(r"^\s*\d+\.\s", re.M),  # the number of a list's item
    re.compile(r"^\*[^*\n]*\b\d+ minutes[^*]*\*", re.M),  # the time on a card
]
ARXIV_OR_YEAR = r"\b\d{4}\.\d{5}\b|\b(?:19|20)\d\d\b(?!\s?%)"
NAMES = [NAMED, *map(re.compile, (ARXIV_OR_YEAR, VERSION, EXERCISE))]
PLAIN = re.compile(r"(?<![\w.])-?(?:\d{1,3}(?:,\d{3})+|\d[\d_]*)(?:\.\d+)?(?:e[-+]?\d+)?\s?%?")
PARTS = re.compile(r"\n\s*\n|\n(?=\s*[|*\->#])|(?<=[.!?])\s+(?=[A-Z*(\"'`])")


@dataclass(frozen=True)
class Quantity:
    """A number as it is written, its value, and half of its last digit."""

    text: str
    value: float
    half: float
    digits: int  # significant ones
    unit: str

    def is_one_of(self, values: Iterable[float]) -> bool:
        """Whether one of the values is written so when it is rounded."""
        return any(abs(value - self.value) <= self.half * 1.0001 for value in values)


def sentences(text: str) -> list[str]:
    """Sentences, list items and table rows of Markdown, without code, formulas and addresses."""
    for pattern in BLOCKS:
        text = pattern.sub(" · ", text)
    return [" ".join(part.split()) for part in PARTS.split(text) if part.strip()]


def quantities(sentence: str) -> Iterator[Quantity]:
    """The numbers of a sentence that say how much; no labels, years and small counts."""
    for pattern in NAMES:
        sentence = pattern.sub(" ", sentence)
    for found in NUMBER.finditer(sentence):
        whole, part = found["digits"].replace(",", ""), found["part"] or ""
        unit = found["unit"] or ("%" if SHARED.match(sentence, found.end()) else "")
        if not (part or unit or found["measure"] or found["power"] or int(whole) > SMALL):
            continue
        scale = UNIT.get(unit, 1) * 10 ** int(found["power"] or 0)
        value = float(f"{whole}.{part or 0}") * scale
        zeros = len(whole) - len(whole.rstrip("0"))
        half = 0.5 * 10 ** (-len(part) if part else zeros * (zeros >= ROUND)) * scale
        digits = len((whole + part).strip("0"))
        value = -value if found["sign"] else value
        yield Quantity(" ".join(found[0].split()), value, half, digits, unit)


def values_in(text: str) -> list[float]:
    """All numbers in an output, a program or a JSON file, and each percentage as a share."""
    return [_value(number) for number in PLAIN.findall(text)]


def _value(number: str) -> float:
    plain = re.sub(r"[,_%\s]", "", number)
    return float(plain) * (0.01 if "%" in number else 1)
