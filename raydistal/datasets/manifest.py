"""A manifest: a CSV or Parquet file with one row per video.

    path       relative to the manifest's folder, absolute, or a URI (also called uri, filename, file or video)
    label      real or 0, fake or 1, empty = unknown
    method, compression, dataset     as in the `videos` table
    original   path of the real video that a fake was made from
    group      what has the same value shares a source or identity (also called identity)
    split      train, val, test or pool

Only path is required. A fake is always in the group of its original.
"""

import itertools
import posixpath
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydistal import storage
from raydistal.datasets.annotations import parse_label, read_csv_rows
from raydistal.datasets.layout import ENTRIES, ROWS_AT_ONCE, counted, is_elsewhere, slices, suffix
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


def read(root: str, name: str) -> tuple[pa.Table, list[str]]:
    """`layout.ENTRIES` and warnings from the manifest `name` in the folder `root`.

    Relative paths are looked up in the folder; absolute ones are left to whoever opens them.

    Raises:
        UserError: the file is malformed, or a row has no path, an unknown label or an unknown split, or is a real video
            with an original.
    """
    location, home = storage.join(root, name), storage.absolute(root)
    rows = _read_rows(location, suffix(name))
    if "path" not in rows.column_names or not len(rows):
        columns = sorted(rows.column_names) if len(rows) else []
        raise UserError(f"{location} needs rows and a column path; its columns are {columns}")
    absent_column = pa.chunked_array([pa.nulls(len(rows), pa.string())])
    cells = {name: rows[name] if name in rows.column_names else absent_column for name in COLUMNS}
    if cells["path"].null_count:
        raise UserError(f"{location}, row {pc.index(cells['path'].is_null(), True).as_py() + 1}: the path is empty")
    path, original = _places(cells["path"], home), _places(cells["original"], home)
    label = _translate(cells["label"], parse_label, location, pa.int8())
    if (row := pc.index(pc.and_(pc.equal(label, 0), original.is_valid()), True).as_py()) >= 0:
        what = f"is labelled real and has the original {original[row]}"
        raise UserError(f"{location}, row {row + 1}: {path[row]} {what}: leave that empty, or correct the label")
    group = pc.coalesce(pc.binary_join_element_wise(cells["dataset"], cells["group"], "/"), cells["group"])
    entries = {
        "path": path,
        "label": label,
        "group": _smallest_connected(path, [original, group]),
        **{name: cells[name] for name in ("method", "compression")},
        "original": original,
        "split": _translate(cells["split"], _split, location, pa.string()),
        "dataset": cells["dataset"],
    }
    absent = _absent(home, path.filter(pc.invert(is_elsewhere(path))))
    table = pa.table(entries, schema=ENTRIES)
    table = table.filter(pc.invert(pc.is_in(path, pa.array(sorted(absent), pa.string())))) if absent else table
    return table, [
        *counted(absent, f"videos of {name} are absent and are left out"),
        *counted(set(rows.column_names) - COLUMNS, f"columns of {name} are not used"),
    ]


def _read_rows(location: str, kind: str) -> pa.Table:
    """Columns of text by their names, synonyms resolved; an empty cell is null."""
    if kind == ".parquet":
        try:
            table = pq.read_table(pa.BufferReader(storage.read_bytes(location)))
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"cannot read {location} as Parquet: {error}") from error
    else:
        header, rows = read_csv_rows(location)
        schema = pa.schema([(name, pa.string()) for name in header])
        parts = [schema.empty_table()]
        while some := list(itertools.islice(rows, ROWS_AT_ONCE)):
            parts.append(pa.table(list(zip(*some, strict=True)), schema=schema))
        table = pa.concat_tables(parts)
    names = [column.strip().lower() for column in table.column_names]
    names = [SYNONYMS.get(name, name) for name in names]
    if len(set(names)) < len(names):
        raise UserError(f"{location}: several columns mean the same: {sorted(table.column_names)}; keep one of them")
    return pa.table([_text(column) for column in table.columns], names=names)


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_floating(column.type) or pa.types.is_boolean(column.type):  # as Python writes them: 1.0, True
        column = pa.chunked_array(
            [[None if value is None else str(value) for value in column.to_pylist()]], pa.string()
        )
    column = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return pc.if_else(pc.equal(column, ""), None, column)


def _translate(
    column: pa.ChunkedArray, translate: Callable[[str | None, str], object], location: str, type: pa.DataType
) -> pa.ChunkedArray:
    """translate(value, place) of every cell, called once for each distinct value with the first place that has it."""
    values = pc.unique(column)
    place = pc.index_in(column, value_set=values)
    first_U = np.unique(place.to_numpy(), return_index=True)[1]
    translated = [
        translate(value.as_py(), f"{location}, row {row + 1}") for value, row in zip(values, first_U, strict=True)
    ]
    return pa.array(translated, type).take(place)


def _split(value: str | None, where: str) -> str | None:
    if (value or "").casefold() not in SPLITS:
        raise UserError(f"{where}: unknown split {value!r}; write train, val, test, pool or nothing")
    return SPLITS[(value or "").casefold()]


def _places(column: pa.ChunkedArray, home: str) -> pa.ChunkedArray:
    """Each path relative to `home` if it lies below it, so that a file has one name however it is written."""

    def place(paths: pa.ChunkedArray) -> pa.Array:
        return pa.array([path and _place(path, home) for path in paths.to_pylist()], pa.string())

    return pa.chunked_array([place(column[start:stop]) for start, stop in slices(len(column))], pa.string())


def _place(path: str, home: str) -> str:
    if storage.is_uri(path):
        return path.removeprefix(home.rstrip("/") + "/")
    if not storage.is_uri(home):
        path = posixpath.normpath(posixpath.join(home, path)).removeprefix(f"{posixpath.normpath(home)}/")
    return path if path.startswith("/") else posixpath.normpath(path)


def _smallest_connected(path: pa.ChunkedArray, others: list[pa.ChunkedArray]) -> pa.ChunkedArray:
    """For every path, the smallest name that it is connected with through the names beside it in `others` (null: none).

    As `layout.components`, for millions of rows: names are numbered in order, and each takes over the smallest number
    of its neighbours, until nothing changes.
    """
    names = pc.unique(pa.chunked_array([chunk for column in (path, *others) for chunk in column.chunks], pa.string()))
    names = names.drop_null()
    names = names.take(pc.sort_indices(names))
    own_N = pc.index_in(path, value_set=names).to_numpy()
    links = [(own_N, pc.index_in(other, value_set=names)) for other in others]
    one_E = np.concatenate([own_N[other.is_valid().to_numpy()] for own_N, other in links])
    other_E = np.concatenate([other.drop_null().to_numpy() for _, other in links])
    smallest_U = np.arange(len(names))
    while (smallest_U[one_E] != smallest_U[other_E]).any():
        low_E = np.minimum(smallest_U[one_E], smallest_U[other_E])
        for end_E in (one_E, other_E):
            np.minimum.at(smallest_U, smallest_U[end_E], low_E)
        while ((further_U := smallest_U[smallest_U]) != smallest_U).any():
            smallest_U = further_U
    return names.take(pa.array(smallest_U[own_N]))


def _absent(home: str, relative: pa.ChunkedArray) -> set[str]:
    if not len(relative):
        return set()
    paths = set(relative.to_pylist())
    folder = posixpath.commonpath([posixpath.dirname(path) for path in paths])  # list no more than needed
    return paths - {posixpath.join(folder, name) for name in storage.list_files(storage.join(home, folder))}
