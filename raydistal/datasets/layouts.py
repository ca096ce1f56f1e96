"""Which layout a dataset has, and its entries."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import pyarrow as pa

from raydistal import storage
from raydistal.datasets import (
    celebdf,
    deeperforensics,
    deepfakebench,
    dfdc,
    dfdcp,
    faceforensics,
    folders,
    forensynths,
    manifest,
    synthbuster,
    wilddeepfake,
)
from raydistal.datasets.layout import ANNOTATION_SUFFIXES, Entry, counted, is_media, suffix
from raydistal.errors import UserError

Name = Literal[
    "folders",
    "faceforensics",
    "celebdf",
    "dfdc",
    "dfdcp",
    "deeperforensics",
    "wilddeepfake",
    "forensynths",
    "synthbuster",
    "deepfakebench",
]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How to recognise and read one arrangement of files."""

    looks_like: str
    matches: Callable[[Sequence[str]], bool]
    read: Callable[[str, Sequence[str]], tuple[list[Entry], list[str]]]


LAYOUTS = {
    "folders": Layout("real/ and fake/ (also below train/, val/, test/)", folders.matches, folders.read),
    "faceforensics": Layout(
        "original_sequences/*/*/videos/ and manipulated_sequences/*/*/videos/",
        faceforensics.matches,
        faceforensics.read,
    ),
    "celebdf": Layout("Celeb-real/, YouTube-real/ and Celeb-synthesis/", celebdf.matches, celebdf.read),
    "dfdc": Layout("metadata.json or labels.csv beside the videos", dfdc.matches, dfdc.read),
    "dfdcp": Layout("dataset.json beside original_videos/, method_A/ and method_B/", dfdcp.matches, dfdcp.read),
    "deeperforensics": Layout("manipulated_videos/*/", deeperforensics.matches, deeperforensics.read),
    "wilddeepfake": Layout("real_train/, fake_train/, real_test/, fake_test/", wilddeepfake.matches, wilddeepfake.read),
    "forensynths": Layout("0_real/ and 1_fake/ below generators", forensynths.matches, forensynths.read),
    "synthbuster": Layout("images named as in RAISE: r000da54ft", synthbuster.matches, synthbuster.read),
    "deepfakebench": Layout("dataset_json/*.json", deepfakebench.matches, deepfakebench.read),
}
MANIFEST = "manifest.csv or manifest.parquet, or such a file itself"


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was found."""

    layout: str
    root: str
    entries: list[Entry] | pa.Table
    warnings: list[str]


def read(videos: str, layout: str = "auto", compression: str = "") -> Reading:
    """The entries of a dataset: a folder, a URI, or a manifest file. `layout` is a name, or auto to find it.

    A manifest is taken before any other layout.

    Raises:
        UserError: nothing was found, several layouts fit, or an annotation file is malformed.
    """
    found = manifest.find(videos) if layout in ("auto", "manifest") else None
    if found:
        root, layout, ignored = found[0], "manifest", []
        entries, warnings = manifest.read(*found)
    else:
        root, files = videos, storage.list_files(videos)
        layout = _detect(videos, files, layout)
        if compression and layout == "faceforensics":
            entries, warnings = faceforensics.read(root, files, compression)
        else:
            entries, warnings = LAYOUTS[layout].read(root, files)
        ignored = [path for path in files if not is_media(path) and suffix(path) not in ANNOTATION_SUFFIXES]
    if compression and layout != "faceforensics":
        raise UserError(f"--compression is for FaceForensics++, but {videos} has the layout {layout}")
    if not entries:
        raise UserError("\n  ".join([f"no videos in {videos} (layout {layout})", *warnings]))
    return Reading(
        layout,
        root,
        entries,
        warnings + counted(ignored, "files are neither video nor image by their name and are left out"),
    )


def _detect(videos: str, files: Sequence[str], layout: str) -> str:
    """Name of the layout that the files have; `layout` itself if it is one and fits."""
    names = list(LAYOUTS) if layout == "auto" else [name for name in LAYOUTS if name == layout]
    fitting = [name for name in names if LAYOUTS[name].matches(files)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UserError(f"{videos} fits several layouts; choose one with --layout: {', '.join(fitting)}")
    top = sorted({path.split("/")[0] for path in files})
    there = f"it holds {', '.join(top[:10])}{', ...' if len(top) > 10 else ''}" if top else "it is empty or absent"
    known = {"manifest": MANIFEST} | {name: known.looks_like for name, known in LAYOUTS.items()}
    raise UserError(
        f"no dataset found at {videos} (layout {layout}): {there}. Looked for:\n"
        + "\n".join(f"  {name}: {shape}" for name, shape in known.items())
        + "\nPoint --videos at the folder that holds these, or write a manifest with the columns path and label."
    )
