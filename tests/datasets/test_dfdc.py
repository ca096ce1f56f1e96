import json

import pytest

from raydistal import storage
from raydistal.datasets import dfdc
from raydistal.datasets.layout import Entry
from raydistal.errors import UserError


def fake(original, label="FAKE"):
    return {"label": label, "split": "train", "original": original}


REAL = {"label": "REAL", "split": "train"}


def read(root):
    entries, warnings = dfdc.read(root, storage.list_files(root))
    return sorted(entries, key=lambda entry: entry.path), warnings


def test_full_release(tree):
    part0 = {"a.mp4": REAL, "b.mp4": fake("a.mp4"), "c.mp4": fake("lost.mp4"), "gone.mp4": fake("a.mp4")}
    part1 = {"d.mp4": fake("a.mp4"), "e.mp4": fake("lost.mp4"), "n.mp4": {"label": "REAL", "original": float("nan")}}
    root = tree(
        [f"train/dfdc_train_part_{name}.mp4" for name in ("0/a", "0/b", "0/c", "0/z", "1/d", "1/e", "1/n", "2/y")],
        {
            "train/dfdc_train_part_0/metadata.json": json.dumps(part0),
            "train/dfdc_train_part_1/metadata.json": json.dumps(part1),
            **dict.fromkeys(["validation/v.mp4", "validation/w.mp4"], ""),
            **dict.fromkeys(["test/videos/t.mp4", "test/u.mp4", "test/._u.mp4"], ""),
            "validation/labels.csv": "filename,label\nv.mp4,0\nw.mp4,1\n",
            "test/metadata.json": '{"t.mp4": {"is_fake": 1, "augmentations": {}}, "u.mp4": {"is_fake": 0}}',
        },
    )
    assert dfdc.matches(storage.list_files(root))
    part0, part1 = "train/dfdc_train_part_0", "train/dfdc_train_part_1"
    lost = {"label": 1, "group": "lost.mp4", "split": "train"}
    assert read(root) == (
        [
            Entry(path="test/u.mp4", label=0, group="u.mp4", split="test"),
            Entry(path="test/videos/t.mp4", label=1, group="t.mp4", split="test"),
            Entry(path=f"{part0}/a.mp4", label=0, group="a.mp4", split="train"),
            Entry(path=f"{part0}/b.mp4", label=1, group="a.mp4", original=f"{part0}/a.mp4", split="train"),
            Entry(path=f"{part0}/c.mp4", original=f"{part0}/lost.mp4", **lost),
            Entry(path=f"{part1}/d.mp4", label=1, group="a.mp4", original=f"{part0}/a.mp4", split="train"),
            Entry(path=f"{part1}/e.mp4", original=f"{part1}/lost.mp4", **lost),
            Entry(path=f"{part1}/n.mp4", label=0, group="n.mp4", split="train"),
            Entry(path="validation/v.mp4", label=0, group="v.mp4", split="val"),
            Entry(path="validation/w.mp4", label=1, group="w.mp4", split="val"),
        ],
        [
            f"1 videos of the metadata are absent: {part0}/gone.mp4",
            f"2 videos or images have no metadata and are left out: {part0}/z.mp4, train/dfdc_train_part_2/y.mp4",
        ],
    )


def test_one_part_alone_has_no_official_split(tree):
    root = tree(["a.mp4", "b.mp4"], {"metadata.json": json.dumps({"a.mp4": REAL, "b.mp4": fake("a.mp4")})})
    assert read(root) == (
        [Entry(path="a.mp4", label=0, group="a.mp4"), Entry(path="b.mp4", label=1, group="a.mp4", original="a.mp4")],
        [],
    )


def test_labels_as_numbers_and_test_labels_csv(tree):
    root = tree(
        ["train/a.mp4", "test/t.mp4"],
        {"train/metadata.json": '{"a.mp4": {"label": 0}}', "test/labels.csv": "filename,label,x\nt.mp4,1,5\n"},
    )
    assert read(root)[0] == [
        Entry(path="test/t.mp4", label=1, group="t.mp4", split="test"),
        Entry(path="train/a.mp4", label=0, group="a.mp4", split="train"),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metadata.json", "[]", "metadata.json is not DFDC metadata"),
        ("metadata.json", '{"a.mp4": 1}', "metadata.json is not DFDC metadata"),
        ("metadata.json", '{"a.mp4": {}}', "metadata.json, a.mp4: neither label nor is_fake"),
        ("metadata.json", '{"a.mp4": {"label": "MAYBE"}}', "metadata.json, a.mp4: unknown label 'MAYBE'"),
        ("metadata.json", '{"a.mp4": ', "metadata.json is not valid JSON"),
        ("labels.csv", "file,label\na.mp4,1\n", "labels.csv has the columns .*needs filename and label"),
        ("labels.csv", "filename,label\na.mp4,7\n", "labels.csv, a.mp4: unknown label '7'"),
    ],
)
def test_bad_annotations(tree, name, text, message):
    with pytest.raises(UserError, match=message):
        read(tree(["a.mp4"], {name: text}))
