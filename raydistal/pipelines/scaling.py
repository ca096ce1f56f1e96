"""Limits of a job: what it asks of an autoscaling cluster, and when it stops by itself.

A cluster grows for trainings, trials and actors that wait for a CPU or a GPU. It does not for decoding: few tasks are
submitted at a time, as their output must fit into memory. So `demand` asks for the CPUs.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from raydistal import progress
from raydistal.errors import UserError

VIDEOS_PER_CPU = 64  # fewer would be done before the node that brings the CPU has started
VIDEOS_PER_ACTOR = 512  # on a GPU they take less time than the network takes to load
MAX_CPUS = 4096  # that one request asks for
LOOK_EVERY_S = 5.0  # as often as the autoscaler; Ray Data overwrites requests every 20 s


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of a job. Finished work is kept when it stops: the same command resumes it."""

    max_hours: float = 0.0
    """Stop after this many hours. 0: no limit."""
    max_nodes: int = 0
    """Nodes, including the head, that an autoscaling cluster may grow to. 0: the cluster's own limit."""
    idle_minutes: float = 0.0
    """Stop after this many minutes without progress: no finished video, batch, epoch of a trial or training of several.
    0: wait for ever, even for nodes that never come."""

    def __post_init__(self) -> None:
        if min(self.max_hours, self.max_nodes, self.idle_minutes) < 0:
            raise UserError("need --max-hours, --max-nodes and --idle-minutes of 0 or more")

    def overrun(self, began: float) -> str:
        """Why a job that began at `began`, on the monotonic clock, must stop; "" if it need not."""
        now = time.monotonic()
        if self.max_hours and now - began >= 3600 * self.max_hours:
            return f"it reached --max-hours {self.max_hours:g}"
        last, what = progress.last_sign()
        if self.idle_minutes and now - max(last, began) >= 60 * self.idle_minutes:
            return f"it made no progress for --idle-minutes {self.idle_minutes:g} after {what or 'the start'}"
        return ""


UNLIMITED = Budget()


class Stopped(KeyboardInterrupt):
    """The job was told to stop, which is treated like Ctrl-C. str() says why."""


@contextmanager
def within(budget: Budget) -> Iterator[None]:
    """Ends a block of the main thread with `Stopped` when the budget is used up or SIGTERM comes.

    Kubernetes, `ray job stop` and the loss of a spot machine announce themselves by SIGTERM.
    """
    began, why = time.monotonic(), ["it got SIGTERM"]
    is_over, is_told = threading.Event(), threading.Event()

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not interrupt the way out
        is_told.set()
        raise KeyboardInterrupt

    def watch() -> None:
        while not is_over.wait(1.0):
            if overrun := budget.overrun(began):
                why.append(overrun)
                os.kill(os.getpid(), signal.SIGTERM)  # wakes the main thread, whatever it waits for
                return

    earlier = signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=watch, daemon=True, name="budget").start()
    try:
        yield
    except KeyboardInterrupt as error:  # Ray may have raised another one in its place
        if is_told.is_set():
            raise Stopped(why[-1]) from error
        raise
    finally:
        is_over.set()
        signal.signal(signal.SIGTERM, earlier)


def tell_wait(who: str, needed: Mapping[str, float]) -> None:
    """Says on stderr which of the `needed` resources, by name, the cluster does not have yet."""
    import ray

    there = ray.cluster_resources()
    for name, num in needed.items():
        if num > there.get(name, 0):
            print(
                f"{who} needs {num:g} {name}s, the cluster has {there.get(name, 0):g}: waiting for it to grow.",
                file=sys.stderr,
            )


class Growth:
    """The size of a cluster, and the size that a job may grow it to. Updated during a `demand`.

    Args:
        max_nodes: as in the budget.
        on_gpu: whether some new nodes shall have a GPU: a quarter of them, and at least one if there is none.
    """

    def __init__(self, max_nodes: int = 0, on_gpu: bool = False) -> None:
        self.max_nodes, self.on_gpu = max_nodes, on_gpu
        self.max_gpus = 0
        self.look()
        if on_gpu:
            self.max_gpus = max(1, self.gpus + self.num_to_come // 4) if max_nodes else sys.maxsize
            self.look()

    def look(self) -> None:
        """Updates the numbers from the cluster's state."""
        import ray

        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        sizes = [int(node["CPU"]) for node in alive if node.get("CPU")]  # a head without CPUs does not work
        self.cpus, self.num_working = sum(sizes), len(sizes)
        self.gpus = int(sum(node.get("GPU", 0) for node in alive))
        self.num_to_come = max(0, self.max_nodes - len(alive))
        # A request for one CPU brings a node of unknown size; the next look will see it.
        num_with_cpus = max(0, self.num_to_come - max(0, self.max_gpus - self.gpus))
        self.max_cpus = self.cpus + num_with_cpus * min(sizes, default=1) if self.max_nodes else sys.maxsize

    def cpus_wanted(self, num_videos: int) -> int:
        """CPUs, present or to come, that so many videos would keep busy."""
        return max(1, min(-(-num_videos // VIDEOS_PER_CPU), self.max_cpus, MAX_CPUS))

    def cpus_for(self, num_videos: int) -> int:
        """CPUs among which work on so many videos should be divided."""
        return max(self.cpus, self.cpus_wanted(num_videos))

    def tasks_for(self, needed: Mapping[str, float]) -> int:
        """Most tasks to run at once, if each needs these resources and may bring a node."""
        import ray

        if not self.max_nodes:
            return sys.maxsize
        self.look()
        there = ray.cluster_resources()
        fitting = min(int(there.get(name, 0) // num) for name, num in needed.items() if num)
        return max(1, fitting + self.num_to_come)

    def actors_for(self, num_videos: int) -> tuple[int, int]:
        """Number of actors with networks, one per GPU or per node: at the start, and at most."""
        if self.on_gpu:
            now, most = self.gpus, self.max_gpus
        else:
            now, most = self.num_working, self.num_working + self.num_to_come if self.max_nodes else sys.maxsize
        return max(1, now), max(1, now, min(num_videos // VIDEOS_PER_ACTOR, most))


@contextmanager
def demand(growth: Growth, num_videos: int) -> Iterator[None]:
    """Asks the autoscaler, if any, for the CPUs that so many videos can use; withdraws the request at the end.

    The request of a killed job does not last: Ray Data overwrites it every 20 s.
    """
    from ray.autoscaler.sdk import request_resources

    is_over = threading.Event()

    def ask() -> None:
        num_requested, wait_s = 0, 0.0
        while not is_over.wait(wait_s):
            wait_s = LOOK_EVERY_S
            try:
                growth.look()
                if num_requested or growth.cpus_wanted(num_videos) > growth.cpus:
                    num_requested = growth.cpus_wanted(num_videos)
                    request_resources(bundles=[{"CPU": 1}] * num_requested)
            except Exception as error:  # only a wish: the job goes on without it
                print(f"raydistal: could not ask the cluster to grow: {error}", file=sys.stderr)
        if num_requested:
            request_resources(bundles=[])

    tell_wait("the job", {"CPU": 1, "GPU": int(growth.on_gpu)})
    thread = threading.Thread(target=ask, daemon=True, name="demand")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
