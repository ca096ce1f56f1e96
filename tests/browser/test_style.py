"""The page's files, without a browser."""

import dataclasses
import re
from importlib.resources import files

import pytest

from raydistal.report import figures

PAGE = files("raydistal.serving") / "page"


@pytest.mark.parametrize(("theme", "place"), [(figures.LIGHT, 0), (figures.DARK, 1)], ids=["light", "dark"])
def test_colours_are_those_of_the_report(theme, place):
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", (PAGE / "style.css").read_text().split(":root {")[1 + place]))
    ours = {name: value for name, value in dataclasses.asdict(theme).items() if name not in ("real", "fake")}
    assert {name: colours[name] for name in ours} == ours


def test_nothing_comes_from_elsewhere_and_no_markup_is_made_of_data():
    html, script, style = ((PAGE / name).read_text() for name in ("index.html", "app.js", "style.css"))
    namespaces = ("http://www.w3.org/2000/svg",)
    for text in (html, script, style):
        assert set(re.findall(r"https?://[^\s\"'`]+", text)) <= set(namespaces)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\.style\b", script)
    assert not re.search(r"<script(?! src)|\son\w+=|\sstyle=", html)
    assert not re.search(r"@import|url\(", style)
