"""What every dataset layout gives: one `Entry` per video, and from entries the rows of the `videos` table.

A layout reads names and small annotation files. No video is opened, and nothing is asked of the store per file.
"""

import dataclasses
import hashlib
import posixpath
from collections.abc import Collection, Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

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


ENTRIES = pa.schema([(field.name, pa.string()) for field in dataclasses.fields(Entry)])
ENTRIES = ENTRIES.set(ENTRIES.names.index("label"), pa.field("label", pa.int8()))
ROWS_AT_ONCE = 1 << 16


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


def to_table(root: str, dataset: str, entries: Sequence[Entry] | pa.Table) -> tuple[pa.Table, list[str]]:
    """The `videos` table, sorted by video_id, with official splits only (null = none); and warnings.

    `entries` may also be a table as from `entries_table`.

    Raises:
        UserError: a video is listed twice.
    """
    table = entries if isinstance(entries, pa.Table) else entries_table(entries)
    path, original = table["path"], table["original"]
    name = table["dataset"].fill_null(dataset)
    ids = pa.chunked_array(
        [
            pa.array(map(video_id, name[start:stop].to_pylist(), path[start:stop].to_pylist()), pa.string())
            for start, stop in slices(len(table))
        ],
        pa.string(),
    )
    if pc.count_distinct(ids).as_py() < len(ids):
        num_of = pa.table({"id": ids, "path": path}).group_by("id").aggregate([([], "count_all"), ("path", "min")])
        twice = num_of.filter(pc.greater(num_of["count_all"], 1))["path_min"]
        raise UserError(counted(twice.to_pylist(), "videos are listed more than once; list each one once")[0])
    place = pc.index_in(original, value_set=path)
    missing = pc.unique(original.filter(pc.and_(original.is_valid(), place.is_null())))
    before, _, after = storage.join(storage.absolute(root), "\0").partition("\0")
    columns = {
        "video_id": ids,
        "dataset": name,
        "uri": pc.if_else(is_elsewhere(path), path, pc.binary_join_element_wise(before, path, after, "")),
        **{column: table[column] for column in ("label", "method", "compression")},
        "original_id": ids.take(place),
        "group_id": pc.binary_join_element_wise(dataset, table["group"], "/"),
        "split": table["split"],
    }
    return pa.table(columns).sort_by("video_id"), counted(
        missing.to_pylist(), "originals of fakes are not among the videos"
    )


def entries_table(entries: Iterable[Entry]) -> pa.Table:
    """`ENTRIES`, a row per entry."""
    entries = list(entries)
    columns = {name: [getattr(entry, name) for entry in entries] for name in ENTRIES.names}
    return pa.table(columns, schema=ENTRIES)


def slices(num_rows: int) -> Iterator[tuple[int, int]]:
    """Start and stop of some rows at a time: as Python objects, all of ten million would fill the memory."""
    return ((start, min(start + ROWS_AT_ONCE, num_rows)) for start in range(0, num_rows, ROWS_AT_ONCE))


def is_elsewhere(path: pa.ChunkedArray) -> pa.ChunkedArray:
    """True for a URI or an absolute local path, which needs no root."""
    return pc.or_(pc.match_substring(path, "://"), pc.starts_with(path, "/"))


def is_absolute(path: str) -> bool:
    """As `is_elsewhere`, of one path."""
    return storage.is_uri(path) or path.startswith("/")
