"""The script that most people would write (naive_script.py), against raydistal on the same clips: CPU per video."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.clips import describe, make_clips
from benchmarks.extractors import by_raydistal, features_by, videos_of
from benchmarks.measure import Ratio

TARGET = 5.0
SCRIPT = Path(__file__).with_name("naive_script.py")


def run(
    console: Console,
    *,
    sizes: tuple[str, ...],
    num_clips: int,
    num_videos: int,
    seconds: float = 10,
    backbone: str = "vgg16",
) -> list[Ratio]:
    """The script does each of `num_clips` files once, raydistal does them in turn as `num_videos` videos."""
    ratios = []
    for size in sizes:
        paths = make_clips(size, 48, num_clips, seconds)
        script_s = by_script(paths) / num_clips
        raydistal_s = by_raydistal(videos_of(paths, num_videos), features_by(backbone)).cpu_s / num_videos
        console.print(
            f"naive: {describe(paths)}; the script takes {script_s:.2f} CPU s per video, "
            f"raydistal {raydistal_s:.2f} with its start spread over {num_videos}"
        )
        what = f"{size}, CPU of the naive script against raydistal"
        ratios.append(Ratio("naive", what, script_s / raydistal_s, TARGET, at_most=False))
    return ratios


def by_script(paths: list[Path]) -> float:
    """CPU seconds, without imports and without loading the network. One torch thread: waiting threads would count."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, str(SCRIPT), f"{out}/features.npy", *map(str, paths)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout)
