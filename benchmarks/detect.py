"""The largest face of each of 10 frames of a clip, against a search at full resolution. CPU time, one thread."""

import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.clips import describe, make_clips
from benchmarks.measure import Ratio, in_turns
from raydistal.faces.detect import Boxes, Haar, LargestFace
from raydistal.video.decode import Frame, decode_frames, read_index
from raydistal.video.sampling import Sampling

TARGET, IOU_TARGET = 1 / 20, 0.8
CASCADE = Path(cv2.__file__).with_name("data") / "haarcascade_frontalface_alt2.xml"  # the one that raydistal uses

Faces = list[Boxes | None]  # xyxy of each frame's largest face


def run(console: Console, *, size: str, num_clips: int, seconds: float = 10, rounds: int = 3) -> list[Ratio]:
    """Decoding is not counted."""
    paths = make_clips(size, 48, num_clips, seconds)
    console.print(f"detect: {describe(paths)}, frames even:10")
    haar, cascade = Haar(), cv2.CascadeClassifier(str(CASCADE))
    table = Table(
        "clip", "raydistal, ms per frame", "full resolution", "ratio", "IoU of the largest face", title="detect"
    )
    ratios, ious = [], []
    for path in map(str, paths):
        index = read_index(path)
        frames = list(decode_frames(path, index, Sampling.parse("even:10").pick(index.pts_s_N, path)))
        quickly, thoroughly = partial(find_quickly, haar, frames), partial(find_thoroughly, cascade, frames)
        cost_s = in_turns(rounds, {"raydistal": quickly, "full": thoroughly})
        ratios.append(cost_s["raydistal"] / cost_s["full"])
        clip_ious = [iou(box_4, other_4) for box_4, other_4 in zip(quickly(), thoroughly(), strict=True)]
        ious += clip_ious
        per_frame = [f"{1000 * cost / len(frames):.1f}" for cost in cost_s.values()]
        table.add_row(Path(path).name, *per_frame, f"{ratios[-1]:.4f}", " ".join(f"{value:.2f}" for value in clip_ious))
    console.print(table)
    same = float(np.mean(np.array(ious) >= IOU_TARGET))
    return [
        Ratio("detect", f"{size}, CPU, median of the clips", statistics.median(ratios), TARGET),
        Ratio("detect", f"{size}, least IoU with the full search", min(ious), IOU_TARGET, at_most=False),
        Ratio("detect", f"{size}, share of frames with IoU >= {IOU_TARGET}", same, 1.0, at_most=False),
    ]


def find_quickly(haar: Haar, frames: list[Frame]) -> Faces:
    """As extract does it."""
    largest_face = LargestFace(haar)
    found = [largest_face(frame) for frame in frames]
    return [face and face[0] for face in found]


def find_thoroughly(cascade: cv2.CascadeClassifier, frames: list[Frame]) -> Faces:
    """The same cascade over every pixel: faces of all sizes, in steps of 1.1."""
    cv2.setNumThreads(1)
    found = [cascade.detectMultiScale(np.ascontiguousarray(frame.luma()), 1.1, 5) for frame in frames]
    return [max(map(to_corners, xywh_N4), key=area, default=None) for xywh_N4 in found]


def to_corners(xywh_4: Sequence[int]) -> Boxes:
    """OpenCV's box as xyxy."""
    x, y, width, height = xywh_4
    return np.array([x, y, x + width, y + height], np.float32)


def area(box_4: Boxes) -> float:
    """0 for a box that is inside out."""
    return float(np.prod(np.maximum(box_4[2:] - box_4[:2], 0)))


def iou(box_4: Boxes | None, other_4: Boxes | None) -> float:
    """Intersection over union; 1 where neither found a face."""
    if box_4 is None or other_4 is None:
        return float(box_4 is other_4)
    corners_22 = np.maximum(box_4[:2], other_4[:2]), np.minimum(box_4[2:], other_4[2:])
    shared = area(np.concatenate(corners_22))
    return shared / (area(box_4) + area(other_4) - shared)
