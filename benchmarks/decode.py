"""Sparse decode of 10 of 300 frames, against decoding everything and converting nothing. CPU time, one thread."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.clips import describe, make_clips
from benchmarks.measure import Ratio, in_turns
from raydistal.video.decode import decode_frames, read_index
from raydistal.video.sampling import Sampling

TARGET = 0.65
SAMPLES = ("even:10", "random:10")

Frames = list[npt.NDArray[Any]]  # (H, W, 3) RGB uint8, in order
Wanted = npt.NDArray[np.int64]


def run(console: Console, *, sizes: tuple[str, ...], seconds: float = 10, rounds: int = 5) -> list[Ratio]:
    """One clip for each size and distance of key frames (GOP)."""
    table = Table("clip", "frames", "method", "CPU ms", "ratio", "exact", "mean error", title="decode")
    ratios = {}
    for size in sizes:
        for gop in (250, 48):
            paths = make_clips(size, gop, 1, seconds)
            console.print(f"decode: {describe(paths)}, GOP {gop}")
            path = str(paths[0])
            pts_s_N = read_index(path).pts_s_N
            wanted = {sample: Sampling.parse(sample).pick(pts_s_N, path) for sample in SAMPLES}
            calls = {
                (sample, name): partial(method, path, wanted[sample])
                for sample in SAMPLES
                for name, method in methods(path).items()
            }
            everything: dict[tuple[str, str], Callable[[], Any]] = {("all", ""): partial(decode_everything, path)}
            cost_s = in_turns(rounds, everything | calls)
            whole_s = cost_s["all", ""]
            table.add_row(f"{size} GOP {gop}", "all", "everything", f"{1000 * whole_s:.0f}", "1.00")
            for (sample, name), call in calls.items():
                ratio = cost_s[sample, name] / whole_s
                exact, difference = compare(call(), full_decode(path, wanted[sample]))
                cells = (f"{1000 * cost_s[sample, name]:.0f}", f"{ratio:.2f}", exact, f"{difference:.2f}")
                table.add_row("", sample, name, *cells)
                if name == "raydistal":
                    ratios[f"{size} GOP {gop} {sample}"] = ratio
    console.print(table)
    worst = max(ratios, key=lambda name: ratios[name])
    return [Ratio("decode", f"CPU, worst of {len(ratios)} ({worst})", ratios[worst], TARGET)]


def methods(path: str) -> dict[str, Callable[[str, Wanted], Frames]]:
    """What gives the wanted frames of a file; `path` is one to try it on."""
    found: dict[str, Callable[[str, Wanted], Frames]] = {"raydistal": by_raydistal, "OpenCV": by_opencv}
    try:
        by_torchcodec(path, np.array([0]))
    except (ImportError, RuntimeError):  # not installed, or no FFmpeg that it can load
        return found
    return found | {"torchcodec": by_torchcodec}


def decode_everything(path: str) -> None:
    """The bound: PyAV decodes every frame, and nothing is done with it."""
    with av.open(path) as container:
        container.streams.video[0].thread_count = 1
        for _ in container.decode(video=0):
            pass


def full_decode(path: str, wanted_K: Wanted) -> Frames:
    """The reference: a full decode, its wanted frames converted."""
    with av.open(path) as container:
        pictures = enumerate(container.decode(video=0))
        return [picture.to_ndarray(format="rgb24") for number, picture in pictures if number in wanted_K]


def by_raydistal(path: str, wanted_K: Wanted) -> Frames:
    return [frame.rgb() for frame in decode_frames(path, read_index(path), wanted_K)]


def by_opencv(path: str, wanted_K: Wanted) -> Frames:
    """Grabs frame after frame, retrieves those wanted: faster than seeking."""
    capture, frames = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1]), []
    for number in range(int(wanted_K[-1]) + 1):
        capture.grab()
        if number in wanted_K:
            frames.append(cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB))
    capture.release()
    return frames


def by_torchcodec(path: str, wanted_K: Wanted) -> Frames:
    torch.set_num_threads(1)  # for a handful of frames the others only spin
    decoders: Any = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(path, seek_mode="exact", num_ffmpeg_threads=1, dimension_order="NHWC")
    return list(decoder.get_frames_at(wanted_K.tolist()).data.numpy())


def compare(frames: Frames, reference: Frames) -> tuple[str, float]:
    """How many frames are the same to the last bit, and the mean absolute difference of all."""
    assert len(frames) == len(reference)
    num_exact = sum(np.array_equal(frame, other) for frame, other in zip(frames, reference, strict=True))
    difference = np.mean([cv2.absdiff(frame, other).mean() for frame, other in zip(frames, reference, strict=True)])
    return f"{num_exact}/{len(frames)}", float(difference)
