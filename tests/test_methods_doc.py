"""What docs/methods.md cites is there."""

import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = "|".join(path.name for path in (ROOT / "raydistal").iterdir() if path.is_dir())
CITED = sorted(set(re.findall(r"`([^`\n]+)`", (ROOT / "docs/methods.md").read_text())))
FILES = [text for text in CITED if re.fullmatch(r"(raydistal|jobs|tests)/[\w/]+\.py(::\w+)?", text)]
NAMES = [text for text in CITED if re.fullmatch(rf"({PACKAGES})(\.\w+)+", text)]


@pytest.mark.parametrize("text", FILES)
def test_files_and_tests_are_there(text):
    path, _, name = text.partition("::")
    assert not name or f"def {name}(" in (ROOT / path).read_text()
    assert (ROOT / path).is_file()


@pytest.mark.parametrize("text", NAMES)
def test_modules_and_functions_are_there(text):
    pkgutil.resolve_name(f"raydistal.{text}")


def test_nothing_is_overlooked():
    """Whatever looks like a path or a dotted name is one of the above, or a setting such as `--faces.detector none`."""
    found = [text for text in CITED if re.match(r"[a-z_]+[./][a-z_]", text)]
    assert sorted(found) == sorted(FILES + NAMES)
    assert len(NAMES) > 50
