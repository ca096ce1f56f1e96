"""Runs that are killed, starved and raced: programs of their own with Ray instances of their own, in an `Arena`."""

import collections
import contextlib
import errno
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydistal import schemas, tables

TINY = ["--sample", "even:4", "--detector", "none", "--size-px", "64"]
TINY += ["--backbone", "timm:mobilenetv3_small_050", "--weights", "random"]
# The command line with smaller parts, so that a short run writes many, and other beats.
PROGRAM = """
import sys
from raydistal import cli, tables
from raydistal.pipelines import extract
extract.VIDEOS_PER_PART = {videos_per_part}
tables.BEAT_S = {beat_s}
cli.main(sys.argv[1:])
"""
LIMIT_S = int(os.environ.get("FAULTS_LIMIT_S", "240"))  # for a machine that does much else
TOKEN = secrets.token_hex(32)


class Program(subprocess.Popen[bytes]):
    """A started program; its output goes to files, as a pipe would stay open in the daemons that it leaves."""

    def __init__(self, command: Sequence[str | Path], environment: dict[str, str], output: Path) -> None:
        self.out_path, self.err_path = output.with_suffix(".out"), output.with_suffix(".err")
        with self.out_path.open("wb") as out, self.err_path.open("wb") as err:
            streams = {"stdout": out, "stderr": err}
            super().__init__(command, cwd=output.parent, env=environment, start_new_session=True, **streams)

    def ended(self) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, once it has ended."""
        code = self.wait(LIMIT_S)
        return code, self.out_path.read_text(), self.err_path.read_text()

    def summary(self) -> dict[str, Any]:
        """The last line of stdout of a program that must succeed."""
        code, out, err = self.ended()
        assert code == 0, err
        return json.loads(out.splitlines()[-1])

    def until(self, happened: Callable[[], object]) -> None:
        """Waits for it; a program that runs must go on running until then."""
        deadline, runs = time.monotonic() + LIMIT_S, self.poll() is None
        while not happened():
            assert not runs or self.poll() is None, f"ended too early: {self.ended()}"
            assert time.monotonic() < deadline, self.err_path.read_text()
            time.sleep(0.002)


class Arena:
    """A folder and all processes that know it; the end of the test is the end of them."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rd-", dir="/tmp"))  # short: it holds sockets
        self.run, self.faces = self.folder / "run", self.folder / "run" / "faces"
        self.options = ["--out", str(self.run), *TINY]
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment |= {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), self.environment["PATH"]]),  # as when activated
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_OVERRIDE_RESOURCES": '{"CPU": 1}',  # videos go in order, one at a time
            "RAY_TMPDIR": str(self.folder),
            "RAY_USAGE_STATS_ENABLED": "0",
            "TMPDIR": str(self.folder),  # reaches every descendant, so it tells ours from others
        }
        self.programs: list[Program] = []

    def start(self, *command: str | Path, **environment: str) -> Program:
        output = self.folder / f"program{len(self.programs)}"
        self.programs.append(Program(command, self.environment | environment, output))
        return self.programs[-1]

    def extract(
        self,
        *options: str,
        videos_per_part: int = 1,
        beat_s: float = tables.BEAT_S,
        through: Sequence[str] = (),
        **environment: str,
    ) -> Program:
        """`raydistal extract` of the arena's run with a tiny network, started by the command `through`."""
        code = PROGRAM.format(videos_per_part=videos_per_part, beat_s=beat_s)
        return self.start(*through, sys.executable, "-c", code, "extract", *self.options, *options, **environment)

    def index(self, paths: Sequence[Path]) -> None:
        """The `videos` table of the run, in this order; video_id is the file name."""
        rows = [
            {"video_id": path.name, "dataset": "test", "uri": str(path), "group_id": path.name, "split": "pool"}
            for path in paths
        ]
        table = schemas.conform(pa.Table.from_pylist(rows), schemas.VIDEOS)
        tables.write_table(str(self.run / "videos"), table, {})

    def parts(self) -> dict[str, tuple[int, bytes]]:
        """Name -> time of last change and content."""
        paths = self.faces.glob("part-*.parquet")
        return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}

    def statuses(self) -> dict[str, str]:
        """video_id -> status; no video twice, no unreadable part, nothing else in the folder but `_table.json`."""
        names = sorted(path.name for path in self.faces.iterdir())
        assert names == ["_table.json", *sorted(self.parts())]
        rows = [row for name in self.parts() for row in pq.read_table(self.faces / name).to_pylist()]
        doubled = [key for key, count in collections.Counter(row["video_id"] for row in rows).items() if count > 1]
        assert not doubled
        return {row["video_id"]: row["status"] for row in rows}

    def gate(self, name: str) -> "Gate":
        return Gate(self.folder / name)

    def processes(self) -> dict[int, str]:
        """pid -> command line of everything that was started in this arena and still lives."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.fsencode(self.folder) in (process / "environ").read_bytes():
                    found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
        return found

    def kill(self, pids: Iterable[int]) -> None:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        deadline = time.monotonic() + 30
        while (left := self.processes()) and time.monotonic() < deadline:
            self.kill(left)
            time.sleep(0.05)
        for program in self.programs:
            program.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        assert not left


class Gate:
    """A video whose decoding goes on when the test says so: a named pipe."""

    def __init__(self, path: Path) -> None:
        self.path, self.pipe = path, path.with_suffix(".pipe")
        os.mkfifo(path)

    def become(self, clip: Path) -> None:
        """Whoever opens it from now on finds `clip`; who waits goes on waiting."""
        self.pipe.hardlink_to(self.path)
        copy = shutil.copy(clip, self.path.with_suffix(".copy"))
        Path(copy).replace(self.path)

    def release(self) -> bool:
        """Whoever waits finds an empty file; says whether someone waited."""
        try:
            os.close(os.open(self.pipe if self.pipe.exists() else self.path, os.O_WRONLY | os.O_NONBLOCK))
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return False
        return True


@pytest.fixture(scope="session")
def descendants() -> Callable[[int], list[int]]:
    """descendants(pid) of a live process, itself first."""

    def find(pid: int) -> list[int]:
        tasks = Path(f"/proc/{pid}/task").glob("*/children")
        children = [int(child) for task in tasks for child in task.read_text().split()]
        return [pid, *(below for child in children for below in find(child))]

    return find


@pytest.fixture
def arena() -> Iterator[Arena]:
    if sys.platform != "linux":
        pytest.skip("finds its processes in /proc")
    arena = Arena()
    yield arena
    arena.end()


@pytest.fixture(scope="session")
def head_arena() -> Iterator[Arena]:
    """The arena of the cluster of `head`."""
    arena = Arena()
    yield arena
    arena.end()


@pytest.fixture(scope="session")
def head(head_arena: Arena) -> dict[str, str]:
    """What a program needs in its environment to run on a cluster that was there before it and stays after it."""
    arena = head_arena
    gcs, dashboard, agent, client = free_ports(4)
    arena.start(
        *("ray", "start", "--head", "--block", "--num-cpus=1", f"--port={gcs}"),
        *(f"--temp-dir={arena.folder}", "--object-store-memory=300000000", f"--dashboard-port={dashboard}"),
        *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
    ).until(lambda: all(is_listening(port) for port in (gcs, dashboard, agent)))
    return {"RAY_ADDRESS": f"127.0.0.1:{gcs}", "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def ports() -> tuple[Callable[[int], list[int]], Callable[[int], bool]]:
    """`free_ports` and `is_listening`, for clusters with options of their own."""
    return free_ports, is_listening


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory, clip_writer: Callable[..., Path]) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [clip_writer(folder / f"clip{number:02}.mp4", num_frames=12, seed=number) for number in range(24)]
