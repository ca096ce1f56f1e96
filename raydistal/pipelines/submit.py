"""submit: runs a verb as a job of a running Ray cluster, with the code that is installed here.

    options, checked here -> the package raydistal, as it is here -> job -> its log on stderr, its summary and exit code

The cluster needs what raydistal depends on (cluster/Dockerfile), not raydistal itself.
"""

import asyncio
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import raydistal
from raydistal import storage
from raydistal.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ADDRESS = "http://127.0.0.1:8265"  # where `ray dashboard` and `kubectl port-forward` put a cluster's dashboard
START_S = 60.0
STOPPED = 3  # the exit code of a verb that was stopped; Ray does not keep it


@dataclass(frozen=True, kw_only=True)
class Config:
    """Run a verb on a Ray cluster: raydistal submit [options] -- VERB OPTIONS"""

    command: tuple[str, ...]
    """After --: the verb and its options, with URIs or absolute paths that all nodes see."""
    address: str = ""
    """Ray's dashboard; default: RAY_API_SERVER_ADDRESS, RAY_ADDRESS or http://127.0.0.1:8265."""
    env: tuple[str, ...] = ()
    """Environment variable for the job: NAME, with its value here, or NAME=VALUE. No other is sent."""
    wait: bool = True
    """Follow the log to the end and exit as the job does; otherwise only print its id."""
    follow: str = ""
    """Id of a submitted job to follow, for example after the connection was lost."""

    def __post_init__(self) -> None:
        if bool(self.command) == bool(self.follow):
            raise UserError("say what to run: raydistal submit -- VERB OPTIONS, or which job to --follow; not both")
        if self.follow and (self.env or not self.wait):
            raise UserError("--follow can be combined with --address only")
        variables(self.env)


class JobEndedError(Exception):
    """The job did not succeed, or is no longer followed. Carries the exit code and the job's summary, if any."""

    def __init__(self, why: str, exit_code: int = 1, summary: dict[str, Any] | None = None) -> None:
        super().__init__(why)
        self.exit_code, self.summary = exit_code, summary


def run(config: Config, parse: Callable[[Sequence[str]], Any]) -> dict[str, Any]:
    """Submits or follows the job; returns its summary, or only its submission_id if it is not to wait.

    Args:
        config: what to submit.
        parse: parses a command line of raydistal; refuses a wrong one.

    Raises:
        UserError: the verb or its options are wrong, no cluster at the address, a missing or wrong token.
        JobEndedError: the job failed or was stopped, the connection was lost, or Ctrl-C.
    """
    if config.command:
        _check(parse(config.command), config.command)
    url = _address(config.address)
    with _explained(url):
        client = _connect(url)
        job = config.follow or _send(client, config)
        client.get_job_info(job)  # an unknown id is refused here
    return _follow(client, job) if config.wait else {"submission_id": job}


def variables(env: Sequence[str]) -> dict[str, str]:
    """NAME and NAME=VALUE -> name: value; the values of bare names are those of this process.

    Raises:
        UserError: not a name, or not set here.
    """
    found = {}
    for setting in env:
        name, is_given, value = setting.partition("=")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise UserError(f"--env {setting}: give NAME or NAME=VALUE, once for each variable")
        if not is_given and name not in os.environ:
            raise UserError(f"--env {name}: it is not set here. Set it, or give {name}=VALUE.")
        found[name] = value if is_given else os.environ[name]
    return found


def pack(folder: Path) -> None:
    """Copies the package raydistal as it is installed here, without Python's caches."""
    [package] = raydistal.__path__
    shutil.copytree(package, folder / "raydistal", ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))


def _check(config: object, command: Sequence[str]) -> None:
    if isinstance(config, Config):
        raise UserError("submit a verb that does something: raydistal submit -- extract --out ...")
    out = getattr(config, "out", "")
    if out and not storage.is_uri(out) and not Path(out).is_absolute():
        raise UserError(f"--out {out} would be written beside the code on the cluster. Give a URI or an absolute path.")
    here = [word for word in command[1:] if os.sep in word and not storage.is_uri(word) and Path(word).exists()]
    if here:
        print(f"raydistal: not sent along, must be on the cluster as well: {' '.join(here)}", file=sys.stderr)


def _address(given: str) -> str:
    named = [given, *(os.environ.get(name, "") for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"))]
    if given and not given.startswith(("http://", "https://")):
        raise UserError(f"--address {given}: give the address of Ray's dashboard, such as {ADDRESS}")
    return next((url for url in named if url.startswith(("http://", "https://"))), ADDRESS).rstrip("/")


def _connect(url: str) -> "JobSubmissionClient":
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # else the client sends no token, even if it has one
    token_file = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not os.environ.get("RAY_AUTH_TOKEN") and token_file and not os.access(token_file, os.R_OK):
        raise UserError(f"RAY_AUTH_TOKEN_PATH: cannot read {token_file}")  # Ray would abort the process
    os.environ["RAY_API_SERVER_ADDRESS"] = url  # the client prefers this and RAY_ADDRESS to its argument
    from ray.job_submission import JobSubmissionClient

    logging.disable(logging.INFO)  # its notes on uploads and connections
    return JobSubmissionClient(url)


def _send(client: "JobSubmissionClient", config: Config) -> str:
    with tempfile.TemporaryDirectory(prefix="raydistal-") as folder:
        pack(Path(folder))
        job = _once_it_has_started(
            partial(
                client.submit_job,
                entrypoint=shlex.join(["python", "-m", "raydistal", *config.command]),
                runtime_env={"working_dir": folder, "env_vars": variables(config.env)},
            )
        )
    print(f"raydistal: submitted as {job} to {client.get_address()}", file=sys.stderr)
    return job


def _once_it_has_started(submit: Callable[[], str]) -> str:
    """Submits with retries: a dashboard answers some seconds before an agent can take jobs."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return submit()
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(1.0)


def _follow(client: "JobSubmissionClient", job: str) -> dict[str, Any]:
    import aiohttp
    import requests

    address = f"--address {client.get_address()}"
    again = f"The job goes on: raydistal submit {address} --follow {job}; ray job stop {address} {job} ends it."
    try:
        log = asyncio.run(_echo(client, job))
        info = client.get_job_info(job)
    except KeyboardInterrupt as stop:
        raise JobEndedError(f"not followed any more. {again}") from stop
    except (aiohttp.ClientError, requests.RequestException, ConnectionError, RuntimeError) as error:
        raise JobEndedError(f"the connection was lost ({error}). {again}") from error
    if not info.status.is_terminal():
        raise JobEndedError(f"the connection was lost. {again}")
    if info.status == "SUCCEEDED" and log.summary is not None:
        return log.summary
    if info.status == "STOPPED":
        raise JobEndedError(f"job {job} was stopped before its end", STOPPED)
    code = info.driver_exit_code
    if code is None:  # it never started
        raise JobEndedError(f"job {job} failed: {info.message}")
    # Exit codes of signals are negative. A failed job has a summary only if its very last line is JSON.
    summary = log.summary if log.ends_so else None
    raise JobEndedError(f"job {job} ended with exit code {code}", code if 0 < code < 256 else 1, summary)


@dataclass
class _Log:
    summary: dict[str, Any] | None = None
    ends_so: bool = False

    def hear(self, line: str) -> None:
        if not line.strip():
            return
        found = _json_object(line)
        self.summary, self.ends_so = found or self.summary, found is not None


async def _echo(client: "JobSubmissionClient", job: str) -> _Log:
    """Copies the log to stderr until the job or the connection ends; keeps the last line that is a JSON object."""
    log, rest = _Log(), ""
    async for chunk in client.tail_job_logs(job):
        print(chunk, end="", file=sys.stderr, flush=True)
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            log.hear(line)
    log.hear(rest)
    return log


def _json_object(line: str) -> dict[str, Any] | None:
    try:
        content = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turns errors of the connection to the cluster into UserErrors that say what to do."""
    import requests
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        raise UserError(
            f"{url} does not accept the token. Set RAY_AUTH_MODE=token, and the cluster's token as RAY_AUTH_TOKEN or "
            "the file that holds it as RAY_AUTH_TOKEN_PATH."
        ) from error
    except (ConnectionError, requests.ConnectionError) as error:
        raise UserError(
            f"no Ray dashboard at {url}. Is the cluster up, and its port forwarded (ray dashboard CLUSTER.yaml, or "
            "kubectl port-forward)? --address names another one."
        ) from error
    except (RuntimeError, requests.RequestException, KeyError) as error:  # errors that the server reports
        raise UserError(f"{url} refuses: {error}") from error
