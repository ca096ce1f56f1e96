import pytest

from raydistal import storage
from raydistal.datasets import faceforensics
from raydistal.datasets.layout import Entry
from raydistal.errors import UserError

SPLITS = {"train": '[["000", "003"]]', "val": '[["010", "011"]]', "test": "[]"}


def real(name, level="c23", group="000", split="train"):
    path = f"original_sequences/youtube/{level}/videos/{name}.mp4"
    return Entry(path=path, label=0, group=f"youtube/{group}", compression=level, split=split)


def fake(method, name, level="c23", group="000", split="train"):
    return Entry(
        path=f"manipulated_sequences/{method}/{level}/videos/{name}.mp4",
        label=1,
        group=f"youtube/{group}",
        method=method,
        compression=level,
        original=f"original_sequences/youtube/{level}/videos/{name.split('_')[0]}.mp4",
        split=split,
    )


def read(root, compression=""):
    entries, warnings = faceforensics.read(root, storage.list_files(root), compression)
    return sorted(entries, key=lambda entry: entry.path), warnings


METHODS = ["Deepfakes", "Face2Face", "FaceShifter", "FaceSwap", "NeuralTextures"]
PAIRED = [
    *(fake(method, name) for method in METHODS for name in ("000_003", "003_000")),
    real("000"),
    real("003"),
    real("010", group="010", split="val"),
]


@pytest.mark.parametrize("folder", ["", "splits/", "dataset/splits/"])
def test_the_same_stem_under_every_method(tree, folder):
    root = tree([entry.path for entry in PAIRED], {f"{folder}{name}.json": text for name, text in SPLITS.items()})
    assert faceforensics.matches(storage.list_files(root))
    assert read(root) == (PAIRED, [])


def test_compressions_masks_and_stray_files(tree):
    raw = [fake("Deepfakes", "000_003", "raw"), real("000", "raw")]
    c23 = [fake("Deepfakes", "000_003"), fake("FaceSwap", "000_003"), real("000")]
    strays = [
        "manipulated_sequences/Deepfakes/masks/videos/000_003.mp4",
        "manipulated_sequences/Deepfakes/c23/frames/000_003/0001.png",
        "manipulated_sequences/Deepfakes/c23/videos/broken.mp4",
        "manipulated_sequences/Unheard/c23/videos/000_003.mp4",
    ]
    raw_files = [entry.path.replace("/raw/", "/c0/") for entry in raw]
    root = tree([*raw_files, *(entry.path for entry in c23), *strays], {f"{k}.json": v for k, v in SPLITS.items()})
    outside = "1 videos lie outside the known folders and are left out: " + strays[3]
    unnamed = "1 file names do not say who is shown (000_003, 01_02__scene__X) and are left out: " + strays[2]
    assert read(root) == (c23, ["c23 is taken; --compression also offers raw", outside, unnamed])
    at_c0 = [
        Entry(
            path=entry.path.replace("/raw/", "/c0/"),
            label=entry.label,
            group=entry.group,
            method=entry.method,
            compression="raw",
            original=entry.original and entry.original.replace("/raw/", "/c0/"),
            split="train",
        )
        for entry in raw
    ]
    without = "1 folders have no raw videos and are left out: FaceSwap"
    assert read(root, "c0") == read(root, "RAW") == (at_c0, [without, outside])
    with pytest.raises(UserError, match="no c40 videos; choose with --compression: c23, raw"):
        read(root, "c40")


def test_a_single_other_compression_is_taken_and_of_two_none(tree):
    assert [entry.compression for entry in read(tree([real("000", "c40").path]))[0]] == ["c40"]
    with pytest.raises(UserError, match="no c23 videos; choose with --compression: c40, raw"):
        read(tree([real("000", "raw").path]))


def test_without_lists_groups_follow_the_fakes_and_case_does_not_matter(tree):
    files = [
        "Original_Sequences/YouTube/C23/Videos/000.mp4",
        "manipulated_sequences/deepfakes/c23/videos/000_003.mp4",
        "manipulated_sequences/faceswap/c23/videos/003_004.mp4",
    ]
    shared = {"compression": "c23", "group": "youtube/000"}
    lost = "original_sequences/youtube/c23/videos/003.mp4"
    assert read(tree(files)) == (
        [
            Entry(path=files[0], label=0, **shared),
            Entry(path=files[1], label=1, method="Deepfakes", original=files[0], **shared),
            Entry(path=files[2], label=1, method="FaceSwap", original=lost, **shared),
        ],
        ["no official split (train.json, val.json, test.json): videos are split by ratio"],
    )


def test_deepfakedetection_is_grouped_by_the_actor_shown(tree):
    actors, fakes = "original_sequences/actors/c23/videos", "manipulated_sequences/DeepFakeDetection/c23/videos"
    files = [
        f"{fakes}/01_02__exit_phone_room__YVGY8LOK.mp4",
        f"{fakes}/02_01__walk__AAAA1111.mp4",
        f"{actors}/01__exit_phone_room.mp4",
    ]
    swap = {"label": 1, "method": "DeepFakeDetection", "compression": "c23"}
    assert read(tree(files, {f"{name}.json": text for name, text in SPLITS.items()}))[0] == [
        Entry(path=files[0], group="actors/01", original=files[2], **swap),
        Entry(path=files[1], group="actors/02", original=f"{actors}/02__walk.mp4", **swap),
        Entry(path=files[2], label=0, group="actors/01", compression="c23"),
    ]


@pytest.mark.parametrize("text", ["{}", "3", '["000"]', '[["000"]]', "[[0, 3]]", '[["000", "003", "004"]]'])
def test_lists_that_are_not_pairs(tree, text):
    root = tree([real("000").path], {"train.json": "[]", "val.json": text, "test.json": "[]"})
    with pytest.raises(UserError, match=r"val\.json is not a list of pairs"):
        read(root)


def test_an_incomplete_split(tree):
    with pytest.raises(UserError, match=r"cannot read .*val\.json"):
        read(tree([real("000").path], {"train.json": "[]"}))
