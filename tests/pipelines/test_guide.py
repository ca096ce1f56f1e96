"""docs/guide.md as its readers use it: its commands one after the other, on a demo that is small."""

import re
import shlex
from pathlib import Path

import pytest

from raydistal import cli

GUIDE = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
SMALL = ["--identities", "4", "--backbone", "timm:test_resnet", "--weights", "random"]


def blocks(language: str) -> str:
    return "".join(re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))


def written() -> list[str]:
    """What the guide says is written, as patterns."""
    said = re.findall(r"\*\*Writes\*\*(.*?)(?=\n- |\n\n|\n## |\*\*)", GUIDE, re.DOTALL)
    return re.findall(r"`(demo/[^`\s]+)`", " ".join(said))


@pytest.mark.ray
@pytest.mark.timeout(1800)  # it took 211 CPU seconds, and machines may have other work
def test_every_command_runs_after_those_before_it(cluster, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first, *others = blocks("bash").replace("\\\n", " ").splitlines()
    for line in [shlex.join([*shlex.split(first), *SMALL]), *others]:
        program, *words = shlex.split(line)
        assert program == "raydistal"
        config = cli.parse(words)
        summary = cli.RUNS[type(config)](config)
        assert summary, line
        assert summary.get("exact", True), line
    exec(blocks("python"), {})
    assert len(written()) > 40
    assert [pattern for pattern in written() if not list(tmp_path.glob(pattern))] == []


def test_every_verb_has_a_section_with_an_example():
    verbs = {config.__module__.rsplit(".", 1)[1] for config in cli.RUNS}
    sections = {text.partition("\n")[0]: text for text in GUIDE.split("\n## ")}
    assert verbs <= set(sections)
    for verb in verbs:
        assert re.search(rf"^```(bash|console)\n(raydistal .*\n)*raydistal {verb} ", sections[verb], re.MULTILINE), verb
