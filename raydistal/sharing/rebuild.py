"""A row of a shared set and its video -> the row of `faces` that it describes, without looking for faces."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from raydistal.errors import DecodeError
from raydistal.faces.equalize import Equalizer
from raydistal.faces.look import Face, cut, row
from raydistal.schemas import list_column
from raydistal.video.decode import decode_frames, read_index


def rebuild(path: str, shared: Mapping[str, Any], settings: Mapping[str, Any]) -> pa.Table:
    """The row of one local file: the listed frames are decoded, the listed boxes cropped.

    Args:
        path: of the video.
        shared: its row, with frame_index, box_xyxy_px, detection_score and what `empty` wants.
        settings: those that made the crops: detector, margin, size_px, crops, equalize.

    Raises:
        DecodeError: not a video, or a frame of it does not come out.
    """
    faces = zip(shared["box_xyxy_px"], shared["detection_score"], strict=True)
    wanted = dict(zip(shared["frame_index"], faces, strict=True))
    if not wanted:
        return empty(shared, settings)
    index = read_index(path)
    equalizer = Equalizer.parse(settings["equalize"]) if settings.get("equalize") else None
    known = np.array([number for number in wanted if number < len(index.pts_s_N)], np.int64)
    found = []
    for source in decode_frames(path, index, known):
        frame = equalizer(source) if equalizer else source
        box_4, score = np.array(wanted[source.index][0], np.float32), wanted[source.index][1]
        box_in_frame_4 = equalizer.to_square(box_4, *source.shape) if equalizer else box_4
        image_HWC = cut(frame.rgb(), box_in_frame_4, settings["detector"], settings["margin"], settings["size_px"])
        found.append(Face(frame.index, frame.pts_s, box_4, score, image_HWC))
    if len(found) < len(wanted):
        raise DecodeError(f"{len(wanted) - len(found)} of its {len(wanted)} frames with faces could not be decoded")
    options = settings["size_px"], settings["crops"], shared["num_frames_seen"], found
    return _without_feature(row(shared["video_id"], "ok", None, *options))


def empty(shared: Mapping[str, Any], settings: Mapping[str, Any]) -> pa.Table:
    """The row of a video without faces: they were not there when it was shared either."""
    error = f"{shared['status']} where it was shared"
    options = settings["size_px"], settings["crops"], shared["num_frames_seen"]
    return _without_feature(row(shared["video_id"], shared["status"], error, *options))


def failed(video_id: str, status: str, error: str, settings: Mapping[str, Any]) -> pa.Table:
    """The row of a video that could not be had."""
    return _without_feature(row(video_id, status, error, settings["size_px"], settings["crops"]))


def _without_feature(made: pa.Table) -> pa.Table:
    """With a vector of one NaN as the feature, which nobody computes: whatever needs features must fail on it."""
    num = len(made["frame_index"][0])
    feature = list_column(np.full((num, 1), np.nan, np.float16), [num])
    return made.drop_columns(["pixels"]).append_column("feature", feature)
