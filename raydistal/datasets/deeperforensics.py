"""DeeperForensics-1.0: `manipulated_videos/<variant>/<target>_<actor>.mp4` and `lists/splits/{train,val,test}.txt`.

`000_M101.mp4` shows the FaceForensics++ video 000 with the face of the actor M101. A group is everything that is
connected by such pairs: an actor and all that was made from him, which is also how the official split divides.
`end_to_end_level_1` and the like are distortions of `end_to_end`: one method in several compressions.

Its real videos are those of FaceForensics++ (c23), expected where that has them: `original_sequences/youtube/c23/
videos`. Without them, the actors' own `source_videos` are taken, which the authors say are not meant as real class.
"""

import posixpath
import re
from collections.abc import Iterator, Sequence

from raydistal import storage
from raydistal.datasets.annotations import read_text
from raydistal.datasets.layout import Entry, components, counted, is_media

FAKES, SOURCES, REALS = "manipulated_videos", "source_videos", "original_sequences/youtube/c23/videos"
VARIANT = re.compile(r"(end_to_end)(?:_(.+))?|(.+)")
FAKE = re.compile(r"(\d{3})_([MW]\d{3})")


def matches(files: Sequence[str]) -> bool:
    """True if media lie below manipulated_videos/."""
    return any(path.split("/")[0] == FAKES and is_media(path) for path in files)


def read(root: str, files: Sequence[str]) -> tuple[list[Entry], list[str]]:
    """Entries and warnings from relative paths and the split lists.

    Raises:
        UserError: a split list cannot be read.
    """
    media = [path for path in files if is_media(path)]
    pair_of = {path: (match[1], match[2]) for path in media if (match := _fake(path))}
    has_targets = any(path.startswith(f"{REALS}/") for path in media)
    group_of = components(pair_of.values())
    split_of = dict(_read_splits(root, files))
    split_of_name = {name: split for pair, split in split_of.items() for name in pair}
    fakes = [_entry(path, pair, group_of[pair[0]], split_of.get(pair)) for path, pair in pair_of.items()]
    level = "c23" if has_targets else None
    reals = [
        Entry(path=path, label=0, group=group_of.get(name, name), compression=level, split=split_of_name.get(name))
        for path in media
        if (name := _real(path, has_targets))
    ]
    used = {entry.path for entry in (*fakes, *reals)}
    outside = [path for path in media if path not in used and not (has_targets and path.startswith(f"{SOURCES}/"))]
    remark = (
        f"no real videos of FaceForensics++ in {REALS}/: {SOURCES}/ stands in, though its authors do not mean it as "
        "real class: other people in another room are told apart too easily"
    )
    return [*fakes, *reals], [
        *([] if has_targets else [remark]),
        *([] if split_of else ["no lists/splits/train.txt: the official split is unknown, videos are split by ratio"]),
        *counted(outside, "videos or images are in none of the known places and are left out"),
    ]


def _fake(path: str) -> re.Match[str] | None:
    parts = path.split("/")
    return FAKE.fullmatch(posixpath.splitext(parts[-1])[0]) if parts[0] == FAKES and len(parts) == 3 else None


def _real(path: str, has_targets: bool) -> str | None:
    """Whom a real video shows: the number of the target, or the actor."""
    if has_targets:
        return posixpath.splitext(posixpath.basename(path))[0] if path.startswith(f"{REALS}/") else None
    parts = path.split("/")
    return parts[1] if parts[0] == SOURCES and len(parts) > 2 else None


def _entry(path: str, pair: tuple[str, str], group: str, split: str | None) -> Entry:
    match = VARIANT.fullmatch(path.split("/")[1])
    assert match
    return Entry(
        path=path,
        label=1,
        group=group,
        method=match[1] or match[3],
        compression=match[2],
        original=f"{REALS}/{pair[0]}.mp4",
        split=split,
    )


def _read_splits(root: str, files: Sequence[str]) -> Iterator[tuple[tuple[str, str], str]]:
    """The split of each pair of target and actor."""
    for split in ("train", "val", "test"):
        name = f"lists/splits/{split}.txt"
        if name in files:
            for line in read_text(storage.join(root, name)).split():
                if match := FAKE.fullmatch(posixpath.splitext(posixpath.basename(line))[0]):
                    yield (match[1], match[2]), split
