"""What `raydistal plan` predicts for a job, against the job itself."""

import tempfile
from typing import Any

from rich.console import Console

from benchmarks.clips import describe, make_clips
from benchmarks.extractors import FACES, SAMPLE, Video, by_raydistal, cluster, features_by, videos_of, write_videos
from benchmarks.measure import Ratio
from raydistal.pipelines import plan
from raydistal.pipelines.extract import Features

TARGET = 1.3  # within 30 %, too much or too little


def run(
    console: Console,
    *,
    size: str,
    num_clips: int,
    num_videos: int,
    num_tried: int,
    seconds: float = 10,
    backbone: str = "vgg16",
) -> list[Ratio]:
    """`num_clips` files take turns as `num_videos` videos, of which `num_tried` are tried for the plan."""
    paths = make_clips(size, 48, num_clips, seconds)
    videos, features = videos_of(paths, num_videos), features_by(backbone)
    predicted = by_plan(videos, features, num_tried)
    few, all_ = by_raydistal(videos[: num_videos // 4], features), by_raydistal(videos, features)
    # CPU time of the start of all processes is in both runs, and not in the plan.
    real_cpu_s = num_videos * (all_.cpu_s - few.cpu_s) / (num_videos - num_videos // 4)
    cpu_s = 3600 * predicted["overhead"] * (predicted["cpu_hours"]["look_busy"] + predicted["cpu_hours"]["features"])
    here = predicted["here"]
    console.print(
        f"plan: {num_videos} videos in turn from {describe(paths)}; features by {backbone}. From {num_tried} of them: "
        f"{here['wall_s']:.0f} s ({here['low_s']:.0f} to {here['high_s']:.0f}), of which {predicted['startup_s']:.0f} "
        f"are the start, and {cpu_s:.0f} CPU s. Really: {all_.wall_s:.0f} s and {real_cpu_s:.0f} CPU s, with the start "
        f"{all_.cpu_s:.0f}. A quarter of them: {few.wall_s:.0f} s"
    )
    what = f"{num_videos} videos, {{}} time of extract, predicted : real"
    return [
        Ratio("plan", what.format("wall"), off(here["wall_s"], all_.wall_s), TARGET),
        Ratio("plan", what.format("CPU"), off(cpu_s, real_cpu_s), TARGET),
    ]


def off(predicted_s: float, real_s: float) -> float:
    """The factor by which a prediction is off, in either direction: at least 1."""
    return max(predicted_s / real_s, real_s / predicted_s)


def by_plan(videos: list[Video], features: Features, num_tried: int) -> dict[str, Any]:
    """The summary of the plan, on a fresh cluster."""
    with tempfile.TemporaryDirectory() as out, cluster():
        write_videos(videos, out)
        return plan.run(plan.Config(out=out, num_videos=num_tried, sample=SAMPLE, faces=FACES, features=features))
