"""A verdict on a clip, with and without drawing the video again, against the bare decode of all its frames.

CPU time of this process and its children, one thread each; the detector's part is in it.
"""

import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.clips import describe, make_clips
from benchmarks.decode import decode_everything
from benchmarks.measure import Cost, Ratio, clock
from benchmarks.serve import make_detector
from raydistal.detector import checkpoint, scoring
from raydistal.verdict import annotate, examine

TARGETS = {"judged": 5.0, "judged and drawn": 12.0}  # times the decode


def run(
    console: Console,
    *,
    size: str,
    num_clips: int,
    seconds: float = 10,
    rounds: int = 3,
    architecture: str = "efficientnet_b0",
) -> list[Ratio]:
    """`faces found` is judged by no network, and `encoded again` the least that a video drawn on costs: no faces."""
    paths = make_clips(size, 48, num_clips, seconds)
    torch.set_num_threads(1)
    costs: dict[str, list[Cost]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        make_detector(f"{folder}/detector", architecture)
        model, about = checkpoint.load(f"{folder}/detector")
        judge = examine.Judge("detector", about, scoring.Scorer(model))
        blind = judge._replace(score=lambda crops_NHWC: np.full(len(crops_NHWC), 0.5, np.float32))
        methods: dict[str, Callable[[str], None]] = {
            "decoded": decode_everything,
            "encoded again": partial(encode_again, folder),
            "faces found": partial(judge_one, blind, folder, False),
            "judged": partial(judge_one, judge, folder, False),
            "judged and drawn": partial(judge_one, judge, folder, True),
        }
        for method in methods.values():  # starts the children
            method(str(paths[0]))
        for _ in range(rounds):
            for path in map(str, paths):
                for name, method in methods.items():
                    with clock() as cost:
                        method(path)
                    costs[name].append(cost)
    console.print(f"verdicts: {describe(paths)}; looked at 4 times a second and even:20; {architecture}")
    table = Table("", "CPU s", "wall s", "times the decode, CPU", title="verdicts")
    cpu_s = {name: statistics.median(cost.cpu_s for cost in of_name) for name, of_name in costs.items()}
    for name, of_name in costs.items():
        wall_s = statistics.median(cost.wall_s for cost in of_name)
        table.add_row(name, f"{cpu_s[name]:.2f}", f"{wall_s:.2f}", f"{cpu_s[name] / cpu_s['decoded']:.1f}")
    console.print(table)
    return [
        Ratio("verdicts", f"{size}, CPU, {name} : decoded", cpu_s[name] / cpu_s["decoded"], target)
        for name, target in TARGETS.items()
    ]


def encode_again(folder: str, path: str) -> None:
    """As `annotate` does it, with nothing to draw."""
    for _ in annotate.annotate(path, f"{folder}/again.mp4", []):
        pass


def judge_one(judge: examine.Judge, folder: str, draw: bool, path: str) -> None:
    """As `raydistal detect` does it."""
    for _ in examine.examine(path, "clip", f"{folder}/result", judge, examine.Settings(draw=draw)):
        pass
