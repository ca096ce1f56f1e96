import pytest

from raydistal.datasets import layouts
from raydistal.errors import UserError

TREES = {
    "folders": ["real/a.mp4", "fake/a.mp4"],
    "faceforensics": ["original_sequences/youtube/c23/videos/000.mp4"],
    "celebdf": ["Celeb-real/id0_0000.mp4"],
    "dfdc": ["a.mp4"],
    "manifest": ["a.mp4", "real/b.mp4", "fake/c.mp4"],
}
TEXTS = {"dfdc": {"metadata.json": '{"a.mp4": {"label": "REAL"}}'}, "manifest": {"manifest.csv": "path\na.mp4\n"}}


@pytest.mark.parametrize("name", TREES)
def test_found_and_named(tree, name):
    root = tree(TREES[name], TEXTS.get(name))
    found = layouts.read(root)
    assert (found.layout, found.root) == (name, root)
    assert found == layouts.read(root, name)


def test_a_manifest_file(tree):
    root = tree(["a.mp4"], {"list.csv": "path\na.mp4\n"})
    found = layouts.read(f"{root}/list.csv")
    assert (found.layout, found.root, [entry.path for entry in found.entries]) == ("manifest", root, ["a.mp4"])


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
