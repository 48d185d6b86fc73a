"""The prompt microscope in Chromium, on a small model: by pointer, by keyboard, for axe."""

import re

import pytest
import torch
from gates import open_gates
from playwright.sync_api import expect

from browser import pages
from browser.test_site import DESK, PHONE, serious_findings
from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, load_llama
from llama_adapter_edu.course import figures


@pytest.fixture(scope="module")
def looked_at(small_llama_folder):
    """The figure, and the reads (l h s p) that it should show."""
    model, tokenizer = load_llama(str(small_llama_folder))
    torch.manual_seed(0)
    add_adaption_prompts(model, AdaptionPromptConfig(adapter_len=4, adapter_layers=2))
    open_gates(model)
    ids = tokenizer("Dim the upstairs lights", return_tensors="pt").input_ids
    return figures.microscope(model, tokenizer, ids), figures.prompt_reads(model, ids)[1]


@pytest.fixture
def scope(chromium, looked_at):
    with pages.shown(chromium, looked_at[0].text, viewport=DESK) as (page, troubles):
        yield page
        assert troubles == []


def listed(page) -> list[tuple[int, int, int, float]]:
    """The sorted list: layer, head, prompt, read."""
    texts = page.locator("[data-list] > span").all_inner_texts()
    rows = zip(texts[::2], texts[1::2], strict=True)
    return [(*map(int, re.findall(r"\d+", a)), float(b.replace("−", "-"))) for a, b in rows]


def token(page, index: int):
    return page.locator("button.token").nth(index)


@pytest.mark.parametrize("index", [0, 2])
def test_a_token_that_is_pointed_at_lists_its_strongest_reads_first(scope, looked_at, index):
    _, reads = looked_at
    token(scope, index).hover()
    found = listed(scope)
    strongest = reads[:, :, index].abs().flatten().sort(descending=True).values[: len(found)]
    assert len(found) == 12
    for (layer, head, prompt, read), size in zip(found, strongest.tolist(), strict=True):
        assert read == pytest.approx(float(reads[layer, head, index, prompt]), abs=3e-3)
        assert abs(read) == pytest.approx(size, abs=3e-3)


def test_tab_goes_from_token_to_token_and_the_status_speaks(scope):
    for index in range(3):
        scope.keyboard.press("Tab")
        expect(token(scope, index)).to_have_attribute("aria-pressed", "true")
        layer, head, prompt, _ = listed(scope)[0]
        words = f"prompt {prompt}, in layer {layer}, head {head}."
        expect(scope.get_by_role("status")).to_contain_text(words)
    assert scope.locator("[aria-pressed=true]").count() == 1


def test_one_head_alone(scope, looked_at):
    _, reads = looked_at
    scope.get_by_label("Head:").select_option(label="3")
    found = listed(scope)
    assert {head for _, head, _, _ in found} == {3}
    assert len(found) == 8
    cells = scope.locator(".cells").count(), scope.locator(".cells > .bar").count()
    assert cells == (2, 8)
    # The topmost layer is above; orange is a read below 0.
    minus = scope.locator(".cells > .bar").evaluate_all("x => x.map(y => y.matches('.minus'))")
    expected = (reads[:, 3, -1] < 0).flip(0).flatten().tolist()
    assert minus == expected


@pytest.mark.parametrize("screen", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious_and_it_fits(chromium, looked_at, dark, screen):
    text = (pages.DARK if dark else "") + looked_at[0].text
    with pages.shown(chromium, text, viewport=screen) as (page, _):
        assert serious_findings(page) == []
        assert page.evaluate("() => document.documentElement.scrollWidth") <= screen["width"]
