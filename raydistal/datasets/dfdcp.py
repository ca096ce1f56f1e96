"""DFDC preview: `dataset.json` beside `original_videos/`, `method_A/` and `method_B/`.

It maps the path of a video to `{"label": "real" | "fake", "set": "train" | "test", "target_id": 1234, "swapped_id":
5678, ...}`. A group is the person shown, target_id; the face donor, swapped_id, may be in another group, because
linking donors would join everybody into one. `22_11_A_001.mp4` shows person 11 of `11_A_001.mp4` with the face of 22.
DeepfakeBench's and SBI's copies have a folder `videos` in each of the three: both are read.
"""

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raydistal import storage
from raydistal.datasets.annotations import parse_label, read_json
from raydistal.datasets.layout import Entry, counted, is_media
from raydistal.errors import UserError

LIST = "dataset.json"
FOLDERS = ("original_videos", "method_A", "method_B")
SPLITS = {"train": "train", "test": "test"}


def matches(files: Sequence[str]) -> bool:
    """True if dataset.json lies beside one of the three folders."""
    return LIST in files and any(path.split("/")[0] in FOLDERS for path in files)


def read(root: str, files: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Entries and warnings from relative paths and dataset.json.

    Raises:
        UserError: dataset.json is malformed, or holds an unknown label or set.
    """
    location = storage.join(root, LIST)
    content = read_json(location)
    if not isinstance(content, dict) or not all(isinstance(fields, dict) for fields in content.values()):
        raise UserError(f"{location} is not that of the DFDC preview: it must map paths to their label")
    media = {path for path in files if is_media(path)}
    path_of = {key: next((place for place in _places(key) if place in media), None) for key in content}
    real_of = {posixpath.basename(key): path or key for key, path in path_of.items() if key.startswith(FOLDERS[0])}
    entries = [
        _entry(path, fields, real_of, f"{location}, {key}") for key, fields in content.items() if (path := path_of[key])
    ]
    return entries, [
        *counted([key for key, path in path_of.items() if not path], f"videos of {LIST} are absent"),
        *counted(media - {entry.path for entry in entries}, f"videos or images are not in {LIST} and are left out"),
    ]


def _entry(path: str, fields: Mapping[str, Any], real_of: Mapping[str, str], where: str) -> Entry:
    label = parse_label(fields.get("label"), where)
    person, split = fields.get("target_id"), fields.get("set")
    if person is None or label is None:
        raise UserError(f"{where}: no target_id or no label")
    if split not in SPLITS:
        raise UserError(f"{where}: unknown set {split!r}; it must be train or test")
    return Entry(
        path=path,
        label=label,
        group=str(person),
        method=path.split("/")[0] if label else None,
        original=real_of.get(posixpath.basename(path).partition("_")[2]) if label else None,
        split=SPLITS[split],
    )


def _places(key: str) -> Iterator[str]:
    yield key
    top, _, rest = key.partition("/")
    yield posixpath.join(top, "videos", rest)
    yield posixpath.join(top, "videos", posixpath.basename(rest))
