"""The built site (`make site`) as people meet it: every page, in a browser."""

import html.parser
import json
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from browser.conftest import SITE

PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html"))
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
TOO_WIDE = """() => [...document.querySelectorAll("body *")]
    .filter(x => x.getBoundingClientRect().right > innerWidth + 1 && x.getClientRects().length)
    .slice(0, 5).map(x => x.tagName + "." + x.className)"""


class Anatomy(html.parser.HTMLParser):
    """What a page has: anchors, links, headings, pictures."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.links, self.levels, self.pictures, self.lang = set(), [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes) -> None:
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        self.links += [attributes[key] for key in ("href", "src") if attributes.get(key)]
        if tag == "html":
            self.lang = attributes.get("lang")
        elif tag == "img":
            self.pictures.append((attributes.get("alt") or "").strip())
        elif len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            self.levels.append(int(tag[1]))


@cache
def anatomy(page: str) -> Anatomy:
    return Anatomy((SITE / page).read_text(encoding="utf-8"))


@contextmanager
def opened(browser: Browser, address: str, **context) -> Iterator[tuple[Page, list[str]]]:
    """A page and what goes wrong in it: errors of scripts, missing files, foreign hosts."""
    troubles: list[str] = []
    with browser.new_context(**context) as surroundings:
        page = surroundings.new_page()
        page.on("console", lambda m: troubles.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("response", lambda r: troubles.append(f"{r.status} {r.url}") if not r.ok else None)

        def guard(route) -> None:
            if route.request.url.startswith((address, "data:")):
                route.continue_()
            else:
                troubles.append(f"asks another host: {route.request.url}")
                route.abort()

        page.route("**/*", guard)
        yield page, troubles


def test_the_site_is_built():
    assert "lessons/00_start_here.html" in PAGES, "run `make site` first"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for link in anatomy(page).links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        path = unquote(parts.path)
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), path)) if path else page
        assert (SITE / target).is_file(), f"{link} leads nowhere"
        if parts.fragment and target.endswith(".html"):
            assert unquote(parts.fragment) in anatomy(target).ids, f"{link}: no such place"


@pytest.mark.parametrize("page", PAGES)
def test_language_headings_and_pictures_make_sense_without_seeing(page):
    parts = anatomy(page)
    assert parts.lang == "en"
    assert parts.levels[:1] == [1]
    assert parts.levels.count(1) == 1
    for above, below in zip(parts.levels, parts.levels[1:], strict=False):
        assert below <= above + 1, f"a heading skips a level: {parts.levels}"
    assert all(len(alt) > 15 for alt in parts.pictures), parts.pictures


@pytest.mark.parametrize("page", PAGES)
def test_page_is_quiet_complete_and_accessible_and_fits(chromium, site_address, page):
    with opened(chromium, site_address, viewport=DESK) as (view, troubles):
        view.goto(f"{site_address}/{page}")
        view.evaluate("() => document.querySelectorAll('details').forEach(x => x.open = true)")
        view.evaluate("() => [...document.images].forEach(x => x.loading = 'eager')")
        view.wait_for_function("() => [...document.images].every(x => x.complete)")
        broken = "() => [...document.images].filter(x => !x.naturalWidth).map(x => x.src)"
        assert view.evaluate(broken) == []
        for screen, scheme in ((DESK, "light"), (PHONE, "dark")):
            view.set_viewport_size(screen)
            view.emulate_media(color_scheme=scheme)
            assert serious_findings(view) == [], (screen, scheme)
            width = view.evaluate("() => document.documentElement.scrollWidth")
            assert width <= screen["width"], view.evaluate(TOO_WIDE)
        assert troubles == []


def serious_findings(view: Page) -> list[tuple[str, str, int]]:
    """Axe's serious and critical findings: rule, first place, number of places."""
    found = Axe().run(view).response["violations"]
    serious = [finding for finding in found if finding["impact"] in ("serious", "critical")]
    return [(x["id"], x["nodes"][0]["html"][:200], len(x["nodes"])) for x in serious]


def test_hints_and_solutions_open_from_the_keyboard(chromium, site_address):
    with opened(chromium, site_address, viewport=DESK) as (view, _):
        view.goto(f"{site_address}/lessons/01_shapes.html")
        for text in ("Hint 1: direction", "Solution of exercise 1.1"):
            box = view.locator("details", has_text=text).first
            assert box.get_attribute("open") is None
            box.locator("summary").focus()
            view.keyboard.press("Enter")
            assert box.get_attribute("open") is not None


def test_a_solution_is_put_together_from_the_keyboard(chromium, site_address):
    with opened(chromium, site_address, viewport=DESK) as (view, troubles):
        view.goto(f"{site_address}/lessons/01_shapes.html")
        form = view.locator(".assemble").first
        puzzle = json.loads(form.get_attribute("data-puzzle"))
        buttons, status = form.get_by_role("button"), form.get_by_role("status")
        [wrong, _] = [i for i, (_, mistake) in enumerate(puzzle["pieces"]) if mistake]
        buttons.nth(wrong).focus()
        view.keyboard.press("Space")
        assert puzzle["pieces"][wrong][1] in status.inner_text()
        view.keyboard.press("Space")  # taken out again
        for letter in puzzle["orders"][0]:
            buttons.nth(ord(letter) - 65).focus()
            view.keyboard.press("Enter")
        assert status.inner_text() == "Right."
        assert troubles == []


def test_search_finds_a_lesson(chromium, site_address):
    with opened(chromium, site_address, viewport=DESK) as (view, troubles):
        view.goto(f"{site_address}/search.html?q=rotary")
        view.get_by_role("link", name="Lesson 02").first.click()
        assert "02_attention.html" in view.url
        assert troubles == []
