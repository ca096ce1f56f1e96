"""The queue of uploads, up to their results. Knows neither HTTP nor Ray.

    upload -> waiting -> faces -> drawing -> done | failed -> removed after a while, or when told to

Uploads are read only by child processes that can be killed. All files of a job lie in one folder, which is removed with
it; the upload itself is removed as soon as it has been examined.
"""

import asyncio
import errno
import logging
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from raydistal.serving.settings import Limits
from raydistal.verdict.examine import Progress

UPLOAD_S = 900.0  # for the largest file; after that, its place in the queue is free again
SWEEP_S = 5.0
ATTEMPTS = 2  # two, as nodes and processes get lost; not more, as it may be the video that kills them
State = Literal["waiting", "faces", "drawing", "done", "failed"]
SHARES: dict[str, tuple[float, float]] = {"faces": (0.0, 0.6), "drawing": (0.6, 1.0)}  # of the progress


class TooLargeError(Exception):
    """More bytes than allowed."""


class EmptyError(Exception):
    """No bytes."""


class BusyError(Exception):
    """The queue or the disk is full."""


class SlowError(Exception):
    """The upload was not complete in time."""


class LostError(Exception):
    """The process that examined the video is gone; another one can try."""


class Piece(NamedTuple):
    """The next bytes of a file of the result."""

    name: str
    content: bytes


class Failure(NamedTuple):
    """Why there is no result."""

    status: str
    message: str


Message = Progress | Piece | Failure | dict[str, Any]  # the last is the result
Examine = Callable[[Path, str], AsyncGenerator[Message, None]]  # path and name -> ...; raises LostError


@dataclass(eq=False)
class Job:
    """One upload."""

    job_id: str
    name: str
    folder: Path
    expires_at: float
    """Seconds since 1970."""
    state: State = "waiting"
    progress: float = 0.0
    error: Failure | None = None
    result: dict[str, Any] | None = None
    files: dict[str, Path] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    @property
    def upload(self) -> Path:
        """The file; gone when the job is done."""
        return self.folder / "upload"

    @property
    def is_over(self) -> bool:
        """Done or failed."""
        return self.state in ("done", "failed")


class Jobs:
    """All jobs. To be used in one event loop.

    Args:
        folder: for the files.
        limits: of uploads, the queue and the time to keep results.
        examine: does the work; its generator is closed when the job is removed.
        num_at_once: most jobs that are examined at the same time; the others wait here, in order.
    """

    def __init__(self, folder: Path, limits: Limits, examine: Examine, num_at_once: int) -> None:
        self.folder, self.limits, self.examine = folder, limits, examine
        self._jobs: dict[str, Job] = {}  # in the order of their arrival
        self._places = asyncio.Semaphore(num_at_once)

    async def receive(self, name: str, chunks: AsyncIterable[bytes]) -> Job:
        """Writes the upload to disk and queues it. If the queue is full, nothing is read; on errors, nothing is kept.

        Raises:
            BusyError, TooLargeError, EmptyError, SlowError, and what `chunks` raises when the sender goes away.
        """
        if sum(not job.is_over for job in self._jobs.values()) >= self.limits.max_queue:
            raise BusyError("all places in the queue are taken")
        job_id = secrets.token_urlsafe(32)
        job = Job(job_id, name, self.folder / secrets.token_hex(8), self._expiry())
        self._jobs[job_id] = job  # takes its place from the first byte on
        try:
            job.folder.mkdir()
            async with asyncio.timeout(UPLOAD_S):
                await self._write(job.upload, chunks)
        except BaseException as error:
            await self.remove(job_id)
            if isinstance(error, TimeoutError):
                raise SlowError(f"the upload took longer than {UPLOAD_S:g} s") from None
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise BusyError("the disk is full") from error
            raise
        job.task = asyncio.create_task(self._work(job))
        return job

    async def _write(self, path: Path, chunks: AsyncIterable[bytes]) -> None:
        num_bytes = 0
        with path.open("wb") as file:
            async for chunk in chunks:
                num_bytes += len(chunk)
                if num_bytes > self.limits.max_upload_mb * 10**6:
                    raise TooLargeError
                await asyncio.to_thread(file.write, chunk)
        if not num_bytes:
            raise EmptyError

    def find(self, job_id: str) -> Job | None:
        """The job; None if it is unknown or was removed."""
        return self._jobs.get(job_id)

    def num_ahead(self, job: Job) -> int:
        """Number of waiting jobs that came before it; 0 if it does not wait."""
        if job.state != "waiting":
            return 0
        before = list(self._jobs.values())
        return sum(other.state == "waiting" for other in before[: before.index(job)])

    async def remove(self, job_id: str) -> None:
        """Stops the job and removes it with its files."""
        if job := self._jobs.pop(job_id, None):
            if job.task:
                job.task.cancel()
                await asyncio.wait([job.task])
            await asyncio.to_thread(shutil.rmtree, job.folder, ignore_errors=True)

    async def close(self) -> None:
        """Stops and removes all jobs."""
        for job_id in list(self._jobs):
            await self.remove(job_id)

    async def sweep(self) -> None:
        """Runs for ever, removing jobs whose time is over."""
        while True:
            for job in list(self._jobs.values()):
                if job.is_over and job.expires_at <= time.time():
                    await self.remove(job.job_id)
            await asyncio.sleep(SWEEP_S)

    def _expiry(self) -> float:
        return time.time() + 60 * self.limits.keep_minutes

    async def _work(self, job: Job) -> None:
        async with self._places:
            try:
                await self._try(job)
            except Exception:
                logging.getLogger("ray.serve").exception("a video could not be examined")
                job.error = Failure("error", "something went wrong here; the log of the server says what")
        if job.error:
            _drop_files(job)
        job.state = "failed" if job.error else "done"
        job.progress, job.expires_at = 1.0, self._expiry()
        job.upload.unlink(missing_ok=True)

    async def _try(self, job: Job) -> None:
        for attempt in range(ATTEMPTS):
            try:
                async with aclosing(self.examine(job.upload, job.name)) as messages:
                    async for message in messages:
                        await self._take(job, message)
                return
            except LostError:
                job.state, job.progress, job.result = "waiting", 0.0, None
                _drop_files(job)
                if attempt == ATTEMPTS - 1:
                    job.error = Failure("crashed", f"the process that examined it was lost {ATTEMPTS} times")
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                job.error = Failure("error", "the disk of the server is full: try again later")
                return

    async def _take(self, job: Job, message: Message) -> None:
        match message:
            case Progress(stage, done, total):
                begin, end = SHARES[stage]
                job.state = "faces" if stage == "faces" else "drawing"
                job.progress = begin + (end - begin) * done / max(total, done, 1)
            case Piece(name, content):
                job.files.setdefault(name, job.folder / f"result-{name}")
                await asyncio.to_thread(_append, job.files[name], content)
            case Failure():
                job.error = message
            case _:
                job.result = message


def _drop_files(job: Job) -> None:
    for path in job.files.values():
        path.unlink(missing_ok=True)
    job.files.clear()


def _append(path: Path, content: bytes) -> None:
    with path.open("ab") as file:
        file.write(content)
