"""FaceForensics++: `original_sequences` and `manipulated_sequences`, each `<source>/<compression>/videos/<file>`.

`000_003.mp4` shows the scene of `000.mp4` with the face of 003. A group is everything that is connected by such pairs,
and the official split lists are pairs. DeepFakeDetection (`01_02__scene__X.mp4` from `01__scene.mp4`) is grouped by the
actor shown, because linking the face donors would join all actors into one; it has no official split.
Masks, extracted frames and the other compressions are not looked at.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from raydistal import storage
from raydistal.datasets import deeperforensics
from raydistal.datasets.annotations import read_json
from raydistal.datasets.layout import VIDEO_SUFFIXES, Entry, components, counted, is_media, suffix
from raydistal.errors import UserError

_PAIR = r"(?P<shown>\d+)_\d+"
FAKES = {  # stem: id shown, id of the face donor
    "Deepfakes": _PAIR,
    "Face2Face": _PAIR,
    "FaceSwap": _PAIR,
    "NeuralTextures": _PAIR,
    "FaceShifter": _PAIR,
    "DeepFakeDetection": _PAIR + r"__(?P<scene>.+)__[^_]+",
}
REALS = {"youtube": r"(?P<shown>.+)", "actors": r"(?P<shown>\d+)__.+"}
SOURCES = {f"original_sequences/{source.casefold()}": source for source in REALS} | {
    f"manipulated_sequences/{source.casefold()}": source for source in FAKES
}
LEVELS = {"raw": "raw", "c0": "raw", "c23": "c23", "c40": "c40"}
SPLIT_FOLDERS = ("", "splits/", "dataset/splits/")


class _Video(NamedTuple):
    path: str
    source: str
    level: str
    stem: str


def matches(files: Sequence[str]) -> bool:
    """True if there are videos where FaceForensics++ has them; real ones alone may be there for DeeperForensics."""
    sources = {video.source for path in files if (video := _parse(path))}
    return bool(sources) and (bool(sources & FAKES.keys()) or not deeperforensics.matches(files))


def read(root: str, files: Sequence[str], compression: str = "") -> tuple[list[Entry], list[str]]:
    """Entries of one compression (raw, its other name c0, c23 or c40; by default c23 or else the only one there).

    Raises:
        UserError: the compression is absent, or the official split is incomplete or malformed.
    """
    found = [video for path in files if (video := _parse(path))]
    level, others = _choose_level(sorted({video.level for video in found}), compression)
    videos = [video for video in found if video.level == level]
    split_of_pair = _read_splits(root, files)
    fakes = [(match[1], match[2]) for video in videos if (match := re.fullmatch(r"(\d+)_(\d+)", video.stem))]
    group_of = components([*split_of_pair, *fakes])
    split_of = {name: split for pair, split in split_of_pair.items() for name in pair}
    path_of = {(video.source, video.stem): video.path for video in videos}
    entries, unnamed = [], []
    for video in videos:
        match = re.fullmatch((REALS | FAKES)[video.source], video.stem)
        if not match:
            unnamed.append(video.path)
            continue
        shown, scene = match["shown"], match.groupdict().get("scene")
        is_fake, is_actor = video.source in FAKES, video.source in ("actors", "DeepFakeDetection")
        source = "actors" if is_actor else "youtube"
        stem = f"{shown}__{scene}" if scene else shown
        original = path_of.get((source, stem), f"original_sequences/{source}/{level}/videos/{stem}.mp4")
        entries.append(
            Entry(
                path=video.path,
                label=int(is_fake),
                group=f"actors/{shown}" if is_actor else f"youtube/{group_of.get(shown, shown)}",
                method=video.source if is_fake else None,
                compression=level,
                original=original if is_fake else None,
                split=None if is_actor else split_of.get(shown),
            )
        )
    outside = [path for path in files if suffix(path) in VIDEO_SUFFIXES and is_media(path) and not _parse(path)]
    outside = [path for path in outside if "masks" not in path.split("/")]
    without = {video.source for video in found} - {video.source for video in videos}
    return entries, [
        *([] if split_of else ["no official split (train.json, val.json, test.json): videos are split by ratio"]),
        *([f"{level} is taken; --compression also offers {', '.join(others)}"] if others and not compression else []),
        *counted(without, f"folders have no {level} videos and are left out"),
        *counted(outside, "videos lie outside the known folders and are left out"),
        *counted(unnamed, "file names do not say who is shown (000_003, 01_02__scene__X) and are left out"),
    ]


def _parse(path: str) -> _Video | None:
    parts = path.split("/")
    if len(parts) != 5 or not is_media(path):
        return None
    top, source, level, videos, _ = (part.casefold() for part in parts)
    if f"{top}/{source}" not in SOURCES or level not in LEVELS or videos != "videos":
        return None
    return _Video(path, SOURCES[f"{top}/{source}"], LEVELS[level], parts[4].rsplit(".", 1)[0])


def _choose_level(levels: list[str], compression: str) -> tuple[str, list[str]]:
    """The compression to read, and the others."""
    wanted = compression or ("c23" if "c23" in levels or len(levels) != 1 else levels[0])
    level = LEVELS.get(wanted.casefold(), wanted)
    if level not in levels:
        raise UserError(f"there are no {wanted} videos; choose with --compression: {', '.join(levels) or 'none there'}")
    return level, [other for other in levels if other != level]


def _read_splits(root: str, files: Sequence[str]) -> Mapping[tuple[str, str], str]:
    """Split of each pair of identities, from train.json, val.json and test.json; {} without them."""
    listed = set(files)
    folder = next((folder for folder in SPLIT_FOLDERS if f"{folder}train.json" in listed), None)
    if folder is None:
        return {}
    split_of_pair: dict[tuple[str, str], str] = {}
    for split in ("train", "val", "test"):
        location = storage.join(root, f"{folder}{split}.json")
        pairs = read_json(location)
        if not isinstance(pairs, list) or any(
            not isinstance(pair, list) or [type(name) for name in pair] != [str, str] for pair in pairs
        ):
            raise UserError(f'{location} is not a list of pairs of ids: [["071", "054"], ...]')
        split_of_pair |= dict.fromkeys(((one, other) for one, other in pairs), split)
    return split_of_pair
