"""The file in which a distilled set travels: what to take from which video, and never a face.

One Parquet file, a row per video (`schemas.SHARED`), with the settings and versions that made the crops as JSON in its
metadata. The same set gives the same bytes. It names files by their path below the dataset's folder and by their
content; nothing in it says where they lie, and its receivers need their own copy of the dataset.
"""

import hashlib
import json
import posixpath
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydistal import schemas, storage, tables
from raydistal.datasets.layout import is_absolute, video_id
from raydistal.errors import UserError
from raydistal.faces.crop import check_format
from raydistal.faces.equalize import Equalizer

FORMAT = "raydistal distilled set, format 1"
FINDING = ("sample", "sample_fake", "detector", "scale_factor", "min_neighbors", "min_face")
CROPS = (*FINDING, "margin", "size_px", "crops", "equalize")
SELECTION = ("strategy", "folds", "seed", "rounds", "frames", "arrange", "ratio")


class Shared(NamedTuple):
    """A distilled set, as it is shared."""

    videos: pa.Table
    """`schemas.SHARED`, sorted by video_id."""
    about: dict[str, Any]
    """format; faces, features, selection: the settings that made it; versions: those of the software."""
    digest: str
    """Of the whole file."""


def to_bytes(videos: pa.Table, about: Mapping[str, Any]) -> pa.Buffer:
    """The file."""
    return tables.to_parquet(schemas.conform(videos.sort_by("video_id"), schemas.SHARED).combine_chunks(), about)


def describe(faces_info: Mapping[str, Any], chosen_by: Mapping[str, Any]) -> dict[str, Any]:
    """`Shared.about`, from `_table.json` of the faces and the config of the table that names the videos.

    Of a model file only the name is told, not where it lies.
    """
    config = dict(faces_info["config"])
    for key in ("detector", "weights"):
        config[key] = posixpath.basename(config.get(key, ""))
    about: dict[str, Any] = {"format": FORMAT, "versions": faces_info["versions"]}
    for name, source, keys in (("faces", config, CROPS), ("features", config, tables.OF_FEATURES)):
        about[name] = {key: source[key] for key in keys if key in source}
    about["selection"] = {key: chosen_by[key] for key in SELECTION if key in chosen_by}
    return about


def relative_path(uri: str, dataset: str, known_as: str) -> str:
    """The path of a video below its dataset's folder: the part of `uri` that its video_id was made from.

    A video whose id comes from no such part, as in a manifest of absolute paths, goes by its file name.
    """
    if storage.is_uri(uri):
        place = uri.partition("://")[2]
        places = [place, place.rpartition("?")[0] or place]  # with and without a query, which names the store
    else:
        places = [uri]
    for place in places:
        parts = place.strip("/").split("/")
        for path in ("/".join(parts[start:]) for start in range(1, len(parts))):
            if video_id(dataset, path) == known_as and not _leads_out(path):
                return path
    return parts[-1]


def public_group(group_id: str) -> str:
    """`group_id`, or a digest in its place where it was made from an absolute path."""
    dataset, _, group = group_id.partition("/")
    if not is_absolute(group):
        return group_id
    return f"{dataset}/{hashlib.blake2b(group.encode(), digest_size=8).hexdigest()}"


def read(location: str) -> Shared:
    """The set in this file, checked: it comes from others.

    Raises:
        UserError: it cannot be read, is no such file, or asks for what is not in order.
    """
    try:
        content = storage.read_bytes(location)
        videos = pq.read_table(pa.BufferReader(content))
        about = json.loads((videos.schema.metadata or {})[b"raydistal"])
        if about["format"] != FORMAT:
            raise UserError(f"{location} has the format {about['format']!r}; this version reads {FORMAT!r}")
        videos = schemas.conform(videos, schemas.SHARED).combine_chunks()
        _check(videos, about)
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{location} cannot be read as a shared set ({error}). raydistal share makes one.") from error
    return Shared(videos, about, hashlib.sha256(content).hexdigest())


def _check(videos: pa.Table, about: Mapping[str, Any]) -> None:
    """Raises ValueError or UserError unless all is as `share` writes it."""
    faces, _ = about["faces"], dict(about["versions"])
    check_format(faces["crops"])
    if faces.get("equalize"):
        Equalizer.parse(faces["equalize"])
    is_possible = faces["crops"] != "none" and faces["size_px"] in range(32, 1025) and faces["margin"] >= 0
    if not is_possible or not isinstance(faces["detector"], str):
        raise ValueError(f"crops that cannot be: {faces}")
    if len(pc.unique(videos["video_id"])) < len(videos):
        raise ValueError("a video is in it twice")
    if unknown := set(videos["status"].to_pylist()) - set(schemas.STATUSES):
        raise ValueError(f"the unknown status {min(unknown)!r}")
    if unknown := set(videos["split"].to_pylist()) - set(schemas.SPLITS):
        raise ValueError(f"the unknown split {min(unknown)!r}")
    for path in videos["path"].to_pylist():
        if _leads_out(path):
            raise ValueError(f"the path {path!r} leads out of the folder")
    lengths = pc.list_value_length(videos["frame_index"])
    for name in ("pts_s", "box_xyxy_px", "detection_score", "crop_sha256"):
        if not lengths.equals(pc.list_value_length(videos[name])):
            raise ValueError(f"{name} and frame_index are not of one length")
    frame_N = pc.list_flatten(videos["frame_index"]).to_numpy()
    row_N = pc.list_parent_indices(videos["frame_index"]).to_numpy()
    if (frame_N < 0).any() or ((np.diff(frame_N) <= 0) & (np.diff(row_N) == 0)).any():
        raise ValueError("frames that are not in ascending order")


def _leads_out(path: str) -> bool:
    return is_absolute(path) or not path or ".." in path.split("/")
