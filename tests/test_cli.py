"""The command line as a stranger uses it, its streams and exit codes: as processes; in this one where they are many."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from raydistal import cli, storage, tables
from raydistal.pipelines import index

pytestmark = pytest.mark.slow

TINY = ["--detector", "none", "--size-px", "64", "--backbone", "timm:mobilenetv3_small_050", "--weights", "random"]


def raydistal(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    token = {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_AUTH_MODE": "token", "COLUMNS": "80"}
    command = [str(Path(sys.executable).with_name("raydistal")), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | token | environment, timeout=240, check=False
    )


@pytest.fixture
def here(monkeypatch, capsys) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As `raydistal`, in this process."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        words, code = [*map(str, arguments)], 0
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", sys.stdout)  # the command line changes it
            try:
                cli.main(words)
            except SystemExit as end:
                code = end.code or 0
        return subprocess.CompletedProcess(words, code, *capsys.readouterr())

    return run


def last_line(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def folders(tmp_path_factory, clip_writer):
    root = tmp_path_factory.mktemp("my videos é")
    for label in ("real", "fake/face swap"):
        (root / label).mkdir(parents=True)
        for number in range(6):
            clip_writer(root / label / f"clip {number}.mp4", num_frames=8, seed=number)
    return root


VERBS = [config.__module__.rsplit(".", 1)[1] for config in cli.RUNS]

NAMED = {"detect": "VIDEO ...", "status": "OUT", "compact": "TABLE", "submit": "COMMAND"}  # without an option's name


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_fits_80_columns(here, verb):
    done = here(*filter(None, [verb]), "--help")
    assert done.returncode == 0
    assert "usage: raydistal" in done.stdout
    lines = done.stdout.splitlines()
    assert max(len(line) for line in lines if not line.startswith("usage:")) <= 80
    assert NAMED.get(verb, "") in done.stdout[: done.stdout.index("\n\n")]


def test_help_that_is_not_read_to_its_end():
    command = [str(Path(sys.executable).with_name("raydistal")), "extract", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        program.stdout.close()
        assert program.stderr.read() == ""


def test_version():
    done = raydistal("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"raydistal {version('raydistal')}, ray 2.")


def test_a_second_ctrl_c_changes_nothing():
    code = (
        "import atexit, signal\nfrom raydistal import cli\nfrom raydistal.pipelines import status\n"
        "atexit.register(signal.raise_signal, signal.SIGINT)\n"
        "cli.RUNS[status.Config] = lambda config: signal.raise_signal(signal.SIGINT)\n"
        "cli.main(['status', 'x'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(here, shell, tmp_path):
    assert here("--tyro-write-completion", shell, tmp_path / "completion").returncode == 0
    assert "--architecture" in (tmp_path / "completion").read_text()


def test_index_says_what_it_found(folders, tmp_path):
    done = raydistal("index", "--videos", folders, "--out", tmp_path / "run")
    summary = last_line(done)
    assert (summary["videos"], summary["real"], summary["fake"], summary["layout"]) == (12, 6, 6, "folders")
    assert len(done.stdout.splitlines()) == 1
    methods = tables.read_table(str(tmp_path / "run/videos"), "index")["method"].to_pylist()
    assert set(methods) == {None, "face swap"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["index", "--videos", "/no/such/folder", "--out", "OUT"], "/no/such/folder"),
        (["extract", "--out", "OUT", "--sample", "ten"], "even:N, every:N, random:N or fps:R"),
        (["extract", "--out", "OUT", "--crops", "gif"], "png, jpeg:QUALITY"),
        (["select", "--out", "OUT"], "raydistal index"),
        (["select", "--out", "OUT", "--ratio", "2"], "--ratio must be above 0"),
        (["report", "--out", "OUT"], "raydistal index"),
        (["distill", "--videos", "V", "--out", "OUT", "--frames", "0"], "--frames of at least 2"),
        (["train", "--data", "OUT", "--out", "OUT/d", "--recipe", "best"], "thesis, finetune"),
        (["train", "--data", "OUT", "--out", "OUT/d", "--weights", "random"], "raydistal index"),
        (["evaluate", "--detectors", "OUT/d", "--data", "OUT", "--out", "OUT/e"], "detector.json"),
        (["export", "--detector", "OUT/d", "--out", "OUT/d"], "is the detector itself"),
        (["compare", "--data", "OUT", "--out", "OUT/c", "--architectures", "xception", "--sets", "2"], "below 1"),
        (
            ["search", "--data", "D", "--out", "OUT", "--architecture", "xception", "--space", "bits=4"],
            "bits must be 8 or",
        ),
        (["index", "--vidoes", "x"], "--vidoes"),
        (["nothing"], "nothing"),
        ([], "index"),
    ],
)
def test_wrong_use_is_exit_code_2_and_one_clear_message(here, arguments, message, tmp_path):
    done = here(*(str(tmp_path) if argument == "OUT" else argument for argument in arguments))
    assert done.returncode == 2
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


def test_a_place_that_cannot_be_written_to_is_told_without_a_traceback(folders, tmp_path):
    (tmp_path / "file").touch()
    done = raydistal("index", "--videos", folders, "--out", tmp_path / "file/run")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Not a directory" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_weights_and_no_network_is_wrong_use(here, folders, tmp_path, monkeypatch):
    index.run(index.Config(videos=str(folders), out=str(tmp_path / "run")))
    nowhere = {"TORCH_HOME": str(tmp_path / "cache"), "https_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    for name, value in nowhere.items():
        monkeypatch.setenv(name, value)
    done = here("extract", "--out", tmp_path / "run")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--weights FILE" in done.stderr
    assert "--weights random" in done.stderr


@pytest.mark.ray
def test_from_folders_to_a_distilled_set(here, folders, s3):
    """All of it in a bucket; settings of the environment reach the workers."""
    for name in storage.list_files(str(folders)):
        storage.write_bytes(f"{s3}/data/{name}", (folders / name).read_bytes())
    run = f"{s3}/run"
    options = ["--videos", f"{s3}/data", "--out", run, "--ratio", "0.5", "--frames", "20", "--sample", "even:3"]
    done = raydistal("distill", *options, *TINY)
    summary = last_line(done)
    assert summary["extract"]["ok"] == 12
    assert summary["select"]["distilled"] == round(summary["select"]["videos"] / 2)
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    for noise in ("ray.init", "WARNING", "core_worker", "Deprecat"):
        assert noise not in done.stderr
    again = here("select", "--out", run, "--ratio", "0.25", "--frames", "20")
    assert last_line(again)["distilled"] < summary["select"]["distilled"]
    page = last_line(here("report", "--out", run))["report"]
    assert storage.read_bytes(page).lower().startswith(b"<!doctype html>")
