"""What a child process may do to its caller: nothing but fail one call."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from raydistal.errors import CrashedError, DecodeError, TimeLimitError
from raydistal.video.sandbox import Sandbox, kept

pytestmark = pytest.mark.slow

WORKER = """
import os, signal, time
import pyarrow as pa
from raydistal.errors import DecodeError

def is_pipe(fd):
    return os.path.exists(f"/proc/self/fd/{fd}") and os.readlink(f"/proc/self/fd/{fd}").startswith("pipe:")

def work(what):
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if what == "exit":
        os._exit(3)
    if what == "hang":
        time.sleep(600)
    if what == "memory":
        bytearray(4 << 30)
    if what == "video error":
        raise DecodeError("not a video")
    if what == "bug":
        raise KeyError("a bug")
    if what == "print":
        print("noise on stdout", flush=True)
        os.write(1, b"more noise")
    if what == "close":
        os.closerange(3, 100)
        time.sleep(600)
    if isinstance(what, list):  # bytes for the caller, in place of an answer
        os.write(max(int(fd) for fd in os.listdir("/proc/self/fd") if is_pipe(fd)), bytes(what))
        time.sleep(600)
    return pa.table({"pid": [os.getpid()], "secret": [os.environ.get("AWS_SECRET_ACCESS_KEY")]})

def count(up_to, last="", pause_s=0):
    for number in range(up_to):
        time.sleep(pause_s)
        yield pa.table({"number": [number], "pid": [os.getpid()]})
    work(last)
"""


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    (tmp_path / "sandboxed_worker.py").write_text(WORKER)
    monkeypatch.syspath_prepend(str(tmp_path))
    sandbox = Sandbox("sandboxed_worker:work", memory_bytes=1 << 30, timeout_s=20)
    yield sandbox
    sandbox.close()


@pytest.fixture
def counter(sandbox):
    sandbox.target = "sandboxed_worker:count"
    return sandbox


def numbers(tables) -> list[int]:
    return [table["number"][0].as_py() for table in tables]


def pid_of(answer: pa.Table) -> int:
    return answer["pid"][0].as_py()


def test_one_child_does_many_calls_and_sees_no_credentials(sandbox, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    first, second = sandbox.call(what="work"), sandbox.call(what="print")
    assert pid_of(first) == pid_of(second) != os.getpid()
    assert first["secret"].to_pylist() == [None]


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("crash", CrashedError, "signal SIGSEGV"),
        ("exit", CrashedError, "exit code 3"),
        ("memory", CrashedError, "more than 1024 MiB"),
    ],
)
def test_a_call_that_ends_the_child_costs_that_call_only(sandbox, what, error, message):
    before = pid_of(sandbox.call(what="work"))
    with pytest.raises(error, match=message):
        sandbox.call(what=what)
    assert pid_of(sandbox.call(what="work")) != before


def test_time_limit_kills_the_child(sandbox):
    before = pid_of(sandbox.call(what="work"))
    sandbox.timeout_s = 0.5
    with pytest.raises(TimeLimitError, match=r"longer than 0\.5 s"):
        sandbox.call(what="hang")
    assert not Path(f"/proc/{before}").exists()
    sandbox.timeout_s = 20
    assert pid_of(sandbox.call(what="work")) != before


def test_errors_come_back_as_what_they_are(sandbox):
    before = pid_of(sandbox.call(what="work"))
    with pytest.raises(DecodeError, match="not a video"):
        sandbox.call(what="video error")
    assert pid_of(sandbox.call(what="work")) == before
    with pytest.raises(CrashedError, match=r"unforeseen KeyError at sandboxed_worker.py:\d+: 'a bug'"):
        sandbox.call(what="bug")


@pytest.mark.parametrize("outcome", [{"status": "fine", "message": ""}, {"status": "ok"}, "ok", None])
def test_an_answer_that_no_honest_child_gives_costs_that_call_only(sandbox, outcome):
    sink = pa.BufferOutputStream()
    table = pa.table({}).replace_schema_metadata({"outcome": json.dumps(outcome)})
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    content = sink.getvalue().to_pybytes() if outcome else b"no Arrow"
    with pytest.raises(CrashedError, match="cannot be read"):
        sandbox.call(what=list(len(content).to_bytes(8, "big") + content))
    assert sandbox.pid is None


def test_a_child_that_stops_answering_or_listening_is_not_waited_for(sandbox):
    with pytest.raises(CrashedError, match="SIGKILL"):
        sandbox.call(what="close")
    sandbox.call(what="work")
    os.kill(sandbox.pid, signal.SIGSTOP)
    sandbox.timeout_s = 0.5
    with pytest.raises(TimeLimitError):
        sandbox.call(what="x" * (1 << 20))  # more than the pipe holds


def test_a_start_that_is_interrupted_leaves_no_child(sandbox, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Sandbox, "_read", interrupt)
        with pytest.raises(KeyboardInterrupt):
            sandbox.call(what="work")
    assert sandbox.pid is None
    assert pid_of(sandbox.call(what="work"))


def test_a_caller_with_many_open_files(sandbox):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 2048), before[1]))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert pid_of(sandbox.call(what="work"))
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_child_that_cannot_start_blames_no_video(tmp_path):
    with pytest.raises(RuntimeError, match="did not start"):
        Sandbox("no_such_module:work", memory_bytes=1 << 30, timeout_s=5).call()


def test_the_child_dies_with_its_parent(tmp_path):
    (tmp_path / "sandboxed_worker.py").write_text(WORKER)
    code = (
        "import time; from raydistal.video.sandbox import Sandbox\n"
        "s = Sandbox('sandboxed_worker:work', memory_bytes=1 << 30, timeout_s=100)\n"
        "print(s.call(what='work')['pid'][0], flush=True); s.call(what='hang')"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as parent:
        child = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 120
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{child}").exists()


def test_a_caller_whose_memory_is_limited_for_good(tmp_path):
    """As by a batch system: nobody without the privilege may raise such a limit again."""
    (tmp_path / "sandboxed_worker.py").write_text(WORKER)
    code = (
        "import ctypes, resource; from raydistal.video.sandbox import Sandbox\n"
        "pr_capbset_drop = cap_sys_resource = 24; ctypes.CDLL(None).prctl(pr_capbset_drop, cap_sys_resource)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (1 << 36, 1 << 36))\n"
        "print(Sandbox('sandboxed_worker:work', memory_bytes=1 << 30, timeout_s=100).call(what='work').num_rows)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "1\n", done.stderr


def test_a_stream_gives_table_after_table_and_the_child_goes_on(counter):
    tables = list(counter.stream(up_to=3))
    assert numbers(tables) == [0, 1, 2]
    assert tables[0].schema.metadata is None
    again = list(counter.stream(up_to=2, last="print"))
    assert numbers(again) == [0, 1]
    assert pid_of(again[0]) == pid_of(tables[0])
    assert list(counter.stream(up_to=0)) == []


@pytest.mark.parametrize(
    ("last", "error", "lives"),
    [("video error", DecodeError, True), ("crash", CrashedError, False)],
)
def test_a_stream_gives_what_came_before_its_error(counter, last, error, lives):
    stream = counter.stream(up_to=2, last=last)
    pids = {pid_of(next(stream)), pid_of(next(stream))}
    with pytest.raises(error):
        next(stream)
    assert ({pid_of(table) for table in counter.stream(up_to=1)} == pids) == lives


def test_a_stream_that_is_left_early_ends_the_child(counter):
    stream = counter.stream(up_to=100)
    first = next(stream)
    stream.close()
    assert not Path(f"/proc/{pid_of(first)}").exists()
    assert numbers(counter.stream(up_to=2)) == [0, 1]  # and nothing of the stream before


def test_one_stream_at_a_time(counter):
    stream = counter.stream(up_to=2)
    next(stream)
    with pytest.raises(RuntimeError, match="still open"):
        counter.call(up_to=1)
    assert numbers(stream) == [1]


def test_a_stream_has_the_time_that_its_reader_waits(counter, monkeypatch):
    clock, read_s = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + read_s[0])
    for _ in counter.stream(up_to=3):
        read_s[0] += counter.timeout_s  # the reader's own time does not count
    counter.timeout_s = 1
    with pytest.raises(TimeLimitError):
        list(counter.stream(up_to=3, pause_s=0.4))


def test_a_thread_keeps_a_sandbox_for_each_target():
    limits = {"memory_bytes": 1 << 30, "timeout_s": 20}
    one, other = kept("a:f", **limits), kept("b:f", **limits)
    assert kept("a:f", **limits) is one is not other is kept("b:f", **limits)
    assert kept("a:f", **limits | {"timeout_s": 30}) is not one
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: kept("b:f", **limits)).result() is not other
