"""What is sent to a cluster, what is refused before, what is made of its answers; tests/faults/test_jobs.py has one."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus

import raydistal
from raydistal import cli
from raydistal.errors import UserError
from raydistal.pipelines import submit

URL = "http://127.0.0.1:8265"


@pytest.fixture(autouse=True)
def _no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.setenv(name, "")  # not deleted: the client's is set meanwhile, and must go again


def test_the_package_runs_where_it_is_unpacked(tmp_path, monkeypatch):
    package = Path(raydistal.__path__[0])
    submit.pack(tmp_path)
    sent = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.relative_to(package.parent).as_posix() for path in package.rglob("*.py")} <= sent
    assert {f"raydistal/report/{path.name}" for path in (package / "report").glob("*.j2")} <= sent
    assert not [name for name in sent if "__pycache__" in name or "/." in name]
    assert sum(path.stat().st_size for path in tmp_path.rglob("*")) < 10 << 20  # of 100 that the dashboard takes
    code = "from importlib.util import find_spec; print(find_spec('raydistal.__main__').origin)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == tmp_path / "raydistal/__main__.py"


def test_only_named_variables_are_sent(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "mine")
    assert submit.variables(()) == {}
    assert submit.variables(["AWS_ACCESS_KEY_ID", "A=b=c", "EMPTY="]) == {
        "AWS_ACCESS_KEY_ID": "mine",
        "A": "b=c",
        "EMPTY": "",
    }


def test_the_command_line_keeps_every_env_and_the_verbs_options():
    config = cli.parse(["submit", "--env", "A=1", "--env", "B=2", "--no-wait", "--", "extract", "--out", "/r", "--env"])
    assert (config.env, config.wait, config.command) == (("A=1", "B=2"), False, ("extract", "--out", "/r", "--env"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "what to run"),
        (["--follow", "ID", "--", "extract"], "not both"),
        (["--follow", "ID", "--no-wait"], "--address only"),
        (["--env", "2A=1", "--", "extract"], "NAME=VALUE"),
        (["--env", "NOT_SET_HERE", "--", "extract"], "not set here"),
        (["--address", "10.0.0.1:6379", "--", "extract", "--out", "/r"], URL),
        (["--", "extract", "--out", "relative/run"], "absolute path"),
        (["--", "extract", "--out", "/run", "--sample", "ten"], "even:N"),
        (["--", "submit", "--", "extract", "--out", "/r"], "does something"),
        (["--address", "http://127.0.0.1:9", "--", "extract", "--out", "/r"], "no Ray dashboard at http://127.0.0.1:9"),
    ],
)
def test_refused_here(options, message):
    with pytest.raises(UserError, match=message):
        submit.run(cli.parse(["submit", *options]), cli.parse)


def test_unknown_options_of_the_verb_are_refused_here(capsys):
    with pytest.raises(SystemExit) as end:
        submit.run(submit.Config(command=("extract", "--out", "/r", "--smaple", "even:3")), cli.parse)
    assert end.value.code == 2
    assert "--smaple" in capsys.readouterr().err


def test_a_token_file_that_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "no"))
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH"):
        submit.run(submit.Config(command=("extract", "--out", "/r")), cli.parse)


def test_what_is_only_here_is_named(tmp_path, capsys):
    command = ("index", "--videos", str(tmp_path), "--out", "/no/such")
    config = submit.Config(command=command, address="http://127.0.0.1:9")
    with pytest.raises(UserError, match="no Ray"):
        submit.run(config, cli.parse)
    assert f"must be on the cluster as well: {tmp_path}\n" in capsys.readouterr().err


class Client:
    """A job that says `chunks` and ends as `status` with `code`."""

    def __init__(self, chunks: list[str], status: str = "SUCCEEDED", code: int | None = 0) -> None:
        self.chunks, self.info = chunks, SimpleNamespace(status=JobStatus(status), driver_exit_code=code, message="why")

    def get_address(self) -> str:
        return URL

    def get_job_info(self, job: str) -> SimpleNamespace:
        return self.info

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for chunk in self.chunks:
            if chunk == "CTRL-C":
                raise KeyboardInterrupt
            if chunk == "LOST":
                raise RuntimeError("closed with close code 1006")
            yield chunk


def test_the_summary_is_the_last_json_line_however_the_log_is_cut(capsys):
    chunks = ['{"a": 1}\n{"vid', 'eos": 3}\n[1]\n{not json}\n', "noise\n"]
    assert submit._follow(Client(chunks), "ID") == {"videos": 3}
    assert capsys.readouterr().err == "".join(chunks)


@pytest.mark.parametrize(
    ("chunks", "status", "code", "exit_code", "summary", "message"),
    [
        (["no table\n"], "FAILED", 2, 2, None, "exit code 2"),
        (['{"log": 1}\n', "Traceback\n"], "FAILED", 1, 1, None, "exit code 1"),
        (["differs\n", '{"exact": false}'], "FAILED", 1, 1, {"exact": False}, "exit code 1"),
        (["stopped\n"], "FAILED", 3, 3, None, "exit code 3"),
        (["x\n"], "FAILED", -9, 1, None, "exit code -9"),
        ([], "FAILED", None, 1, None, "failed: why"),
        (["x\n"], "STOPPED", None, 3, None, "was stopped"),
        (["x\n"], "RUNNING", None, 1, None, f"--address {URL} --follow ID"),
        (["x\n", "LOST"], "RUNNING", None, 1, None, "1006.*--follow ID"),
        (["x\n", "CTRL-C"], "RUNNING", None, 1, None, "ray job stop"),
    ],
)
def test_how_other_jobs_end(chunks, status, code, exit_code, summary, message):
    with pytest.raises(submit.JobEndedError, match=message) as ended:
        submit._follow(Client(chunks, status, code), "ID")
    assert (ended.value.exit_code, ended.value.summary) == (exit_code, summary)


def test_a_cluster_that_still_starts_is_waited_for(monkeypatch):
    monkeypatch.setattr(submit.time, "sleep", lambda _: None)
    answers = [RuntimeError("status code 500: No available agent to submit job"), "ID", RuntimeError("status code 413")]

    def send() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert submit._once_it_has_started(send) == "ID"
    with pytest.raises(RuntimeError, match="413"):
        submit._once_it_has_started(send)
