"""Synthbuster and RAISE-1k: `<generator>/<stem>.png`, and the photographs in a folder named after RAISE, or as TIFF.

Each fake was generated from a description of the photograph of the same stem (`r000da54ft`): they are one group, and
the photograph is the fake's original. There are no official splits.

The photographs are large TIFF files and the fakes small PNG files: extract both with --equalize, or a detector learns
the format.
"""

import posixpath
import re
from collections.abc import Sequence

from raydistal.datasets.layout import Entry, counted, is_media, suffix

STEM = re.compile(r"r[0-9a-f]{8}t")


def matches(files: Sequence[str]) -> bool:
    """True if there are pictures with the names of RAISE."""
    return any(_stem(path) for path in files)


def read(_root: str, files: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Entries and warnings from relative paths."""
    stem_of = {path: stem for path in files if (stem := _stem(path))}
    real_of = {stem: path for path, stem in stem_of.items() if _is_real(path)}
    entries = [
        Entry(
            path=path,
            label=0 if _is_real(path) else 1,
            group=stem,
            method=None if _is_real(path) else posixpath.basename(posixpath.dirname(path)) or None,
            original=None if _is_real(path) else real_of.get(stem),
        )
        for path, stem in stem_of.items()
    ]
    alone = [entry.path for entry in entries if entry.label and not entry.original]
    outside = {path for path in files if is_media(path)} - stem_of.keys()
    return entries, [
        *counted(alone, "fakes have no photograph of RAISE (r000da54ft in a folder named RAISE, or .TIF)"),
        *counted(outside, "videos or images are not named as RAISE names them (r000da54ft) and are left out"),
    ]


def _stem(path: str) -> str | None:
    stem = posixpath.splitext(posixpath.basename(path))[0].casefold()
    return stem if is_media(path) and STEM.fullmatch(stem) else None


def _is_real(path: str) -> bool:
    folder = posixpath.basename(posixpath.dirname(path)).casefold()
    return folder == "real" or "raise" in folder or suffix(path) in (".tif", ".tiff")
