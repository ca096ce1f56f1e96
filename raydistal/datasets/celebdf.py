"""Celeb-DF v1 and v2: `Celeb-real`, `YouTube-real`, `Celeb-synthesis`, with or without a `videos` level.

`id0_id1_0003.mp4` shows person id0 of the real `id0_0003.mp4` with the face of id1. A group is the person shown; the
face donor may be in another group, because linking donors would join everybody into one. The official test list
tests on people of the train set, so it cuts groups in two. A line of it is `1 <folder>/<file>`, and there 1 = REAL.
"""

import posixpath
import re
from collections.abc import Sequence

from raydistal import storage
from raydistal.datasets.annotations import read_text
from raydistal.datasets.layout import Entry, counted, is_media
from raydistal.errors import UserError

LABELS = {"celeb-real": 0, "youtube-real": 0, "celeb-synthesis": 1}
PATTERNS = {  # person shown, number
    "celeb-real": r"(id\d+)_(\d+)",
    "youtube-real": r"()(.+)",
    "celeb-synthesis": r"(id\d+)_id\d+_(\d+)",
}
METHOD = "Celeb-synthesis"
TEST_LIST = "List_of_testing_videos.txt"


def matches(files: Sequence[str]) -> bool:
    """True if media lie in one of the three folders."""
    return any(_key(path) for path in files)


def read(root: str, files: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Entries and warnings from relative paths and the test list.

    Raises:
        UserError: the test list is malformed, or its labels contradict the folders.
    """
    path_of = {key: path for path in files if (key := _key(path))}
    lists = [path for path in files if path.casefold() == TEST_LIST.casefold()]
    tested = _read_test_list(storage.join(root, lists[0])) if lists else None
    entries, unnamed = [], []
    for path in files:
        if not (key := _key(path)):
            continue
        folder, name = key.split("/")
        match = re.fullmatch(PATTERNS[folder], posixpath.splitext(name)[0])
        if not match:
            unnamed.append(path)
            continue
        person, number = match.groups()
        original = f"Celeb-real/{person}_{number}.mp4" if LABELS[folder] else None
        entries.append(
            Entry(
                path=path,
                label=LABELS[folder],
                group=key if folder == "youtube-real" else person,
                method=METHOD if LABELS[folder] else None,
                original=original and path_of.get(original.casefold(), original),
                split=None if tested is None else "test" if key in tested else "train",
            )
        )
    outside = [path for path in files if is_media(path) and not _key(path)]
    absent = (tested or set()) - path_of.keys()
    return entries, [
        *([] if lists else [f"no {TEST_LIST}: the official split is unknown, videos are split by ratio"]),
        *counted(absent, f"videos of {TEST_LIST} are absent"),
        *counted(unnamed, "file names do not say who is shown (id0_0000, id0_id1_0000) and are left out"),
        *counted(outside, "videos or images lie outside the three folders and are left out"),
    ]


def _key(path: str) -> str | None:
    """`folder/file` in lower case without the `videos` level; None if it is not a video of the dataset."""
    parts = path.casefold().split("/")
    if len(parts) == 3 and parts[1] == "videos":
        del parts[1]
    return "/".join(parts) if len(parts) == 2 and parts[0] in LABELS and is_media(path) else None


def _read_test_list(location: str) -> set[str]:
    keys = set()
    for number, line in enumerate(read_text(location).splitlines(), 1):
        if not line.strip():
            continue
        flag, _, path = line.strip().partition(" ")
        key = _key(path.strip())
        if flag not in ("0", "1") or not key:
            raise UserError(f"{location}, line {number}: {line!r} is not like '1 Celeb-real/id0_0000.mp4'")
        if LABELS[key.split("/")[0]] == int(flag):
            raise UserError(f"{location}, line {number}: {line!r} contradicts the folder; in this list 1 = real")
        keys.add(key)
    return keys
