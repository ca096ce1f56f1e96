"""Plain folders: `real/...` and `fake/<method>/...`, in any case, also below `train/`, `val/` and `test/`.

Nothing tells which videos belong together, so each file is its own group. Frames of one video, or several videos of
one person, need a manifest with a group column; but frames that were extracted beside their video are in its group.
"""

import dataclasses
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

from raydistal.datasets.layout import IMAGE_SUFFIXES, Entry, counted, is_media, suffix

LABELS = {"real": 0, "fake": 1}
NUMBER = re.compile(r"([-_ .]?frame)?[-_ .]?\d+$", re.IGNORECASE)  # of a frame, at the end of a name
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def matches(files: Sequence[str]) -> bool:
    """True if media lie below real/ or fake/."""
    return any(_read(path) for path in files if is_media(path))


def read(_root: str, files: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Entries and warnings from relative paths."""
    media = [path for path in files if is_media(path)]
    entries = [entry for path in media if (entry := _read(path))]
    outside = set(media) - {entry.path for entry in entries}
    video_of = dict(_frames(entries))
    entries = [
        dataclasses.replace(entry, group=video_of[entry.path]) if entry.path in video_of else entry for entry in entries
    ]
    return entries, [
        *counted(outside, "videos or images lie outside real/ and fake/ and are left out"),
        *counted(video_of, "images seem to be frames of videos that are listed as well; they are in the same group"),
    ]


def _read(path: str) -> Entry | None:
    folder, *below = path.split("/")
    split = SPLITS.get(folder.casefold())
    if split and below:
        folder, *below = below
    label = LABELS.get(folder.casefold())
    if label is None or not below:
        return None
    method = below[0] if label and len(below) > 1 else None
    return Entry(path=path, label=label, group=path, method=method, split=split)


def _frames(entries: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    """Images that are named after a video (`a/01.png` or `a_01.png` after `a.mp4`), each with that video.

    Both lie below the same real/ or fake/. Of several videos of that name, the one with the most similar path is taken.
    """
    videos: dict[tuple[str | None, int | None, str], list[str]] = defaultdict(list)
    for entry in entries:
        if suffix(entry.path) not in IMAGE_SUFFIXES:
            videos[entry.split, entry.label, _stem(entry.path)].append(entry.path)
    for entry in entries if videos else ():
        if suffix(entry.path) in IMAGE_SUFFIXES:
            stem = _stem(entry.path)
            names = (stem, NUMBER.sub("", stem), *entry.path.split("/")[-2::-1])
            named = (videos.get((entry.split, entry.label, name)) for name in names)
            if near := next(filter(None, named), None):
                yield entry.path, max(near, key=lambda video: len(posixpath.commonprefix([video, entry.path])))


def _stem(path: str) -> str:
    return posixpath.splitext(posixpath.basename(path))[0]
