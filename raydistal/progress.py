"""Progress of a running job on stderr: a live bar on a terminal, otherwise a line every 10 s."""

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

LINE_EVERY_S = 10.0

_last_sign = (time.monotonic(), "")


def sign(what: str) -> None:
    """Records that something was finished, which shows that the job is alive; prints nothing."""
    global _last_sign
    _last_sign = (time.monotonic(), what)


def last_sign() -> tuple[float, str]:
    """When something was last finished, on the monotonic clock, and what; "" before the first time."""
    return _last_sign


class Progress:
    """Counts units of work against a total, with rate and time left. Use as a context manager."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.num_done, self.note = 0, ""
        self.last_line: tuple[int, str] | None = None
        self.began = self.line_at = time.monotonic()
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(None), MofNCompleteColumn(), _Rate(unit))
        self.bar = Bar(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console, expand=True)
        self.task = self.bar.add_task(title, total=total, note="")

    def __enter__(self) -> Self:
        if self.bar.console.is_terminal:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop() if self.bar.console.is_terminal else self._line()

    def advance(self, num: int, note: str = "") -> None:
        """`num` more units are done; `note` replaces the remark at the end of the line."""
        self.num_done += num
        self.note = note
        sign(f"{self.title}: {self.num_done}/{self.total} {self.unit}")
        self.bar.update(self.task, advance=num, note=note)
        if not self.bar.console.is_terminal and time.monotonic() - self.line_at >= LINE_EVERY_S:
            self._line()

    def _line(self) -> None:
        if self.last_line == (self.num_done, self.note):  # the last line said the same
            return
        self.line_at, self.last_line = time.monotonic(), (self.num_done, self.note)
        rate = self.num_done / max(self.line_at - self.began, 1e-9)
        left = f", {(self.total - self.num_done) / rate:.0f} s left" if 0 < self.num_done < self.total else ""
        note = f", {self.note}" if self.note else ""
        print(
            f"{self.title}: {self.num_done}/{self.total} {self.unit}, {rate:.2f} {self.unit}/s{left}{note}",
            file=sys.stderr,
            flush=True,
        )


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} {self.unit}/s" if speed else "")
