"""How costs are measured: side by side in one run, in turns (A B A B ...), and compared by their medians."""

import os
import statistics
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

TICKS_PER_S = os.sysconf("SC_CLK_TCK")

Name = TypeVar("Name", bound=Hashable)


class Ratio(NamedTuple):
    """One line of the final table."""

    bench: str
    what: str
    value: float
    target: float
    at_most: bool = True  # what the target is: the most or the least that the value may be

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.value <= self.target if self.at_most else self.value >= self.target


def in_turns(rounds: int, methods: Mapping[Name, Callable[[], Any]]) -> dict[Name, float]:
    """Median CPU seconds (all threads of this process) of each method, called in turn `rounds` times."""
    costs_s: dict[Name, list[float]] = {name: [] for name in methods}
    for _ in range(rounds):
        for name, method in methods.items():
            began_s = time.process_time()
            method()
            costs_s[name].append(time.process_time() - began_s)
    return {name: statistics.median(values) for name, values in costs_s.items()}


class Cost:
    """Wall and CPU seconds of a block of code; `cpu_s` counts this process and everything that it started."""

    wall_s: float
    cpu_s: float


@contextmanager
def clock(interval_s: float = 0.25) -> Iterator[Cost]:
    """Measures the block. Looks at the processes every `interval_s`: what one uses after the last look is not seen."""
    cost, seen, stop = Cost(), _cpu_by_process(), threading.Event()
    before_s, began = sum(seen.values()), time.monotonic()

    def watch() -> None:
        while not stop.wait(interval_s):
            seen.update(_cpu_by_process())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield cost
        cost.wall_s = time.monotonic() - began
    finally:
        stop.set()
        thread.join()
    seen.update(_cpu_by_process())
    cost.cpu_s = sum(seen.values()) - before_s


def _cpu_by_process() -> dict[tuple[int, str], float]:
    """CPU seconds of this process and its descendants, by process id and start time."""
    parents, started, cpu_s = {}, {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(") ")[2].split()
        except OSError:  # it has ended
            continue
        pid = int(path.parent.name)
        parents[pid], started[pid] = int(fields[1]), fields[19]
        cpu_s[pid] = (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return {(pid, started[pid]): cpu_s[pid] for pid in found}
