"""What operators see of the stages: metrics that Ray's agents export to Prometheus, and a log line per failed video.

Each node's agent serves its metrics (`ray.nodes()[i]["MetricsExportPort"]`), with `ray_` before their names. They reach
it within 10 s; without an agent they have no effect. Log lines are JSON on the stderr of the worker that saw the
failure, which Ray keeps on its node: `ray logs cluster`, or grep for a video_id in the session's logs.
"""

import functools
import json
import logging
import platform
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge

Stage = TypeVar("Stage", bound=type)

# name: description and tags, all of which have few values
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "raydistal_videos_total": ("Videos that are done, including failed ones.", ("verb", "status")),
    "raydistal_faces_total": ("Faces of videos that are done.", ("verb",)),
    "raydistal_stage_seconds_total": ("Seconds that workers spent in a stage.", ("verb", "stage")),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "raydistal_gpu_idle_fraction": (
        "Share of its time since its network was loaded in which an actor waited for input.",
        ("verb", "stage"),
    ),
}


def add_seconds(verb: str, stage: str, seconds: float) -> None:
    """Records that a worker was busy with a stage for so long."""
    _counter("raydistal_stage_seconds_total").inc(seconds, {"verb": verb, "stage": stage})


def log_failure(verb: str, video_id: str, status: str, error: str | None) -> None:
    """Writes the line of a video that failed."""
    line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "verb": verb, "video_id": video_id}
    _log().warning(json.dumps(line | {"status": status, "error": error, "node": platform.node()}))


def measured(verb: str, stage: str) -> Callable[[Stage], Stage]:
    """Class decorator for actors that hold networks: times their calls and counts the rows they take.

    Each call takes rows with the columns status and frame_index, one for each video that is done when it returns.
    """

    def measure(cls: Stage) -> Stage:
        patched: Any = cls
        begin, call = patched.__init__, patched.__call__

        @functools.wraps(begin)
        def __init__(self: Any, *arguments: Any) -> None:  # noqa: N807
            begin(self, *arguments)
            self._began, self._busy_s = time.monotonic(), 0.0

        @functools.wraps(call)
        def __call__(self: Any, rows: pa.Table) -> pa.Table:  # noqa: N807
            called = time.monotonic()
            result = call(self, rows)
            now = time.monotonic()
            self._busy_s += now - called
            add_seconds(verb, stage, now - called)
            _count(verb, rows)
            idle = 1 - self._busy_s / (now - self._began)
            _gauge("raydistal_gpu_idle_fraction").set(idle, {"verb": verb, "stage": stage})
            return result

        patched.__init__, patched.__call__ = __init__, __call__
        return cls

    return measure


def _count(verb: str, rows: pa.Table) -> None:
    for item in pc.value_counts(rows["status"]).to_pylist():
        _counter("raydistal_videos_total").inc(item["counts"], {"verb": verb, "status": item["values"]})
    if num_faces := pc.sum(pc.list_value_length(rows["frame_index"])).as_py():
        _counter("raydistal_faces_total").inc(num_faces, {"verb": verb})


@functools.cache
def _counter(name: str) -> "Counter":
    from ray.util.metrics import Counter

    description, tags = COUNTERS[name]
    return Counter(name, description, tags)


@functools.cache
def _gauge(name: str) -> "Gauge":
    from ray.util.metrics import Gauge

    description, tags = GAUGES[name]
    return Gauge(name, description, tags)


@functools.cache
def _log() -> logging.Logger:
    """A logger that writes nothing but the message; its own handler, as other logging would add a prefix."""
    log = logging.getLogger("raydistal.videos")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.addHandler(handler)
    log.propagate = False
    return log
