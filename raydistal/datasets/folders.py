"""Plain folders: `real/...` and `fake/<method>/...`, in any case, also below `train/`, `val/` and `test/`.

Nothing tells which videos belong together, so each file is its own group. Frames of one video, or several videos of
one person, need a manifest with a group column.
"""

from collections.abc import Sequence

from raydistal.datasets.layout import Entry, counted, is_media

LABELS = {"real": 0, "fake": 1}
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def matches(files: Sequence[str]) -> bool:
    """True if media lie below real/ or fake/."""
    return any(_read(path) for path in files if is_media(path))


def read(_root: str, files: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Entries and warnings from relative paths."""
    media = [path for path in files if is_media(path)]
    entries = [entry for path in media if (entry := _read(path))]
    outside = set(media) - {entry.path for entry in entries}
    return entries, counted(outside, "videos or images lie outside real/ and fake/ and are left out")


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
