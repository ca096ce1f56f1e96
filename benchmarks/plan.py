"""What `raydistal plan` says of a job, against the job."""

import tempfile
from typing import Any

import pyarrow as pa
from rich.console import Console

from benchmarks.clips import describe, make_clips
from benchmarks.extractors import FACES, SAMPLE, Video, by_raydistal, cluster, features_by, videos_of
from benchmarks.measure import Ratio
from raydistal import schemas, tables
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
    told = by_plan(videos, features, num_tried)
    few, all_ = by_raydistal(videos[: num_videos // 4], features), by_raydistal(videos, features)
    # CPU time of the start of all processes is in both runs, and not in the plan.
    real_cpu_s = num_videos * (all_.cpu_s - few.cpu_s) / (num_videos - num_videos // 4)
    cpu_s = 3600 * told["overhead"] * (told["cpu_hours"]["look_busy"] + told["cpu_hours"]["features"])
    here = told["here"]
    console.print(
        f"plan: {num_videos} videos in turn from {describe(paths)}; features by {backbone}. From {num_tried} of them: "
        f"{here['wall_s']:.0f} s ({here['low_s']:.0f} to {here['high_s']:.0f}), of which {told['startup_s']:.0f} are "
        f"the start, and {cpu_s:.0f} CPU s. Really: {all_.wall_s:.0f} s and {real_cpu_s:.0f} CPU s, with the start "
        f"{all_.cpu_s:.0f}. A quarter of them: {few.wall_s:.0f} s"
    )
    return [
        Ratio(
            "plan", f"{num_videos} videos, wall time of extract, told : real", off(here["wall_s"], all_.wall_s), TARGET
        ),
        Ratio("plan", f"{num_videos} videos, CPU time of extract, told : real", off(cpu_s, real_cpu_s), TARGET),
    ]


def off(told_s: float, real_s: float) -> float:
    """How far off, whichever is larger: at least 1."""
    return max(told_s / real_s, real_s / told_s)


def by_plan(videos: list[Video], features: Features, num_tried: int) -> dict[str, Any]:
    """The summary of the plan, on a fresh cluster."""
    video_ids, paths = zip(*videos, strict=True)
    columns = {"video_id": video_ids, "uri": paths, "group_id": video_ids}
    columns |= {"dataset": ("synthetic",) * len(videos), "split": ("pool",) * len(videos)}
    with tempfile.TemporaryDirectory() as out, cluster():
        tables.write_table(f"{out}/videos", schemas.conform(pa.table(columns), schemas.VIDEOS), {})
        return plan.run(plan.Config(out=out, num_videos=num_tried, sample=SAMPLE, faces=FACES, features=features))
