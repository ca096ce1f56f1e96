"""WildDeepfake: `real_train`, `fake_train`, `real_test` and `fake_test`, with numbered folders of face images each.

Unpacked, `real_train/12.tar.gz` is the folder 12, in which the frames of a sequence share a folder. Each image is a
video of one frame; all of one numbered folder are one group. The faces are cropped already: extract them with
--detector none. Which real video a fake was made from, and how, is not published.
"""

import re
from collections.abc import Sequence

from raydistal.datasets.layout import Entry, counted, is_media

LABELS = {"real": 0, "fake": 1}
FOLDER = re.compile(r"(real|fake)[ _-](train|test)")


def matches(files: Sequence[str]) -> bool:
    """True if media, or the archives that hold them, lie below one of the four folders."""
    return any(_read(path) or _is_packed(path) for path in files)


def read(_root: str, files: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Entries and warnings from relative paths."""
    entries = [entry for path in files if (entry := _read(path))]
    outside = {path for path in files if is_media(path)} - {entry.path for entry in entries}
    packed = [path for path in files if _is_packed(path)]
    return entries, [
        *counted(packed, "archives are not unpacked"),
        *counted(outside, "videos or images lie outside the four folders and are left out"),
    ]


def _is_packed(path: str) -> bool:
    return bool(FOLDER.fullmatch(path.split("/")[0].casefold())) and path.endswith(".tar.gz")


def _read(path: str) -> Entry | None:
    folder, *below = path.split("/")
    match = FOLDER.fullmatch(folder.casefold())
    if not match or len(below) < 2 or not is_media(path):
        return None
    return Entry(path=path, label=LABELS[match[1]], group=f"{folder}/{below[0]}", split=match[2])
