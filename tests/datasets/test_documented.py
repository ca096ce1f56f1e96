"""docs/datasets.md: its trees, made as files, are indexed as it says."""

import posixpath
import re
from pathlib import Path
from typing import get_args, get_type_hints

import pyarrow as pa
import pytest

from raydistal.datasets import layout, layouts
from raydistal.pipelines import index

PAGE = (Path(__file__).parents[2] / "docs/datasets.md").read_text()
TREES = re.findall(r"^```tree (\w+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
LABELS = {0: "real", 1: "fake", None: "unknown"}


def parse(text: str) -> tuple[dict[str, str], dict[str, list[str]]]:
    """The content of every file, which is after |, and the columns beside those that become a row."""
    contents: dict[str, str] = {}
    columns_of: dict[str, list[str]] = {}
    path = ""
    for line in text.splitlines():
        before, bar, content = line.partition("|")
        if before.strip():
            path, *columns = re.split(r"\s{2,}", before.strip())
            contents[path] = ""
            columns_of |= {path: columns} if columns else {}
        if bar:
            contents[path] += content.removeprefix(" ") + "\n"
    return contents, columns_of


def test_parse():
    text = "a b.csv  | x,y\n         | 1,2\nc/d.mp4  real  -\ne.txt\n  |  f\n"
    contents = {"a b.csv": "x,y\n1,2\n", "c/d.mp4": "", "e.txt": " f\n"}
    assert parse(text) == (contents, {"c/d.mp4": ["real", "-"]})


def test_every_layout_has_its_heading_and_tree():
    names = [name for name in get_args(get_type_hints(index.Config)["layout"]) if name != "auto"]
    assert [name for name, _ in TREES] == re.findall(r"^### .*: `(\w+)`$", PAGE, re.MULTILINE)
    assert sorted(name for name, _ in TREES) == sorted(names)


@pytest.mark.parametrize(("name", "text"), TREES, ids=[name for name, _ in TREES])
def test_a_tree_is_indexed_as_the_page_says(tree, tmp_path, name, text):
    contents, columns_of = parse(text)
    root = tree([], {f"videos/{path}": content for path, content in contents.items()}) + "/videos"
    entries = layouts.read(root).entries
    table = entries if isinstance(entries, pa.Table) else layout.entries_table(entries)
    assert {row["path"]: columns(row) for row in table.to_pylist()} == columns_of
    summary = index.run(index.Config(videos=root, out=str(tmp_path / "run")))
    assert (summary["layout"], summary["videos"]) == (name, len(columns_of))


def columns(row):
    original = posixpath.basename(row["original"] or "-")
    return [LABELS[row["label"]], row["method"] or "-", original, row["group"], row["split"] or "-"]
