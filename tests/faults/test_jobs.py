"""`ray job submit` of jobs/*.py to a running cluster with token authentication, from a copy of the repository."""

import json
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


@pytest.fixture
def submit(arena, head):
    ignored = [line.strip("/\n") for line in (ROOT / ".gitignore").open()]
    shutil.copytree(ROOT, arena.folder / "repository", ignore=shutil.ignore_patterns(".git", *ignored))

    def run(*entrypoint: str | Path, **environment: str):
        place = ("--address", head["RAY_API_SERVER_ADDRESS"], "--working-dir", arena.folder / "repository")
        return arena.start("ray", "job", "submit", *place, "--", "python", *entrypoint, **environment).ended()

    return run


def test_extract(arena, clips, submit):
    arena.index(clips[:5])
    code, out, err = submit("jobs/extract.py", *arena.options)
    assert code == 0, out + err
    printed = out.split("Running entrypoint for job")[1].splitlines()
    summary = json.loads([line for line in printed if "SUCC cli.py" not in line][-1])
    assert {"videos": 5, "ok": 5, "table": str(arena.faces)}.items() <= summary.items()
    assert arena.statuses() == {clip.name: "ok" for clip in clips[:5]}


def test_wrong_use_is_a_failed_job(arena, submit):
    code, out, _ = submit("jobs/select.py", "--out", arena.run)
    assert code == 1
    assert "Job entrypoint command failed with exit code 2" in out
    assert "Traceback" not in out


def test_no_token_no_job(arena, submit):
    code, out, err = submit("jobs/extract.py", "--help", RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="")
    assert (code, out) == (1, "")
    assert "Authentication required" in err
