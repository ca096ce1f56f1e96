"""Minutes of chaos: extract, train and search run on a cluster of several nodes while whatever can die is killed.

    python -m tests.faults.soak --minutes 5 --seed 0

The three verbs run side by side, each as a user would run it: the same command again until it ends well, then the next
round in another folder. Meanwhile drivers, workers, actors and nodes are killed, once the head with all there is. When
the time is up everything may end, and what it left is held against runs that nobody disturbed: nothing is lost,
nothing is there twice, nothing else lies about. The log goes to stderr, a summary in JSON to stdout; exit code 0 if all
is well. The seed decides the order of the blows; when they fall on what depends on the machine.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raydistal import schemas, tables
from tests.conftest import write_clip, write_faces
from tests.faults.conftest import PROGRAM, TINY, Arena, Program, free_ports, is_listening

NUM_VIDEOS, NUM_CLIPS = 120, 12
EPOCHS = 8
NETWORK = ["--architecture", "timm:test_resnet", "--weights", "random", "--recipe", "finetune", "--input-px", "32"]
SPACE = ["data=0.5,1", "prune=0,0.3"]
SEEDS = 2
NUM_NODES = 2  # beside the head
PAUSE_S = (4.0, 20.0)  # between blows
PATIENCE_S = 900  # for what is left when the blows end
# 1: its cluster died; 3: SIGTERM, and by that signal itself before it listened. 2 would refuse a command that is right.
ALLOWED = {0, 1, 3, -signal.SIGKILL, -signal.SIGTERM}
BLOWS = {"SIGKILL driver": 3, "SIGTERM driver": 2, "SIGKILL process": 6, "SIGKILL node": 2, "SIGTERM node": 2}
RAYLET = "raylet/raylet"  # its program
# What of a row must be the same to the bit. Features are computed in batches of whichever videos come together.
EXACT = ["video_id", "status", "error", "num_frames_seen", "frame_index", "pts_s", "box_xyxy_px", "detection_score"]
TRIAL = ["trial", "status", "error", "seed", "set", "data", "prune", "bits", "accuracy", "auc", "loss", "num_params"]
TRIAL += ["macs", "epochs", "images"]


@dataclass
class Job:
    """A verb whose command is started until it ends well, round after round."""

    verb: str
    command: list[str]
    is_done: Callable[[Path], bool]
    folder: Path
    program: Program | None = None
    finished: list[Path] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    @property
    def out(self) -> Path:
        """Of the round that runs."""
        return self.folder / f"round{len(self.finished)}"


class Soak:
    """The cluster, the jobs on it, and the blows."""

    def __init__(self, arena: Arena, seed: int) -> None:
        self.arena, self.random, self.began = arena, random.Random(seed), time.monotonic()
        del arena.environment["RAY_OVERRIDE_RESOURCES"]
        self.port = free_ports(1)[0]
        self.head: Program | None = None
        self.nodes: list[Program] = []
        self.blows: collections.Counter[str] = collections.Counter()
        self.trouble: list[str] = []

    def log(self, line: str) -> None:
        """One line, with the time."""
        print(f"{time.monotonic() - self.began:6.1f} s  {line}", file=sys.stderr, flush=True)

    # --- the cluster

    def start_cluster(self) -> None:
        """The head and the nodes that should be there."""
        options = ("--head", f"--port={self.port}", "--num-cpus=1", f"--temp-dir={self.arena.folder}")
        self.head = self._start_node(
            *options, "--include-dashboard=false", f"--ray-client-server-port={free_ports(1)[0]}"
        )
        self.head.until(lambda: is_listening(self.port))
        self.add_nodes()

    def add_nodes(self) -> None:
        """In place of those that are gone."""
        self.nodes = [node for node in self.nodes if node.poll() is None]
        while len(self.nodes) < NUM_NODES:
            self.nodes.append(self._start_node(f"--address=127.0.0.1:{self.port}", "--num-cpus=2"))
            self.log(f"node {self.nodes[-1].pid} joins")

    def _start_node(self, *options: str) -> Program:
        size = ("--object-store-memory=120000000", f"--dashboard-agent-listen-port={free_ports(1)[0]}")
        return self.arena.start("nice", "ray", "start", "--block", *options, *size)

    def kill_node(self, node: Program) -> None:
        """With all its workers; its raylet first, so that nothing is done again there."""
        lines, pids = self.arena.processes(), descendants(node)
        self.arena.kill(sorted(pids, key=lambda pid: RAYLET not in lines.get(pid, "")))
        node.wait()

    # --- the jobs

    def tend(self, jobs: Sequence[Job], is_last: bool) -> bool:
        """Starts what ended before its time again, and next rounds unless `is_last`; says whether anything runs."""
        for job in jobs:
            if job.program is not None:
                if job.program.poll() is None:
                    continue
                self._end(job, job.program)
            if not is_last or not job.finished or job.out.exists():
                code = PROGRAM.format(videos_per_part=2, beat_s=tables.BEAT_S)
                command = (sys.executable, "-c", code, *job.command, "--out", str(job.out))
                job.program = self.arena.start("nice", *command, RAY_ADDRESS=f"127.0.0.1:{self.port}")
        return any(job.program is not None for job in jobs)

    def _end(self, job: Job, program: Program) -> None:
        code = program.poll()
        told = program.err_path.read_text().strip()
        job.program = None
        job.codes.append(code)
        self.log(f"{job.verb} {job.out.name} ended with {code}: {told[-300:].splitlines()[-1:]}")
        if code not in ALLOWED:
            self.trouble.append(f"{job.verb} ended with {code}: {told[-3000:]}")
        if code == 0 and job.is_done(job.out):
            job.finished.append(job.out)

    # --- the blows

    def strike(self, jobs: Sequence[Job]) -> None:
        """One at random."""
        (kind,) = self.random.choices(list(BLOWS), list(BLOWS.values()))
        how, whom = kind.split()
        sign = getattr(signal, how)
        if whom == "driver":
            running = {job.verb: job.program for job in jobs if job.program and job.program.poll() is None}
            victims = {f"of {verb}": program.pid for verb, program in running.items()}
        elif whom == "node":
            victims = {
                f"raylet {pid}": pid for pid, line in self.arena.processes().items() if self._is_raylet(pid, line)
            }
        else:  # Ray names a worker after what it does; without its agents a node ends
            lines = self.arena.processes().items()
            workers = {f"{line.split()[0]} {pid}": pid for pid, line in lines if line.startswith("ray::")}
            workers = {name: pid for name, pid in workers.items() if "Agent" not in name}
            victims = {name: pid for name, pid in workers.items() if "IDLE" not in name} or workers
        if not victims:
            return
        name = self.random.choice(sorted(victims))
        self.count(kind, name)
        node = next((node for node in self.nodes if whom == "node" and victims[name] in descendants(node)), None)
        if node and sign == signal.SIGKILL:
            self.kill_node(node)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victims[name], sign)

    def _is_raylet(self, pid: int, line: str) -> bool:
        return RAYLET in line.split(" ")[0] and any(pid in descendants(node) for node in self.nodes)

    def lose_head(self, jobs: Sequence[Job]) -> None:
        """Everything goes down with it and comes up again."""
        self.count("SIGKILL head", "and all there is")
        self.arena.kill(self.arena.processes())
        for program in self.arena.programs:
            program.wait()
        for job in jobs:
            if job.program:
                self._end(job, job.program)
        self.start_cluster()

    def count(self, kind: str, whom: str) -> None:
        """A blow."""
        self.blows[kind] += 1
        self.log(f"{kind} {whom}")

    # --- from start to end

    def run(self, jobs: Sequence[Job], minutes: float) -> None:
        """Chaos for so many minutes, then as long as it takes until each has ended well at least once."""
        self.start_cluster()
        began = time.monotonic()
        end, head_dies = (began + 60 * minutes * share for share in (1, self.random.uniform(0.3, 0.7)))
        strike = began + PAUSE_S[1]
        while (now := time.monotonic()) < end and not self.trouble:
            self.tend(jobs, is_last=False)
            if now > head_dies:
                head_dies = float("inf")
                self.lose_head(jobs)
            elif now > strike:
                self.add_nodes()
                self.strike(jobs)
                strike = now + self.random.uniform(*PAUSE_S)
            time.sleep(0.2)
        self.log("the blows are over")
        self.add_nodes()
        self.finish(jobs)

    def finish(self, jobs: Sequence[Job]) -> None:
        """Lets all that was begun come to its end."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.trouble and self.tend(jobs, is_last=True):
            if self.head and self.head.poll() is not None:
                self.trouble.append(f"the head died: {self.head.err_path.read_text()[-3000:]}")
            if time.monotonic() > deadline:
                logs = {job.verb: job.program.err_path.read_text()[-3000:] for job in jobs if job.program}
                self.trouble.append(f"not ended after {PATIENCE_S} s: {logs}")
            time.sleep(0.2)


def descendants(program: Program) -> list[int]:
    """Of a program, itself first; [] if it has ended."""

    def below(pid: int) -> list[int]:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            tasks = [task.read_text().split() for task in Path(f"/proc/{pid}/task").glob("*/children")]
            return [pid, *(one for task in tasks for child in task for one in below(int(child)))]
        return []

    return below(program.pid) if program.poll() is None else []


# --- what is run, and what must come of it


def make_jobs(arena: Arena) -> list[Job]:
    """With their data."""
    clips = [write_clip(arena.folder / f"clip{n}.mp4", num_frames=12, seed=n) for n in range(NUM_CLIPS)]
    uris = [str(clips[number % NUM_CLIPS]) for number in range(NUM_VIDEOS)]
    names = [f"v{number:04}" for number in range(NUM_VIDEOS)]
    same = {"dataset": ["test"] * NUM_VIDEOS, "split": ["pool"] * NUM_VIDEOS, "group_id": names}
    videos = schemas.conform(pa.table({"video_id": names, "uri": uris, **same}), schemas.VIDEOS)
    manifest, data = arena.folder / "videos", arena.folder / "data"
    tables.write_table(str(manifest), videos, {})
    write_faces(data)
    ranking = tables.read_table(str(data / "videos"), "index", ["video_id", "label", "split"])
    ranking = ranking.filter(pa.compute.equal(ranking["split"], "train")).drop_columns(["split"])
    ranks = {"num_representative": pa.array([1] * len(ranking)), "rank": pa.array(range(len(ranking)))}
    for name, column in ranks.items():
        ranking = ranking.append_column(name, column)
    tables.write_table(str(data / "ranking"), schemas.conform(ranking, schemas.RANKING), {"arrange": "frequency"})
    learn = ["--data", str(data), *NETWORK]
    search = ["search", *learn, "--epochs", "3", "--prune-steps", "1", "--finetune-epochs", "1"]
    commands: dict[str, list[str]] = {
        "extract": ["extract", "--manifest", str(manifest), *TINY],
        "train": ["train", *learn, "--epochs", str(EPOCHS), "--num-workers", "1"],
        "search": [*search, "--seeds", str(SEEDS), "--space", *SPACE],
    }
    is_done: dict[str, Callable[[Path], bool]] = {
        "extract": lambda out: bool(tables.read_info(f"{out}/faces")),
        "train": lambda out: (out / "detector.json").exists(),
        "search": lambda out: all(row["status"] == "ok" for row in rows_of(out / "trials")),  # failed: again
    }
    return [Job(verb, command, is_done[verb], arena.folder / verb) for verb, command in commands.items()]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Of all parts, also of those that should not be there."""
    return [row for part in sorted(folder.glob("*.parquet")) for row in pq.read_table(part).to_pylist()]


def differences(verb: str, out: Path, whole: Path) -> Iterator[str]:
    """What is wrong with a round, held against a run that nobody disturbed."""
    for path in sorted(out.rglob("*")):
        if path.name in (tables.LOCK, "checkpoint.pt", "ray-train", "ray-tune") or path.name.startswith(".tmp-"):
            yield f"{path} was left behind"
    if verb == "train":
        yield from _train_differences(out, whole)
        return
    folder, key, names = ("faces", "video_id", EXACT) if verb == "extract" else ("trials", "trial", TRIAL)
    here, there = ({row[key]: row for row in rows_of(place / folder)} for place in (out, whole))
    if len(rows := rows_of(out / folder)) != len(here):
        yield f"{len(rows) - len(here)} rows of {out} are there twice"
    if here.keys() != there.keys():
        lost, strange = sorted(there.keys() - here.keys()), sorted(here.keys() - there.keys())
        yield f"{out} lost the rows {lost} and has {strange}, which should not be there"
        return
    for name, row in here.items():
        if differing := [column for column in names if row[column] != there[name][column]]:
            yield f"{name} of {out} differs in {differing}: {[(row[c], there[name][c]) for c in differing]}"
        if verb == "extract":
            if row["crop"] != there[name]["crop"]:
                yield f"{name} of {out} has other crops"
            if not np.allclose(row["feature"], there[name]["feature"], rtol=0.02, atol=0.01):
                yield f"{name} of {out} has other features"


def _train_differences(out: Path, whole: Path) -> Iterator[str]:
    about, expected = (json.loads((place / "detector.json").read_text()) for place in (out, whole))
    if [row["epoch"] for row in about["history"]] != list(range(EPOCHS)):
        yield f"{out} has the epochs {[row['epoch'] for row in about['history']]}"
    spent = {"seconds", "num_workers"}
    for row, other in zip(about["history"], expected["history"], strict=False):
        if differing := [name for name in row if name not in spent and row[name] != other[name]]:
            yield f"epoch {row['epoch']} of {out} differs in {differing}"
    if (out / "weights.safetensors").read_bytes() != (whole / "weights.safetensors").read_bytes():
        yield f"{out} has other weights"


def main() -> None:
    """Soaks; exit code 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5, help="how long there are blows")
    parser.add_argument("--seed", type=int, default=0, help="of their order")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # by way of the end of the arena
    arena = Arena()
    try:
        soak = Soak(arena, asked.seed)
        jobs = make_jobs(arena)
        soak.run(jobs, asked.minutes)
        soak.log("runs that nobody disturbs, to compare with")
        whole = [
            dataclasses.replace(job, folder=arena.folder / "whole" / job.verb, finished=[], codes=[]) for job in jobs
        ]
        soak.finish(whole)
        if not soak.trouble:
            for job, undisturbed in zip(jobs, whole, strict=True):
                for out in job.finished:
                    soak.trouble += differences(job.verb, out, undisturbed.finished[0])
    finally:
        arena.end()
    codes = {job.verb: dict(collections.Counter(map(str, job.codes))) for job in jobs}
    rounds = {job.verb: len(job.finished) for job in jobs}
    told = {"minutes": asked.minutes, "seed": asked.seed, "blows": soak.blows, "rounds": rounds, "exit_codes": codes}
    print(json.dumps(told | {"trouble": soak.trouble}))
    sys.exit(1 if soak.trouble else 0)


if __name__ == "__main__":
    main()
