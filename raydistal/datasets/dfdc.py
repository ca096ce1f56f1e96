"""DFDC: folders of videos with a `metadata.json` (train parts, test) or `labels.csv` (validation, test) each.

`metadata.json` maps a file name to `{"label": "REAL" | "FAKE", "split": ..., "original": ...}` or `{"is_fake": 0 | 1}`;
`labels.csv` has the columns filename and label. A group is an original and everything made from it. An original that
was not downloaded still names the group, so its fakes stay together.
"""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raydistal import storage
from raydistal.datasets.annotations import parse_label, read_csv, read_json
from raydistal.datasets.layout import Entry, counted, is_media
from raydistal.errors import UserError

ANNOTATIONS = ("labels.csv", "metadata.json")
SPLITS = {"validation": "val", "val": "val", "test": "test"}  # by folder; all others are parts of train


def matches(files: Sequence[str]) -> bool:
    """True if there is a metadata.json or labels.csv."""
    return any(posixpath.basename(path) in ANNOTATIONS for path in files)


def read(root: str, files: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Entries and warnings from relative paths and the annotation files.

    Raises:
        UserError: an annotation file is malformed or holds an unknown label.
    """
    media = {path for path in files if is_media(path)}
    labels, sources, absent = {}, {}, set()
    for annotation in (path for path in files if posixpath.basename(path) in ANNOTATIONS):
        folder, location = posixpath.dirname(annotation), storage.join(root, annotation)
        for name, fields in _records(location):
            path = next((place for place in _places(folder, name) if place in media), None)
            if path is None:
                absent.add(posixpath.join(folder, name))
                continue
            value = fields.get("label", fields.get("is_fake"))
            labels[path] = parse_label(value, f"{location}, {name}")
            if labels[path] != 0 and isinstance(fields.get("original"), str):
                sources[path] = posixpath.basename(fields["original"])
    path_of = {posixpath.basename(path): path for path in labels}
    holds_out = {_split(path) for path in labels} != {"train"}  # the Kaggle download is all train: no split to keep
    entries = []
    for path, label in labels.items():
        source = sources.get(path)
        entries.append(
            Entry(
                path=path,
                label=label,
                group=source or posixpath.basename(path),
                original=source and path_of.get(source, posixpath.join(posixpath.dirname(path), source)),
                split=_split(path) if holds_out else None,
            )
        )
    return entries, [
        *counted(absent, "videos of the metadata are absent"),
        *counted(media - labels.keys(), "videos or images have no metadata and are left out"),
    ]


def _places(folder: str, name: str) -> Iterator[str]:
    yield posixpath.join(folder, name)
    yield posixpath.join(folder, "videos", name)


def _split(path: str) -> str:
    folders = path.casefold().split("/")[:-1]
    return next((SPLITS[folder] for folder in folders if folder in SPLITS), "train")


def _records(location: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """File name and fields of each record of a metadata.json or labels.csv."""
    if location.endswith(".csv"):
        rows = read_csv(location)
        if rows and not {"filename", "label"} <= rows[0].keys():
            raise UserError(f"{location} has the columns {list(rows[0])}; DFDC needs filename and label")
        yield from ((row["filename"], row) for row in rows)
        return
    content = read_json(location)
    if not isinstance(content, dict) or not all(isinstance(fields, dict) for fields in content.values()):
        raise UserError(f"{location} is not DFDC metadata: it must map file names to their label")
    for name, fields in content.items():
        if not {"label", "is_fake"} & fields.keys():
            raise UserError(f"{location}, {name}: neither label nor is_fake")
        yield name, fields
