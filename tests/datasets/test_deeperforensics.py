from raydistal.datasets import deeperforensics, layouts
from raydistal.datasets.layout import Entry

FAKES = [f"manipulated_videos/{name}.mp4" for name in ("end_to_end/000_M101", "end_to_end_mix_2_distortions/001_M101")]
FAKES += ["manipulated_videos/reenact_postprocess/002_W004.mp4"]
TARGETS = [f"original_sequences/youtube/c23/videos/{name}.mp4" for name in ("000", "001", "002", "003")]
SOURCES = [f"source_videos/{name}.mp4" for name in ("M101/light_up/happy/M101_a", "W004/BlendShape/W004_b")]
LISTS = {"lists/splits/train.txt": "000_M101.mp4\n001_M101.mp4\n", "lists/splits/test.txt": "002_W004.mp4\n"}


def fakes():
    common = {"label": 1, "method": "end_to_end", "group": "000", "split": "train"}
    return [
        Entry(path=FAKES[0], original=TARGETS[0], **common),
        Entry(path=FAKES[1], original=TARGETS[1], **common, compression="mix_2_distortions"),
        Entry(
            path=FAKES[2],
            original=TARGETS[2],
            label=1,
            method="reenact_postprocess",
            group="002",
            split="test",
        ),
    ]


def test_real_videos_are_those_of_faceforensics(tree):
    files = [*FAKES, *TARGETS, *SOURCES, *LISTS, "extra/a.mp4"]
    root = tree(files, LISTS)
    found = layouts.read(root)
    assert found.layout == "deeperforensics"
    assert deeperforensics.read(root, files) == (
        [
            *fakes(),
            Entry(path=TARGETS[0], label=0, group="000", compression="c23", split="train"),
            Entry(path=TARGETS[1], label=0, group="000", compression="c23", split="train"),  # the same actor's face
            Entry(path=TARGETS[2], label=0, group="002", compression="c23", split="test"),
            Entry(path=TARGETS[3], label=0, group="003", compression="c23"),
        ],
        ["1 videos or images are in none of the known places and are left out: extra/a.mp4"],
    )


def test_without_them_the_actors_stand_in(tree):
    files = [*FAKES, *SOURCES]
    entries, warnings = deeperforensics.read(tree(files, LISTS), [*files, *LISTS])
    assert entries == [
        *fakes(),
        Entry(path=SOURCES[0], label=0, group="000", split="train"),
        Entry(path=SOURCES[1], label=0, group="002", split="test"),
    ]
    assert [warning.split(":")[0] for warning in warnings] == [
        "no real videos of FaceForensics++ in original_sequences/youtube/c23/videos/"
    ]
    entries, warnings = deeperforensics.read("/data", files)
    assert {entry.split for entry in entries} == {None}
    assert warnings[1].startswith("no lists/splits/train.txt")
