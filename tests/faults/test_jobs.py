"""Jobs on a running cluster with token authentication: `raydistal submit`, and `ray job submit` of a working copy."""

import json
import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ray_submit(arena, head):
    ignored = [line.strip("/\n") for line in (ROOT / ".gitignore").open()]
    shutil.copytree(ROOT, arena.folder / "repository", ignore=shutil.ignore_patterns(".git", *ignored))

    def run(*entrypoint: str | Path, **environment: str):
        place = ("--address", head["RAY_API_SERVER_ADDRESS"], "--working-dir", arena.folder / "repository")
        return arena.start("ray", "job", "submit", *place, "--", "python", *entrypoint, **environment).ended()

    return run


def test_what_is_submitted_ends_here_as_it_ends_there(arena, clips, head):
    def submit(*options: str | Path, **environment: str):
        return arena.start("raydistal", "submit", *options, **head | environment).ended()

    arena.index(clips[:5])
    code, out, err = submit("--no-wait", "--env", "MARK=1", "--", "extract", *arena.options)
    assert code == 0, err
    code, out, err = submit("--follow", json.loads(out)["submission_id"])
    assert code == 0, err
    assert {"videos": 5, "ok": 5, "table": str(arena.faces)}.items() <= json.loads(out).items()
    assert out in err  # the log
    assert arena.statuses() == {clip.name: "ok" for clip in clips[:5]}
    code, out, err = submit("--", "report", "--out", arena.folder / "none")
    assert (code, out) == (2, "")
    assert "raydistal: no table at" in err.split("Running entrypoint")[1]
    code, out, err = submit("--", "report", "--out", arena.run, RAY_AUTH_TOKEN="f" * 64)
    assert (code, out) == (2, "")
    assert "RAY_AUTH_TOKEN" in err
    assert "Traceback" not in err


def test_wrong_use_is_a_failed_job(arena, ray_submit):
    code, out, _ = ray_submit("-m", "raydistal", "select", "--out", arena.run)
    assert code == 1
    assert "Job entrypoint command failed with exit code 2" in out
    assert "Traceback" not in out


def test_no_token_no_job(arena, ray_submit):
    code, out, err = ray_submit("-m", "raydistal", "--help", RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="")
    assert (code, out) == (1, "")
    assert "Authentication required" in err
