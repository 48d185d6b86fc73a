"""One token's way, in Chromium: forwards and back, by keyboard, for axe."""

import pytest
from playwright.sync_api import expect

from browser import pages
from browser.test_site import DESK, PHONE, serious_findings
from llama_adapter_edu.course import figures

WAY = figures.token_way()
TITLES = ["A token asks", "It looks at the tokens", "It reads the tokens"]
TITLES += ["It looks at the prompts", "It reads the prompts", "The gate", "The sum", "The output"]


@pytest.fixture
def way(chromium):
    with pages.shown(chromium, WAY.text, viewport=DESK) as (page, troubles):
        yield page
        assert troubles == []


def at(page, place: int) -> None:
    words = f"{place + 1} of {len(TITLES)}: {TITLES[place]}"
    expect(page.get_by_role("status")).to_contain_text(words)


def test_buttons_go_forwards_and_back_and_stop_at_the_ends(way):
    back, forward = (way.get_by_role("button", name=name) for name in ("Back", "Next"))
    back.press("Enter")
    at(way, 0)
    assert back.get_attribute("aria-disabled") == "true"
    for place in range(1, len(TITLES)):
        forward.press("Enter")
        at(way, place)
    forward.press("Space")
    at(way, len(TITLES) - 1)
    assert forward.get_attribute("aria-disabled") == "true"
    for place in range(len(TITLES) - 2, -1, -1):
        back.press("Space")
        at(way, place)


def test_arrow_keys_go_too(way):
    way.get_by_role("button", name="Next").press("ArrowRight")
    way.keyboard.press("ArrowRight")
    at(way, 2)
    way.keyboard.press("ArrowLeft")
    at(way, 1)


def test_each_step_lights_up_its_place_in_the_picture(way):
    expected = ["the last token", "softmax: tokens", "softmax: tokens", "softmax: prompts"]
    expected += ["softmax: prompts", "× tanh(gate)", "+", "output, next token"]
    for words in expected:
        assert way.locator("svg .lit text").all_text_contents() == [words]
        way.get_by_role("button", name="Next").press("Enter")


def test_the_sum_is_shown_with_its_numbers_and_adds_up(way):
    for _ in range(6):
        way.get_by_role("button", name="Next").press("Enter")
    lines = way.get_by_role("status").locator("code").inner_text().replace("−", "-").splitlines()
    assert len(lines) == 4
    for line in lines:
        left, total = line.split(" = ")
        token, product = left.split(" + ")
        opening, prompt = product.split(" × ")
        added = float(opening) * float(prompt)
        assert float(token) + added == pytest.approx(float(total), abs=0.01)


@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious_in_any_step_and_it_fits(chromium, dark, screen):
    text = (pages.DARK if dark else "") + WAY.text
    with pages.shown(chromium, text, viewport=screen) as (page, _):
        for _ in (0, 4, 7):
            assert serious_findings(page) == []
            assert page.evaluate("() => document.documentElement.scrollWidth") <= screen["width"]
            for _ in range(4):
                page.get_by_role("button", name="Next").press("Enter")
