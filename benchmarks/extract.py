"""Whole extract on this machine, against plain processes without a framework, and against Daft."""

import importlib.util
import statistics
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.table import Table

from benchmarks.clips import describe, make_clips
from benchmarks.extractors import (
    NUM_PROCESSES,
    Video,
    by_daft,
    by_plain_processes,
    by_raydistal,
    features_by,
    videos_of,
)
from benchmarks.measure import Cost, Ratio
from raydistal.pipelines.extract import Features

NEAR_FREE = "timm:test_byobnet"  # some 4 ms a picture, against some 270 of VGG16
WALL_TARGET, CPU_TARGET = 1.3, 1.15


def run(
    console: Console,
    *,
    sizes: tuple[str, ...],
    num_clips: int,
    num_videos: int,
    seconds: float = 10,
    rounds: int = 3,
    backbone: str = "vgg16",
) -> list[Ratio]:
    """`num_clips` files of each size take turns as `num_videos` videos; `backbone` is the network that is not free.

    It is tried on the first size.
    """
    ratios = []
    for size in sizes:
        paths = make_clips(size, 48, num_clips, seconds)
        videos = videos_of(paths, num_videos)
        console.print(f"extract: {num_videos} videos in turn from {describe(paths)}, GOP 48")
        ratios += compare_wall(console, videos, size, rounds)
        if size == sizes[0]:
            ratios.append(compare_cpu(console, videos, backbone))
    return ratios


def compare_wall(console: Console, videos: list[Video], size: str, rounds: int) -> list[Ratio]:
    """With near-free features; Daft and raydistal start their workers within the time, the plain processes before."""
    plain = f"{NUM_PROCESSES} plain processes"
    ways: dict[str, Callable[[list[Video], Features], Cost]] = {
        plain: partial(by_plain_processes, num_processes=NUM_PROCESSES),
        "raydistal": by_raydistal,
    }
    if importlib.util.find_spec("daft"):
        ways["Daft"] = by_daft
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            costs[name].append(way(videos, features_by(NEAR_FREE)))
    wall_s = {name: statistics.median(cost.wall_s for cost in found) for name, found in costs.items()}
    table = Table("way", "wall s of each round", "wall, ratio", "CPU s", title=f"extract, features by {NEAR_FREE}")
    for name, found in costs.items():
        each = " ".join(f"{cost.wall_s:.1f}" for cost in found)
        cpu_s = statistics.median(cost.cpu_s for cost in found)
        table.add_row(name, each, f"{wall_s[name] / wall_s[plain]:.2f}", f"{cpu_s:.1f}")
    console.print(table)
    targets = {plain: WALL_TARGET, "Daft": 1.0}
    what = f"{len(videos)} {size} videos, wall against "
    peers = [name for name in ways if name in targets]
    return [Ratio("extract", what + peer, wall_s["raydistal"] / wall_s[peer], targets[peer]) for peer in peers]


def compare_cpu(console: Console, videos: list[Video], backbone: str) -> Ratio:
    """All of extract, against its stages in one plain process, measured before and after it on some of the videos."""
    some, features = videos[: -(-len(videos) // 4)], features_by(backbone)
    before = by_plain_processes(some, features, num_processes=1)
    few, all_ = by_raydistal(some, features), by_raydistal(videos, features)
    after = by_plain_processes(some, features, num_processes=1)
    bare_s, per_video_s = (before.cpu_s + after.cpu_s) / 2 / len(some), all_.cpu_s / len(videos)
    slope_s = (all_.cpu_s - few.cpu_s) / max(1, len(videos) - len(some))
    console.print(
        f"extract with {backbone}: {per_video_s:.2f} CPU s per video, that is {all_.cpu_s - slope_s * len(videos):.1f} "
        f"at the start of the job and {slope_s:.2f} for each video; the bare stages take {bare_s:.2f}"
    )
    what = f"{len(videos)} videos, {backbone}, CPU against bare stages"
    return Ratio("extract", what, per_video_s / bare_s, CPU_TARGET)
