"""Work on untrusted media in a child process that can be killed.

The child lives as long as its `Sandbox` and does one call after another, so starting it costs once. A crash of native
code, a call that takes too long or too much memory ends the child, not the caller: that call raises a `VideoError` and
the next call starts a new child. Answers come back as Arrow, never as pickles: a child taken over by a hostile file
cannot run code in the caller.
"""

import ctypes
import importlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Generator, Iterator
from typing import IO, Any

import pyarrow as pa

from raydistal.errors import CrashedError, DecodeError, TimeLimitError, VideoError

ERRORS = {error.status: error for error in (CrashedError, DecodeError, TimeLimitError)}
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "TZ")  # no credentials
START_S = 120.0  # importing libraries from a cold network disk takes its time
READY = b"ready"
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Sandbox:
    """Calls one function in a child process.

    Args:
        target: "package.module:function"; takes JSON-able keyword arguments, returns a pyarrow Table or yields several.
        memory_bytes: address space that a call may take on top of the idle child's.
        timeout_s: wall-clock seconds that a call may take.
    """

    def __init__(self, target: str, *, memory_bytes: int, timeout_s: float) -> None:
        self.target, self.memory_bytes, self.timeout_s = target, memory_bytes, timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._is_busy = False

    @property
    def pid(self) -> int | None:
        """Of the child, while there is one."""
        return self._child.pid if self._child else None

    def call(self, **arguments: Any) -> pa.Table:
        """The function's table.

        Raises:
            VideoError: what the function raised; TimeLimitError; or CrashedError if it died, ran out of memory or
                raised something unforeseen: even that must not stop a job of 100,000 videos.
            RuntimeError: the child does not start, so no video is to blame.
        """
        (table,) = self.stream(**arguments)
        return table

    def stream(self, **arguments: Any) -> Iterator[pa.Table]:
        """The tables that the function yields, as they come; the child is at most one ahead.

        The time limit is on the caller's waiting for all of them, not on what it does in between. Leaving a stream
        before its end kills the child.

        Raises:
            VideoError, RuntimeError: as `call`, when the stream gets there.
        """
        if self._is_busy:
            raise RuntimeError(f"a stream of {self.target} is still open: one at a time")
        self._is_busy = True
        try:
            outcome = yield from self._answers(json.dumps(arguments).encode() + b"\n")
        finally:
            self._is_busy = False
        if outcome["status"] == "crashed":
            self.close()  # after running out of memory a process is not to be trusted
        if outcome["status"] != "ok":
            raise ERRORS[outcome["status"]](outcome["message"])

    def _answers(self, request: bytes) -> Generator[pa.Table, None, dict[str, str]]:
        """Yields the tables, and returns how the call ended."""
        left_s = self.timeout_s
        try:
            child = self._child or self._start()
            self._write(child, request, time.monotonic() + left_s)
            while True:
                began = time.monotonic()
                size = int.from_bytes(self._read(child, 8, began + left_s), "big")
                # An honest answer is smaller than the memory that it was made in; the rest of a larger one is not read.
                answer, outcome = _open_answer(self._read(child, min(size, self.memory_bytes), began + left_s))
                left_s -= time.monotonic() - began
                if outcome["status"] != "more":
                    return outcome
                yield answer
        except TimeoutError:
            self.close()
            raise TimeLimitError(f"took longer than {self.timeout_s:g} s (--timeout-s)") from None
        except (EOFError, BrokenPipeError):
            self.close()
            code = child.returncode
            how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            raise CrashedError(f"the decoder process ended by {how}") from None
        except BaseException:  # Ctrl-C, or left in the middle: the next call must not read the rest of it
            self.close()
            raise

    def close(self) -> None:
        """Ends the child; a later call starts a new one."""
        if self._child:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                if pipe:
                    pipe.close()
            self._child = None

    def __del__(self) -> None:
        self.close()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= THREADS | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        code = f"from raydistal.video.sandbox import serve; serve({self.target!r}, {self.memory_bytes}, {os.getpid()})"
        self._child = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        try:
            self._read(self._child, len(READY), time.monotonic() + START_S)
        except (EOFError, TimeoutError) as error:  # no video is to blame for this
            self.close()
            raise RuntimeError(f"the decoder process did not start ({self.target}); see its error output") from error
        return self._child

    @staticmethod
    def _write(child: subprocess.Popen[bytes], content: bytes, deadline: float) -> None:
        assert child.stdin
        rest = memoryview(content)
        while rest:
            _wait(child.stdin, select.POLLOUT, deadline)
            rest = rest[child.stdin.write(rest[: select.PIPE_BUF]) :]  # as much as a pipe that is ready takes at once

    @staticmethod
    def _read(child: subprocess.Popen[bytes], num_bytes: int, deadline: float) -> bytes:
        assert child.stdout
        content = bytearray()
        while len(content) < num_bytes:
            _wait(child.stdout, select.POLLIN, deadline)
            chunk = child.stdout.read(min(num_bytes - len(content), 1 << 20))
            if not chunk:
                raise EOFError
            content += chunk
        return bytes(content)


def _wait(pipe: IO[bytes], event: int, deadline: float) -> None:
    """Waits until the pipe is ready. Raises TimeoutError. Uses poll, as select takes no file number above 1023."""
    poll = select.poll()
    poll.register(pipe, event)
    if not poll.poll(min(1000 * max(0.0, deadline - time.monotonic()), 1 << 30)):
        raise TimeoutError


def _open_answer(content: bytes) -> tuple[pa.Table, dict[str, str]]:
    """The table of an answer, and how the call stands. Raises CrashedError for what no honest child sends."""
    try:
        table = pa.ipc.open_stream(content).read_all()
        table.validate(full=True)
        outcome = json.loads(table.schema.metadata[b"outcome"])
        if not isinstance(outcome["message"], str) or outcome["status"] not in ("more", "ok", *ERRORS):
            raise ValueError(f"unknown outcome {outcome}")
    except Exception as error:  # Arrow has many
        raise CrashedError(f"the decoder process gave an answer that cannot be read: {error}") from error
    return table.replace_schema_metadata(None), outcome


_kept = threading.local()  # a child is killed when the thread that started it ends (PR_SET_PDEATHSIG)


def kept(target: str, *, memory_bytes: int, timeout_s: float) -> Sandbox:
    """The calling thread's `Sandbox` for the target, kept between calls; a new one if the limits change."""
    sandbox: Sandbox | None = getattr(_kept, target, None)
    if sandbox is None or (sandbox.memory_bytes, sandbox.timeout_s) != (memory_bytes, timeout_s):
        sandbox = Sandbox(target, memory_bytes=memory_bytes, timeout_s=timeout_s)
        setattr(_kept, target, sandbox)
    return sandbox


def serve(target: str, memory_bytes: int, parent_pid: int) -> None:
    """The child's life: answers requests from stdin until it closes or the parent dies."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent_pid:
        return
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not end up in an answer
    module, name = target.split(":")
    function = getattr(importlib.import_module(module), name)
    if sys.platform == "linux":
        with open("/proc/self/statm") as statm:
            limit = int(statm.read().split()[0]) * resource.getpagesize() + memory_bytes
        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))
    answers.write(READY)
    answers.flush()

    def answer(table: pa.Table, status: str, message: str = "") -> None:
        sink = pa.BufferOutputStream()
        table = table.replace_schema_metadata({"outcome": json.dumps({"status": status, "message": message})})
        with pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
        content = sink.getvalue()
        answers.write(len(content).to_bytes(8, "big"))
        answers.write(content)
        answers.flush()

    for line in sys.stdin.buffer:
        try:
            made = function(**json.loads(line))
            for table in [made] if isinstance(made, pa.Table) else made:
                answer(table, "more")
            status, message = "ok", ""
        except VideoError as error:
            status, message = error.status, str(error)
        except MemoryError:
            status, message = "crashed", f"needed more than {memory_bytes >> 20} MiB (--memory-mib)"
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{os.path.basename(place.filename)}:{place.lineno}"
            status, message = "crashed", f"unforeseen {type(error).__name__} at {where}: {error}"
        answer(pa.table({}), status, message)
