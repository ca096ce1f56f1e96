"""What README.md and docs/ tell people to type is understood, and what they point at is there."""

import re
import shlex
from pathlib import Path

import pytest
import tyro

from raydistal import cli
from raydistal.pipelines import submit

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ELIDED = {"...", "VERB", "[options]", "--tyro-write-completion"}  # a line that only names a command, or is tyro's


def code(page: Path) -> str:
    """Its code, a command per line: fenced and indented blocks with their continuation lines joined, and `spans`."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    indented = re.findall(r"^    (.*)$", prose, re.MULTILINE)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return re.sub(r"\\\n\s*", "", "\n".join([*blocks, *indented, *spans]))


def commands(start: str) -> list[list[str]]:
    """What comes after `start` in every line of code that begins with it, as words, each once."""
    found = {}
    for page in PAGES:
        for line in re.findall(rf"^ *{start}(.+)$", code(page), re.MULTILINE):
            words = shlex.split(line, comments=True)
            if len(words) > 1 and not ELIDED & {*words}:
                found[shlex.join(words)] = words
    return list(found.values())


@pytest.mark.parametrize("words", commands("raydistal "), ids=shlex.join)
def test_every_command_line_is_understood(words: list[str]) -> None:
    config = cli.parse(words)
    if isinstance(config, submit.Config) and config.command:
        cli.parse(config.command)


@pytest.mark.parametrize("words", commands("python jobs/papers/"), ids=shlex.join)
def test_every_script_of_the_papers_understands_its_options(words: list[str], load_paper) -> None:
    tyro.cli(load_paper(words[0].removesuffix(".py")).Config, args=words[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_target_of_make_is_there(page: Path) -> None:
    named = set(re.findall(r"^ *make ([a-z]\S*)", code(page), re.MULTILINE))
    assert named <= set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    targets = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text())}
    lost = {target for target in targets if ":" not in target and not (page.parent / target).exists()}
    assert not lost


def test_the_expressions_above_find_what_they_look_for() -> None:
    verbs = {config.__module__.rsplit(".", 1)[1] for config in cli.RUNS}
    assert {words[0] for words in commands("raydistal ")} == verbs
    assert len(commands("python jobs/papers/")) >= 3
