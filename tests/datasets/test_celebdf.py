import pytest

from raydistal.datasets import celebdf
from raydistal.datasets.layout import Entry
from raydistal.errors import UserError

FILES = [
    "Celeb-real/id0_0000.mp4",
    "Celeb-real/id1_0000.mp4",
    "Celeb-synthesis/id0_id1_0000.mp4",
    "Celeb-synthesis/id1_id0_0007.mp4",
    "Celeb-synthesis/noise.mp4",
    "YouTube-real/00000.mp4",
    "extra/x.mp4",
]
TESTED = "1 YouTube-real/00000.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n1 Celeb-real/id9_0001.mp4\n"


def expected(place, tested):
    """`place`: folder of each of the three kinds, as it is on disk."""
    real, youtube, fake = place
    rest = "train" if tested else None
    test = "test" if tested else None
    swap = {"label": 1, "method": "Celeb-synthesis"}
    return [
        Entry(path=f"{real}/id0_0000.mp4", label=0, group="id0", split=rest),
        Entry(path=f"{real}/id1_0000.mp4", label=0, group="id1", split=rest),
        Entry(path=f"{fake}/id0_id1_0000.mp4", **swap, group="id0", original=f"{real}/id0_0000.mp4", split=test),
        Entry(path=f"{fake}/id1_id0_0007.mp4", **swap, group="id1", original="Celeb-real/id1_0007.mp4", split=rest),
        Entry(path=f"{youtube}/00000.mp4", label=0, group="youtube-real/00000.mp4", split=test),
    ]


def test_official_layout(tree):
    root = tree(FILES, {"List_of_testing_videos.txt": TESTED})
    assert celebdf.matches(FILES)
    assert celebdf.read(root, [*FILES, "List_of_testing_videos.txt"]) == (
        expected(("Celeb-real", "YouTube-real", "Celeb-synthesis"), tested=True),
        [
            "1 videos of List_of_testing_videos.txt are absent: celeb-real/id9_0001.mp4",
            "1 file names do not say who is shown (id0_0000, id0_id1_0000) and are left out: Celeb-synthesis/noise.mp4",
            "1 videos or images lie outside the three folders and are left out: extra/x.mp4",
        ],
    )


def test_videos_level_other_case_and_no_list():
    folders = ("celeb-Real/videos", "Youtube-real/videos", "Celeb-Synthesis/Videos")
    names = ["id0_0000", "id1_0000"], ["00000"], ["id0_id1_0000", "id1_id0_0007"]
    files = [f"{folder}/{name}.mp4" for folder, group in zip(folders, names, strict=True) for name in group]
    entries, warnings = celebdf.read("/data", files)
    assert sorted(entries, key=lambda entry: entry.path) == sorted(
        expected(folders, tested=False), key=lambda entry: entry.path
    )
    assert warnings == ["no List_of_testing_videos.txt: the official split is unknown, videos are split by ratio"]


def test_list_names_files_whatever_the_level_and_case(tree):
    files = ["celeb-real/videos/id0_0000.mp4"]
    root = tree(files, {"list_of_testing_videos.txt": "\ufeff1 Celeb-real/id0_0000.mp4\r\n\r\n"})
    entries, _ = celebdf.read(root, [*files, "list_of_testing_videos.txt"])
    assert [entry.split for entry in entries] == ["test"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 Celeb-real/id0_0000.mp4", "line 2: .*contradicts the folder; in this list 1 = real"),
        ("1 Celeb-synthesis/id0_id1_0000.mp4", "line 2: .*contradicts"),
        ("2 Celeb-real/id0_0000.mp4", "line 2: .*is not like"),
        ("label,path", "line 2: .*is not like"),
        ("1", "line 2: .*is not like"),
    ],
)
def test_bad_list(tree, line, message):
    root = tree(FILES, {"List_of_testing_videos.txt": f"1 YouTube-real/00000.mp4\n{line}\n"})
    with pytest.raises(UserError, match=message):
        celebdf.read(root, [*FILES, "List_of_testing_videos.txt"])
