"""ForenSynths, the images of CNNDetection: `<generator>/[<category>/]0_real/...` and `1_fake/...`.

Also below `train/`, `val/` and `test/`, which are the official splits; there, `<category>` alone is ProGAN's, the only
generator that is learnt from. Nothing tells which images belong together, so each is its own group.
"""

from collections.abc import Sequence

from raydistal.datasets.layout import Entry, counted, is_media

LABELS = {"0_real": 0, "1_fake": 1}
SPLITS = ("train", "val", "test")
CATEGORIES = {  # of LSUN; one of them is called train
    *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
}


def matches(files: Sequence[str]) -> bool:
    """True if media lie in a folder 0_real or 1_fake."""
    return any(_read(path) for path in files)


def read(_root: str, files: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Entries and warnings from relative paths."""
    entries = [entry for path in files if (entry := _read(path))]
    outside = {path for path in files if is_media(path)} - {entry.path for entry in entries}
    return entries, [
        *([] if any(entry.split for entry in entries) else ["no train/, val/ or test/: images are split by ratio"]),
        *counted(outside, "videos or images lie outside 0_real/ and 1_fake/ and are left out"),
    ]


def _read(path: str) -> Entry | None:
    *above, folder = path.split("/")[:-1] or [""]
    label = LABELS.get(folder.casefold())
    if label is None or not is_media(path):
        return None
    first = above[0].casefold() if above else ""
    split = first if first in SPLITS and (len(above) > 1 or first != "train") else None
    generator = next(iter(above[1:] if split else above), "")
    method = "progan" if generator.casefold() in CATEGORIES else generator or None
    return Entry(path=path, label=label, group=path, method=method if label else None, split=split)
