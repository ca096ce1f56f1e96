"""A manifest: a CSV or Parquet file with one row per video.

    path       relative to the manifest's folder, absolute, or a URI (also called uri, filename, file or video)
    label      real or 0, fake or 1, empty = unknown
    method, compression, dataset     as in the `videos` table
    original   path of the real video that a fake was made from
    group      what has the same value shares a source or identity (also called identity)
    split      train, val, test or pool

Only path is required. A fake is always in the group of its original.
"""

import dataclasses
import posixpath
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from raydistal import storage
from raydistal.datasets.annotations import parse_label, read_csv
from raydistal.datasets.layout import Entry, components, counted, is_absolute, suffix
from raydistal.errors import UserError

NAMES = ("manifest.csv", "manifest.parquet")
SYNONYMS = {"uri": "path", "filename": "path", "file": "path", "video": "path", "identity": "group"}
COLUMNS = {"path", "label", "method", "compression", "dataset", "original", "group", "split"}
SPLITS = {"": None, "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test", "pool": "pool"}


def find(videos: str) -> tuple[str, str] | None:
    """Folder and file name of the manifest that `videos` is, or that lies in it; None without one.

    Raises:
        UserError: the folder holds two.
    """
    place, question, query = videos.partition("?") if storage.is_uri(videos) else (videos, "", "")
    if suffix(place) in (".csv", ".parquet"):
        folder, name = posixpath.split(place)
        return folder + question + query, name
    names = [name for name in NAMES if storage.exists(storage.join(videos, name))]
    if len(names) > 1:
        raise UserError(f"{videos} holds {' and '.join(names)}; give one of the two files as --videos")
    return (videos, names[0]) if names else None


def read(root: str, name: str) -> tuple[list[Entry], list[str]]:
    """Entries and warnings from the manifest `name` in the folder `root`.

    Relative paths are looked up in the folder; absolute ones are left to whoever opens them.

    Raises:
        UserError: the file is malformed, or a row has no path, an unknown label or an unknown split.
    """
    location, home = storage.join(root, name), storage.absolute(root)
    rows = _read_rows(location, suffix(name))
    columns = {column for row in rows[:1] for column in row}
    if "path" not in columns:
        raise UserError(f"{location} needs rows and a column path; its columns are {sorted(columns)}")
    entries = [_entry(row, home, f"{location}, row {number}") for number, row in enumerate(rows, 1)]
    absent = _absent(home, [entry.path for entry in entries])
    group_of = components((entry.path, other) for entry in entries for other in (entry.original, entry.group) if other)
    return [
        dataclasses.replace(entry, group=group_of.get(entry.path, entry.path))
        for entry in entries
        if entry.path not in absent
    ], [
        *counted(absent, f"videos of {name} are absent and are left out"),
        *counted(columns - COLUMNS, f"columns of {name} are not used"),
    ]


def _read_rows(location: str, kind: str) -> list[dict[str, str]]:
    """Rows by column name, synonyms resolved; an empty cell is ''."""
    if kind == ".parquet":
        try:
            table = pq.read_table(pa.BufferReader(storage.read_bytes(location)))
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"cannot read {location} as Parquet: {error}") from error
        rows = table.to_pylist()
    else:
        rows = read_csv(location)
    if not rows:
        return []
    name_of = {column: column.strip().lower() for column in rows[0]}
    name_of = {column: SYNONYMS.get(name, name) for column, name in name_of.items()}
    if len(set(name_of.values())) < len(name_of):
        raise UserError(f"{location}: several columns mean the same: {sorted(name_of)}; keep one of them")
    return [
        {name_of[column]: "" if value is None else str(value).strip() for column, value in row.items()} for row in rows
    ]


def _entry(row: Mapping[str, str], home: str, where: str) -> Entry:
    """A row. Its group is what the manifest says, or empty."""
    if not row["path"]:
        raise UserError(f"{where}: the path is empty")
    split, dataset, group = (row.get(name, "") for name in ("split", "dataset", "group"))
    if split.casefold() not in SPLITS:
        raise UserError(f"{where}: unknown split {split!r}; write train, val, test, pool or nothing")
    return Entry(
        path=_place(row["path"], home),
        label=parse_label(row.get("label"), where),
        group=f"{dataset}/{group}" if dataset and group else group,
        method=row.get("method") or None,
        compression=row.get("compression") or None,
        original=_place(row["original"], home) if row.get("original") else None,
        split=SPLITS[split.casefold()],
        dataset=dataset or None,
    )


def _place(path: str, home: str) -> str:
    """`path` relative to `home` if it lies below it, so that a file has one name however it is written."""
    if storage.is_uri(path):
        return path.removeprefix(home.rstrip("/") + "/")
    if not storage.is_uri(home):
        path = posixpath.normpath(posixpath.join(home, path)).removeprefix(f"{home}/")
    return path if path.startswith("/") else posixpath.normpath(path)


def _absent(home: str, paths: Sequence[str]) -> set[str]:
    relative = [path for path in paths if not is_absolute(path)]
    if not relative:
        return set()
    folder = posixpath.commonpath([posixpath.dirname(path) for path in relative])  # list no more than needed
    listed = {posixpath.join(folder, name) for name in storage.list_files(storage.join(home, folder))}
    return set(relative) - listed
