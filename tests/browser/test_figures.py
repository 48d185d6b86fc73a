"""Figures that move, in Chromium: by keyboard, in notebooks, in frames, without scripts."""

import re
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
from playwright.sync_api import expect

from browser import pages
from browser.jupyter import jupyterlab
from browser.test_site import DESK, PHONE, serious_findings
from llama_adapter_edu.course import figures
from llama_adapter_edu.course.figures.stored_dial import stored_stops

DIAL = figures.gate_dial()
STOPS = stored_stops()["stops"]


def stop(control: str, **which) -> dict:
    return next(s for s in STOPS[control] if which.items() <= s.items())


def loss_shown(place) -> float:
    text = place.get_by_role("status").inner_text()
    return float(re.search(r"loss (\S+) nats", text)[1])


def dial_png() -> str:
    fig, (loss, right) = plt.subplots(2, figsize=(6, 4))
    figures.plot_dial(loss, right)
    return pages.picture(fig)


@pytest.fixture
def dial(chromium):
    with pages.shown(chromium, DIAL.text, viewport=DESK) as (page, troubles):
        yield page
        assert troubles == []


def test_the_dial_starts_at_the_trained_gates_and_shows_what_is_stored(dial):
    assert loss_shown(dial) == stop("all gates", factor=1)["loss"]
    expect(dial.get_by_role("status")).to_contain_text("✓ right")
    expect(dial.get_by_role("status")).to_contain_text(stored_stops()["rows"][0]["output"])


@pytest.mark.parametrize("control", list(STOPS)[:4])
def test_each_slider_goes_through_its_stops_by_keyboard(dial, control):
    slider = dial.get_by_role("slider", name=control)
    slider.focus()
    dial.keyboard.press("Home")
    for expected in STOPS[control]:
        assert loss_shown(dial) == expected["loss"]
        spoken = f"times {expected['factor']:g}".replace("-", "−")
        assert slider.get_attribute("aria-valuetext") == spoken
        dial.keyboard.press("ArrowRight")


def test_one_control_is_turned_at_a_time(dial):
    first, second = (dial.get_by_role("slider", name=name) for name in list(STOPS)[:2])
    first.press("Home")
    second.press("End")
    assert first.get_attribute("aria-valuetext") == "times 1"
    assert loss_shown(dial) == STOPS[list(STOPS)[1]][-1]["loss"]
    dial.get_by_role("button", name="Back to the trained gates").press("Enter")
    assert second.get_attribute("aria-valuetext") == "times 1"
    assert loss_shown(dial) == stop("all gates", factor=1)["loss"]


def test_a_head_is_switched_off_and_on_again(dial):
    layer = dial.get_by_label("Layer:")
    layer.select_option(label="4")
    head = dial.get_by_role("button", name="head 7 off")
    head.press("Space")
    assert head.get_attribute("aria-pressed") == "true"
    assert loss_shown(dial) == stop("single heads", layer=4, head=7)["loss"]
    dial.get_by_role("button", name="head 2 off").press("Enter")
    assert head.get_attribute("aria-pressed") == "false"
    assert loss_shown(dial) == stop("single heads", layer=4, head=2)["loss"]
    layer.select_option(label="29")
    assert loss_shown(dial) == stop("all gates", factor=1)["loss"]
    assert dial.locator("[aria-pressed=true]").count() == 0


def test_another_command_shows_its_own_answer(dial):
    rows = stored_stops()["rows"]
    dial.get_by_label("Command:").select_option(label=rows[3]["instruction"])
    expect(dial.get_by_role("status")).to_contain_text(rows[3]["output"])


def test_everything_is_reached_with_tab_alone_and_focus_is_seen(dial):
    n_controls = dial.locator("button, select, input").count()
    focused = "() => document.querySelector('[data-figure]').shadowRoot.activeElement"
    seen = set()
    for _ in range(n_controls):
        dial.keyboard.press("Tab")
        assert dial.evaluate(f"() => getComputedStyle(({focused})()).outlineStyle") == "solid"
        seen.add(dial.evaluate(f"() => ({focused})().outerHTML"))
    assert len(seen) == n_controls


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing_serious_and_it_fits(chromium, dark, screen):
    text = (pages.DARK if dark else "") + DIAL.text
    with pages.shown(chromium, text, viewport=screen) as (page, _):
        page.get_by_role("slider").first.press("Home")
        assert serious_findings(page) == []
        assert page.evaluate("() => document.documentElement.scrollWidth") <= screen["width"]
        ink = page.locator(".title").evaluate("x => getComputedStyle(x).color")
        assert ink == ("rgb(207, 208, 208)" if dark else "rgb(0, 0, 0)")


@pytest.mark.parametrize("motion", ["reduce", "no-preference"])
def test_nothing_glides_where_less_motion_is_wanted(chromium, motion):
    with pages.shown(chromium, DIAL.text, reduced_motion=motion) as (page, _):
        time = page.locator(".bar").first.evaluate("x => getComputedStyle(x).transitionDuration")
        assert (time == "0s") == (motion == "reduce")


def test_two_copies_on_a_page_are_two_dials(chromium):
    with pages.shown(chromium, DIAL.text + DIAL.text) as (page, troubles):
        expect(page.get_by_role("group", name="The gate dial")).to_have_count(2)
        page.get_by_role("slider", name="all gates").first.press("Home")
        losses = page.get_by_role("status").all_inner_texts()
        assert losses[0] != losses[1]
        assert troubles == []


def test_in_a_frame_as_colabs_the_dial_turns(chromium):
    with pages.shown(chromium, pages.in_a_frame(DIAL.text)) as (page, troubles):
        inside = page.frame_locator("iframe")
        inside.get_by_role("slider", name="all gates").press("Home")
        assert loss_shown(inside) == STOPS["all gates"][0]["loss"]
        assert troubles == []


def test_without_scripts_one_sentence_says_why(chromium):
    with pages.shown(chromium, DIAL.text, java_script_enabled=False) as (page, _):
        expect(page.get_by_text(DIAL.instead)).to_be_visible()


def test_in_a_notebook_that_is_exported_the_dial_turns(chromium, tmp_path):
    path = tmp_path / "dial.ipynb"
    pages.notebook(path, DIAL, dial_png(), "The dial, stop by stop")
    convert = [sys.executable, "-m", "nbconvert", "--to", "html", str(path)]
    subprocess.run(convert, check=True, capture_output=True)
    with chromium.new_context(offline=True) as surroundings:
        page = surroundings.new_page()
        page.goto(path.with_suffix(".html").as_uri())
        page.get_by_role("slider", name="all gates").press("Home")
        assert loss_shown(page) == STOPS["all gates"][0]["loss"]
        assert page.locator(".jp-OutputArea img").is_visible()


def test_in_jupyterlab_the_picture_stands_there_and_the_dial_turns_once_trusted(chromium, tmp_path):
    path = tmp_path / "dial.ipynb"
    pages.notebook(path, DIAL, dial_png(), "The dial, stop by stop")
    with jupyterlab(tmp_path) as address, chromium.new_context() as surroundings:
        page = surroundings.new_page()
        page.set_default_timeout(120_000)
        page.goto(address.format(path=path.name))
        expect(page.locator(".jp-OutputArea img")).to_be_visible(timeout=120_000)
        expect(page.get_by_text(DIAL.instead)).to_be_visible()
        assert page.get_by_role("slider", name="all gates").count() == 0

        trust(page)
        page.get_by_role("slider", name="all gates").press("Home")
        assert loss_shown(page.locator(".jp-Notebook")) == STOPS["all gates"][0]["loss"]
        expect(page.locator(".jp-OutputArea img")).to_be_visible()


def trust(page) -> None:
    """The command palette's Trust Notebook."""
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=120_000)
    page.get_by_role("menuitem", name="View", exact=True).click()
    page.get_by_role("menuitem", name="Activate Command Palette").click()
    page.locator(".lm-CommandPalette-input").fill("trust notebook")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Confirm Trusting").click()
