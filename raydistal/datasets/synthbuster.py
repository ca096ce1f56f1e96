"""Synthbuster and RAISE-1k: `<generator>/<stem>.png`, and the photographs in a folder named after RAISE, or as TIFF.

Both have the names of RAISE (`r000da54ft`), so folders tell them apart: a fake lies in one of the nine generators of
the publication. Each fake was generated from a description of the photograph of the same stem: they are one group, and
the photograph is the fake's original. There are no official splits.

The photographs are large TIFF files and the fakes small PNG files: extract both with --equalize, or a detector learns
the format.
"""

import posixpath
import re
from collections.abc import Sequence

from raydistal import storage
from raydistal.datasets.layout import Entry, counted, is_media, suffix
from raydistal.errors import UserError

STEM = re.compile(r"r[0-9a-f]{8}t")
GENERATORS = {"dalle2", "dalle3", "firefly", "glide", "midjourney-v5", "stable-diffusion-1-3", "stable-diffusion-1-4"}
GENERATORS |= {"stable-diffusion-2", "stable-diffusion-xl"}


def matches(files: Sequence[str]) -> bool:
    """True if there are pictures with the names of RAISE."""
    return any(_stem(path) for path in files)


def read(root: str, files: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Entries and warnings from relative paths.

    Raises:
        UserError: a folder is neither one of the generators nor RAISE.
    """
    stem_of = {path: stem for path in files if (stem := _stem(path))}
    generator_of = {path: _generator(root, path) for path in stem_of}
    real_of = {stem: path for path, stem in stem_of.items() if not generator_of[path]}
    entries = [
        Entry(
            path=path,
            label=1 if generator else 0,
            group=stem_of[path],
            method=generator,
            original=real_of.get(stem_of[path]) if generator else None,
        )
        for path, generator in generator_of.items()
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


def _generator(root: str, path: str) -> str | None:
    """The generator of a picture, by the innermost folder that tells; None for a photograph."""
    if suffix(path) in (".tif", ".tiff"):
        return None
    for folder in reversed(path.split("/")[:-1]):
        name = folder.casefold()
        if name in GENERATORS:
            return folder
        if name == "real" or "raise" in name:
            return None
    raise UserError(
        f"{storage.join(root, path)} is in none of the folders {', '.join(sorted(GENERATORS))}. Call a folder of "
        "photographs real; list fakes of other generators in a manifest."
    )
