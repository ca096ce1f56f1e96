"""The clips that are measured: SYNTHETIC talking heads, made once and kept in bench-data/.

10 s at 30 frames per second, x264 medium, crf 23, at most 3 B-frames in a row. The drawn room is still, where filmed
ones move and grain, so noise is set to make up for it: bitrates come out near those of published data sets (`describe`
says what they are).
"""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import av

from raydistal.datasets.synthetic import write_video

FOLDER = Path("bench-data")
SIZES = {"480p": (854, 480), "1080p": (1920, 1080)}
NOISE = 4.0  # grey levels


def make_clips(size: str, gop: int, num_clips: int, seconds: float = 10) -> list[Path]:
    """Paths of `num_clips` clips of different people; those that are not there yet are made, one process per CPU."""
    paths = [FOLDER / f"{size}_gop{gop}_{seconds:g}s_{identity}.mp4" for identity in range(num_clips)]
    missing = [(identity, path) for identity, path in enumerate(paths) if not path.exists()]
    if missing:
        print(f"making {len(missing)} clips in {FOLDER}/", file=sys.stderr)
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
            list(pool.map(partial(_make, SIZES[size], gop, seconds), *zip(*missing, strict=True)))
    return paths


def _make(size_px: tuple[int, int], gop: int, seconds: float, identity: int, path: Path) -> None:
    width_px, height_px = size_px
    write_video(
        path,
        identity=identity,
        clip=identity,
        width_px=width_px,
        height_px=height_px,
        seconds=seconds,
        fps=30,
        noise=NOISE,
        gop=gop,
        preset="medium",
    )


def describe(paths: list[Path]) -> str:
    """One line: how many, size, length, codec, bitrate."""
    with av.open(str(paths[0])) as container:
        stream = container.streams.video[0]
        codec = stream.codec_context
        shape = f"{codec.width}x{codec.height} {codec.name}, {stream.frames} frames"
        seconds = (container.duration or 0) / av.time_base
    megabits_s = sum(path.stat().st_size for path in paths) * 8e-6 / len(paths) / seconds
    return f"{len(paths)} SYNTHETIC clips, {shape}, {seconds:g} s, {megabits_s:.2f} Mb/s"
