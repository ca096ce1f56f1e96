"""Pages read as text, and looked at in a browser."""

import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydistal import storage

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The tags, attributes and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.tags, self.text, self.style, self._in = html, [], [], "", ""
        self.feed(html)
        self.words = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in = tag
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self._in == "style":
            self.style += data
        else:
            self.text.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def attributes(self, *names: str) -> list[str]:
        return [value for _, attrs in self.tags for name, value in attrs.items() if name in names]

    def check(self) -> None:
        """Runs nothing, fetches nothing, has words for its images and headings in order."""
        assert {tag for tag, _ in self.tags}.isdisjoint({"script", "b>", "iframe", "object", "link", "a", "form"})
        assert not [name for _, attrs in self.tags for name in attrs if name.startswith("on")]
        assert "\u202e" not in self.html
        places = self.attributes("src", "srcset", "href", "poster", "action", "data")
        assert all(place.startswith("data:image/") for place in places)
        assert not re.search(r"url\(|@import|//", self.style)
        assert all(attrs.get("alt") for tag, attrs in self.tags if tag == "img")
        assert [attrs["lang"] for tag, attrs in self.tags if tag == "html"] == ["en"]
        headings = [int(tag[1]) for tag, _ in self.tags if re.fullmatch("h[1-6]", tag)]
        assert headings[0] == 1
        assert max(np.diff(headings)) == 1
        ids = self.attributes("id")
        assert len(ids) == len(set(ids))


@pytest.fixture(scope="session")
def hostile() -> str:
    """A name that runs a script where it is not escaped."""
    return HOSTILE


@pytest.fixture(scope="session")
def read_page() -> Callable[[str], Page]:
    """The page in LOCATION/report, checked."""

    def read(location: str) -> Page:
        page = Page(storage.read_bytes(f"{location}/report/index.html").decode())
        page.check()
        return page

    return read


@pytest.fixture
def coarse(drawn_once: Any) -> Iterator[None]:
    """Where nobody looks at the figures."""
    with drawn_once():
        yield


@pytest.fixture
def look(browser: Any) -> Callable[[str], int]:
    """Opens a page bright and dark, wide and narrow; the number of figures on it.

    Checks that nothing is fetched, run or complained about, that the page is not wider than the display, and that
    whatever is wider than its place can be reached by keyboard.
    """

    def open_page(path: str) -> int:
        shown = {}
        for scheme, width_px in (("light", 1200), ("dark", 1200), ("light", 360)):
            page = browser.new_page(color_scheme=scheme, viewport={"width": width_px, "height": 800})
            trouble: list[str] = []
            page.on("console", lambda message, trouble=trouble: trouble.append(message.text))
            page.on("dialog", lambda dialog, trouble=trouble: trouble.append(dialog.message))  # an injected alert
            page.on("request", lambda request, trouble=trouble: trouble.append(request.url))
            page.goto(Path(path).as_uri())
            assert [text for text in trouble if not text.startswith(("file:", "data:"))] == []
            assert len([text for text in trouble if text.startswith("file:")]) == 1  # the page itself, nothing else
            page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
            assert page.evaluate("document.documentElement.scrollWidth") <= width_px
            assert page.evaluate(CUT_OFF) == []
            images = "[...document.querySelectorAll('picture img')].map(i => [i.currentSrc, i.naturalWidth])"
            pictures = page.evaluate(images)
            assert all(width for _, width in pictures)
            background = page.evaluate("getComputedStyle(document.body).backgroundColor")
            shown[scheme, width_px] = (background, pictures[0][0])
            page.close()
        assert len({background for background, _ in shown.values()}) == 2  # light and dark
        assert len({source for _, source in shown.values()}) == 3  # a picture of its own for each
        return len(pictures)

    return open_page


# What scrolls sideways but cannot be focused.
CUT_OFF = """[...document.querySelectorAll('main *')]
    .filter(one => ['auto', 'scroll'].includes(getComputedStyle(one).overflowX))
    .filter(one => one.scrollWidth > one.clientWidth + 1 && one.tabIndex < 0)
    .map(one => one.outerHTML.slice(0, 200))"""
