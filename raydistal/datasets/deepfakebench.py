"""DeepfakeBench: `dataset_json/<dataset>.json` and the extracted frames that it names.

    {dataset: {label: {train | val | test: {[c23 | c40 | raw:] {video: {"label": ..., "frames": [path, ...]}}}}}}

Each frame is a video of one frame. A label such as FF-real or CelebDFv2_real is real, all others are the method of
fakes. A group holds the frames of a video and of all videos that share its source, as far as names tell: pairs of
FaceForensics++ (000_003) and of DeeperForensics (000_M101) are joined; elsewhere it is the person shown (id0 in
id0_id1_0000, 01 in 01_02__scene__X, 11 in 22_11_A_001 of DFDCP). The names of DFDC tell nothing.

DeepfakeBench lists videos in several splits: val repeats test in Celeb-DF and train in DFDC, and train of Celeb-DF
holds all test videos. Here each frame is in one split: test before train, train before val.

It also lists videos in several files: FF-DF.json and FaceShifter.json repeat real videos of FaceForensics++.json. The
larger dataset names a frame, and datasets that share frames share groups.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from raydistal import storage
from raydistal.datasets.annotations import read_json
from raydistal.datasets.layout import Entry, components, counted, is_media
from raydistal.errors import UserError

FOLDER = "dataset_json"
PLACES = ("", "rgb", "datasets", "datasets/rgb")  # where frames may lie below the root
SPLITS = ("val", "train", "test")  # a later one counts
LEVELS = ("raw", "c23", "c40")
PAIR = re.compile(r"(\d{3})_(\d{3}|[MW]\d{3})")  # the video shown, and the video or actor that gave the face
PERSON = (  # shown, in the names of
    re.compile(r"(id\d+)_.+"),  # Celeb-DF
    re.compile(r"(\d+)(_\d+)?__.+"),  # DeepFakeDetection
    re.compile(r"([MW]\d{3})_.+"),  # DeeperForensics, real
    re.compile(r"(?:\d+_)?(\d+)_[A-Z]_\d+"),  # DFDCP
    re.compile(r"(\d{4})_fake"),  # UADFV
)


class _Frame(NamedTuple):
    path: str
    dataset: str
    label: str
    split: str
    level: str | None
    video: str


def matches(files: Sequence[str]) -> bool:
    """True if there is a JSON file in a folder dataset_json."""
    return any(_is_list(path) for path in files)


def read(root: str, files: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Entries and warnings from relative paths and all JSON files in dataset_json.

    Raises:
        UserError: a file is not of this structure.
    """
    listed = [frame for path in files if _is_list(path) for frame in _read_list(storage.join(root, path))]
    num_frames = Counter(frame.dataset for frame in listed)
    listed.sort(key=lambda frame: -num_frames[frame.dataset])
    media = {path for path in files if is_media(path)}
    split_of: dict[str, str] = {}
    found: dict[str, _Frame] = {}
    absent, shared, same = set(), set(), set()
    for frame in listed:
        path = next((place for place in _places(frame.path) if place in media), None)
        if path is None:
            absent.add(frame.path)
            continue
        same.add((found.setdefault(path, frame).dataset, frame.dataset))
        if split_of.setdefault(path, frame.split) != frame.split:
            shared.add(path)
            split_of[path] = max(split_of[path], frame.split, key=SPLITS.index)
    family_of = components(same)
    group_of = components(
        (f"{family_of[frame.dataset]}/{match[1]}", f"{family_of[frame.dataset]}/{match[2]}")
        for frame in found.values()
        if (match := PAIR.fullmatch(frame.video))
    )
    entries = [_entry(path, frame, family_of[frame.dataset], group_of, split_of[path]) for path, frame in found.items()]
    return entries, [
        *counted(shared, "frames are listed in several splits; each stays in the last of val, train, test"),
        *counted(absent, "frames of dataset_json are absent"),
        *counted(media - found.keys(), "videos or images are not in dataset_json and are left out"),
    ]


def _entry(path: str, frame: _Frame, family: str, group_of: Mapping[str, str], split: str) -> Entry:
    is_fake = not frame.label.casefold().endswith("real")
    name_matches = (pattern.fullmatch(frame.video) for pattern in (PAIR, *PERSON))
    shown = f"{family}/{next((match[1] for match in name_matches if match), frame.video)}"
    return Entry(
        path=path,
        label=int(is_fake),
        group=group_of.get(shown, shown),
        method=frame.label if is_fake else None,
        compression=frame.level,
        split=split,
        dataset=frame.dataset,
    )


def _is_list(path: str) -> bool:
    return posixpath.basename(posixpath.dirname(path)) == FOLDER and path.endswith(".json")


def _places(path: str) -> Iterator[str]:
    """Where a listed frame may lie: lists were written on other machines, some of them with backslashes."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    for start in range(len(parts)):
        for place in PLACES:
            yield posixpath.join(place, *parts[start:])


def _read_list(location: str) -> Iterator[_Frame]:
    for dataset, of_dataset in _items(read_json(location), location):
        for label, of_label in _items(of_dataset, location):
            for split, of_split in _items(of_label, location):
                if split not in SPLITS:
                    raise UserError(f"{location}: unknown split {split!r} of {dataset}, {label}")
                yield from _read_split(_Frame("", dataset, label, split, None, ""), of_split, location)


def _read_split(known: _Frame, content: Any, location: str) -> Iterator[_Frame]:
    for name, fields in _items(content, location):
        if name in LEVELS and known.level is None and not (isinstance(fields, dict) and "frames" in fields):
            yield from _read_split(known._replace(level=name), fields, location)
            continue
        if name in ("label", "frames") and not isinstance(fields, dict):
            continue  # of a test video, written over DFDC's val by the script that makes the lists
        frames = fields.get("frames") if isinstance(fields, dict) else None
        if not isinstance(frames, list) or not all(isinstance(frame, str) for frame in frames):
            raise UserError(f"{location}: the video {name!r} of {known.label} has no list of frames")
        yield from (known._replace(path=frame, video=name) for frame in frames)


def _items(content: Any, location: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(content, dict):
        raise UserError(f"{location} is no list of DeepfakeBench: dataset -> label -> split -> video -> frames")
    yield from content.items()
