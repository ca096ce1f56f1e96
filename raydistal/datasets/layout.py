"""What every dataset layout gives: one `Entry` per video, and from entries the rows of the `videos` table.

A layout reads names and small annotation files. No video is opened, and nothing is asked of the store per file.
"""

import dataclasses
import hashlib
import posixpath
from collections import Counter
from collections.abc import Collection, Iterable, Sequence

import pyarrow as pa

from raydistal import storage
from raydistal.errors import UserError

VIDEO_SUFFIXES = {".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
VIDEO_SUFFIXES |= {".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
IMAGE_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
ANNOTATION_SUFFIXES = {".csv", ".json", ".md", ".parquet", ".pdf", ".txt"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One video, or one image (a video of one frame), as a layout describes it."""

    path: str
    """Relative to the dataset's root; a manifest may also name an absolute path or URI."""
    label: int | None
    """1 = fake, 0 = real, None = unknown."""
    group: str
    """What shares a source or identity has the same group; unique within the listing."""
    method: str | None = None
    compression: str | None = None
    original: str | None = None
    """Path of the real video that a fake was made from, also when that file is not there."""
    split: str | None = None
    """Official split, one of schemas.SPLITS; None where the dataset has none."""
    dataset: str | None = None
    """Set only where one listing holds several datasets."""


def suffix(path: str) -> str:
    """Lower-case file name extension with its dot."""
    return posixpath.splitext(path)[1].lower()


def is_media(path: str) -> bool:
    """True for a video or image by its extension. Hidden files (`._x.mp4` of a Mac) are none."""
    hidden = any(part.startswith(".") for part in path.split("/"))
    return not hidden and suffix(path) in VIDEO_SUFFIXES | IMAGE_SUFFIXES


def counted(paths: Collection[str], problem: str) -> list[str]:
    """[] without paths, else one warning: how many have the problem, and the names of the first five."""
    if not paths:
        return []
    names = ", ".join(sorted(paths)[:5]) + (", ..." if len(paths) > 5 else "")
    return [f"{len(paths)} {problem}: {names}"]


def components(links: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For every name in `links`, the smallest name that it is connected with."""
    parent: dict[str, str] = {}

    def find(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for one, other in links:
        low, high = sorted((find(one), find(other)))
        parent[high] = low
    return {name: find(name) for name in parent}


def video_id(dataset: str, path: str) -> str:
    """32 hexadecimal digits: BLAKE2b-128 of the dataset's name, a zero byte, and the path below the dataset's root.

    It stays the same when the dataset is moved (unless a manifest names absolute paths), and differs between
    manipulations and compressions of one source, whose files often have the same name.
    """
    return hashlib.blake2b(f"{dataset}\0{path}".encode(), digest_size=16).hexdigest()


def to_table(root: str, dataset: str, entries: Sequence[Entry]) -> tuple[pa.Table, list[str]]:
    """The `videos` table, sorted by video_id, with official splits only (null = none); and warnings.

    Raises:
        UserError: a video is listed twice.
    """
    root = storage.absolute(root)
    datasets = [entry.dataset or dataset for entry in entries]
    ids = [video_id(name, entry.path) for name, entry in zip(datasets, entries, strict=True)]
    id_of = {entry.path: id for id, entry in zip(ids, entries, strict=True)}
    if len(set(ids)) < len(ids):
        num_of = Counter(ids)
        twice = {entry.path for id, entry in zip(ids, entries, strict=True) if num_of[id] > 1}
        raise UserError(counted(twice, "videos are listed more than once; list each one once")[0])
    missing = {entry.original for entry in entries if entry.original and entry.original not in id_of}
    table = pa.table(
        {
            "video_id": ids,
            "dataset": datasets,
            "uri": [entry.path if is_absolute(entry.path) else storage.join(root, entry.path) for entry in entries],
            "label": pa.array([entry.label for entry in entries], pa.int8()),
            "method": pa.array([entry.method for entry in entries], pa.string()),
            "compression": pa.array([entry.compression for entry in entries], pa.string()),
            "original_id": pa.array([id_of.get(entry.original or "") for entry in entries], pa.string()),
            "group_id": [f"{dataset}/{entry.group}" for entry in entries],
            "split": pa.array([entry.split for entry in entries], pa.string()),
        }
    )
    return table.sort_by("video_id"), counted(missing, "originals of fakes are not among the videos")


def is_absolute(path: str) -> bool:
    """True for a URI or an absolute local path."""
    return storage.is_uri(path) or path.startswith("/")
