import json
from typing import get_args, get_type_hints

import pytest

from raydistal.datasets import layouts
from raydistal.errors import UserError
from raydistal.pipelines import index

TREES = {
    "folders": ["real/a.mp4", "fake/a.mp4"],
    "faceforensics": ["original_sequences/youtube/c23/videos/000.mp4"],
    "celebdf": ["Celeb-real/id0_0000.mp4"],
    "dfdc": ["a.mp4"],
    "dfdcp": ["original_videos/1/a.mp4"],
    "deeperforensics": ["manipulated_videos/end_to_end/000_M101.mp4", "original_sequences/youtube/c23/videos/000.mp4"],
    "wilddeepfake": ["real_train/1/0.png", "fake_test/2/0.png"],
    "forensynths": ["test/crn/0_real/0.png", "train/car/1_fake/0.png"],
    "synthbuster": ["RAISE/r000da54ft.TIF", "dalle2/r000da54ft.png"],
    "deepfakebench": ["UADFV/real/frames/0000/000.png", "UADFV/fake/frames/0000/000.png"],
    "manifest": ["a.mp4", "real/b.mp4", "fake/c.mp4"],
}
UADFV = {"UADFV": {"UADFV_Real": {"test": {"0000": {"label": "", "frames": ["UADFV/real/frames/0000/000.png"]}}}}}
TEXTS = {
    "dfdc": {"metadata.json": '{"a.mp4": {"label": "REAL"}}'},
    "dfdcp": {"dataset.json": '{"original_videos/1/a.mp4": {"label": "real", "set": "train", "target_id": 1}}'},
    "deepfakebench": {"dataset_json/UADFV.json": json.dumps(UADFV)},
    "manifest": {"manifest.csv": "path\na.mp4\n"},
}


@pytest.mark.parametrize("name", TREES)
def test_found_and_named(tree, name):
    root = tree(TREES[name], TEXTS.get(name))
    found = layouts.read(root)
    assert (found.layout, found.root) == (name, root)
    assert found == layouts.read(root, name)


def test_all_can_be_asked_for():
    asked = get_args(get_type_hints(index.Config)["layout"])
    assert set(asked) == set(TREES) | {"auto"} == {*layouts.LAYOUTS, "auto", "manifest"}


def test_a_manifest_file(tree):
    root = tree(["a.mp4"], {"list.csv": "path\na.mp4\n"})
    found = layouts.read(f"{root}/list.csv")
    assert (found.layout, found.root, found.entries["path"].to_pylist()) == ("manifest", root, ["a.mp4"])


def test_files_that_are_neither_video_nor_image_are_told(tree):
    root = tree(["real/a.mp4", "real/b.mp4.part", "real/notes.txt", ".DS_Store"])
    assert layouts.read(root).warnings == [
        "2 files are neither video nor image by their name and are left out: .DS_Store, real/b.mp4.part"
    ]


def test_two_layouts_fit(tree):
    root = tree(["real/a.mp4"], {"metadata.json": '{"real/a.mp4": {"label": "REAL"}}'})
    with pytest.raises(UserError, match=r"several layouts; choose one with --layout: folders, dfdc$"):
        layouts.read(root)
    assert layouts.read(root, "dfdc").layout == "dfdc"


def test_faceforensics_beside_deeperforensics(tree):
    """Its real videos are those of both; with fakes, the user has to say which of the two is meant."""
    fake = "manipulated_sequences/Deepfakes/c23/videos/000_003.mp4"
    root = tree([*TREES["deeperforensics"], fake])
    with pytest.raises(UserError, match=r"several layouts; choose one with --layout: faceforensics, deeperforensics$"):
        layouts.read(root)
    assert layouts.read(root, "deeperforensics").layout == "deeperforensics"
    assert fake in {entry.path for entry in layouts.read(root, "faceforensics").entries}


def test_archives_that_are_not_unpacked(tree):
    with pytest.raises(UserError, match=r"layout wilddeepfake\)\n  1 archives are not unpacked: fake_test/9\.tar\.gz"):
        layouts.read(tree(["fake_test/9.tar.gz"]))


def test_nothing_found_says_what_is_there_and_what_was_looked_for(tree):
    root = tree(["clips/a.mp4", "notes.txt"])
    with pytest.raises(UserError) as caught:
        layouts.read(root)
    assert (
        str(caught.value)
        == f"""no dataset found at {root} (layout auto): it holds clips, notes.txt. Looked for:
  manifest: manifest.csv or manifest.parquet, or such a file itself
  folders: real/ and fake/ (also below train/, val/, test/)
  faceforensics: original_sequences/*/*/videos/ and manipulated_sequences/*/*/videos/
  celebdf: Celeb-real/, YouTube-real/ and Celeb-synthesis/
  dfdc: metadata.json or labels.csv beside the videos
  dfdcp: dataset.json beside original_videos/, method_A/ and method_B/
  deeperforensics: manipulated_videos/*/
  wilddeepfake: real_train/, fake_train/, real_test/, fake_test/
  forensynths: 0_real/ and 1_fake/ below generators
  synthbuster: images named as in RAISE: r000da54ft
  deepfakebench: dataset_json/*.json
Point --videos at the folder that holds these, or write a manifest with the columns path and label."""
    )
    for wrong in ("folders", "manifest", "unheard"):
        with pytest.raises(UserError, match=f"layout {wrong}"):
            layouts.read(root, wrong)
    with pytest.raises(UserError, match="it is empty or absent"):
        layouts.read(f"{root}/nowhere")
    with pytest.raises(UserError, match="cannot list"):
        layouts.read(f"{root}/clips/a.mp4")


def test_a_layout_without_a_single_video_says_why(tree):
    root = tree([], {"metadata.json": '{"a.mp4": {"label": "REAL"}}'})
    with pytest.raises(UserError, match=r"no videos in .*\n  1 videos of the metadata are absent: a\.mp4"):
        layouts.read(root)


def test_compression_where_there_is_none(tree):
    with pytest.raises(UserError, match=r"--compression is for FaceForensics\+\+"):
        layouts.read(tree(TREES["folders"]), compression="c23")
