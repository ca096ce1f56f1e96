from raydistal.datasets import folders
from raydistal.datasets.layout import Entry


def entry(path, label, method=None, split=None):
    return Entry(path=path, label=label, group=path, method=method, split=split)


def test_every_place_a_video_may_lie():
    files = [
        "FAKE/x.mp4",
        "FAKE/Face Swap/x.mp4",
        "FAKE/Face Swap/deep/er/x.mp4",
        "Real/x.mp4",
        "Real/人 1/x.MOV",
        "real/photo.jpg",
        "real/._photo.jpg",
        "real/notes.txt",
        "test/fake/gan/x.png",
        "valid/real/x.png",
        "Validation/real/x.png",
        "other/x.mp4",
        "x.mp4",
        "test/x.mp4",
        "test/other/real/x.mp4",
        "real",
    ]
    assert folders.matches(files)
    assert folders.read("/data", files) == (
        [
            entry("FAKE/x.mp4", 1),
            entry("FAKE/Face Swap/x.mp4", 1, "Face Swap"),
            entry("FAKE/Face Swap/deep/er/x.mp4", 1, "Face Swap"),
            entry("Real/x.mp4", 0),
            entry("Real/人 1/x.MOV", 0),
            entry("real/photo.jpg", 0),
            entry("test/fake/gan/x.png", 1, "gan", "test"),
            entry("valid/real/x.png", 0, None, "val"),
            entry("Validation/real/x.png", 0, None, "val"),
        ],
        [
            "4 videos or images lie outside real/ and fake/ and are left out: "
            "other/x.mp4, test/other/real/x.mp4, test/x.mp4, x.mp4"
        ],
    )


def test_extracted_frames_are_in_the_group_of_their_video():
    group_of = {
        "real/a.mp4": "real/a.mp4",
        "real/a.png": "real/a.mp4",
        "real/a_frame-07.png": "real/a.mp4",
        "real/frames/a/2.jpg": "real/a.mp4",
        "real/ab.png": "real/ab.png",
        "fake/a/1.png": "fake/a/1.png",
        "fake/x/000.mp4": "fake/x/000.mp4",
        "fake/y/000.mp4": "fake/y/000.mp4",
        "fake/x/frames/000/1.png": "fake/x/000.mp4",
        "fake/y/000_12.png": "fake/y/000.mp4",
        "test/real/a/1.png": "test/real/a/1.png",
    }
    entries, warnings = folders.read("/data", list(group_of))
    assert {entry.path: entry.group for entry in entries} == group_of
    assert warnings == [
        "5 images seem to be frames of videos that are listed as well; they are in the same group: "
        "fake/x/frames/000/1.png, fake/y/000_12.png, real/a.png, real/a_frame-07.png, real/frames/a/2.jpg"
    ]


def test_no_match():
    assert not folders.matches(["real/notes.txt", "x.mp4", "really/x.mp4", "real"])
