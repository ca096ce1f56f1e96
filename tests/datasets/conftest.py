from collections.abc import Callable
from pathlib import Path

import pytest

Tree = Callable[..., str]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Makes a folder of empty files and, from a dict, of files with text; gives its path."""

    def make(empty: list[str], texts: dict[str, str] | None = None) -> str:
        for path, text in {**dict.fromkeys(empty, ""), **(texts or {})}.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        return str(tmp_path)

    return make
