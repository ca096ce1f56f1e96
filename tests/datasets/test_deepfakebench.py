import json

import pytest

from raydistal.datasets import deepfakebench
from raydistal.datasets.layout import Entry
from raydistal.errors import UserError


def video(label, *frames):
    return {"label": label, "frames": list(frames)}


FF = "FaceForensics++/original_sequences/youtube/c23/frames/{}.png"
FAKE = "FaceForensics++/manipulated_sequences/Deepfakes/c23/frames/000_003/{}.png"
CELEB = "Celeb-DF-v2/Celeb-{}/frames/{}.png"
LISTS = {
    "FaceForensics++": {
        "FF-real": {
            "train": {"c23": {"000": video("FF-real", FF.format("000/000"), FF.format("000/009"))}},
            "val": {"c23": {}},
            "test": {"c23": {"003": video("FF-real", FF.format("003/000"))}},
        },
        "FF-DF": {"train": {"c23": {"000_003": video("FF-DF", "./datasets/rgb/" + FAKE.format("000"))}}},
    },
    "Celeb-DF-v2": {
        "CelebDFv2_real": {
            split: {"id0_0000": video("CelebDFv2_real", "Celeb-DF-v2\\Celeb-real\\frames\\id0_0000\\0.png")}
            for split in ("train", "val", "test")
        },
        "CelebDFv2_fake": {"train": {"id0_id1_0003": video("CelebDFv2_fake", CELEB.format("synthesis", "a/1"))}},
    },
}


def test_official_layout(tree):
    names = [f"preprocessing/dataset_json/{name}.json" for name in LISTS]
    media = [f"rgb/{FF.format(name)}" for name in ("000/000", "000/009", "003/000")]
    media += [f"rgb/{FAKE.format('000')}", f"rgb/{CELEB.format('real', 'id0_0000/0')}", "rgb/other.png"]
    texts = {name: json.dumps({key: LISTS[key]}) for name, key in zip(names, LISTS, strict=True)}
    root = tree(media, texts)
    assert deepfakebench.matches([*names, *media])
    ff = {"dataset": "FaceForensics++", "compression": "c23", "group": "FaceForensics++/000"}
    assert deepfakebench.read(root, [*names, *media]) == (
        [
            Entry(path=media[0], label=0, split="train", **ff),
            Entry(path=media[1], label=0, split="train", **ff),
            Entry(path=media[2], label=0, split="test", **ff),  # the face in 000_003
            Entry(path=media[3], label=1, split="train", method="FF-DF", **ff),
            Entry(path=media[4], label=0, split="test", dataset="Celeb-DF-v2", group="Celeb-DF-v2/id0"),
        ],
        [
            "1 frames are listed in several splits; each stays in the last of val, train, test: "
            "rgb/Celeb-DF-v2/Celeb-real/frames/id0_0000/0.png",
            "1 frames of dataset_json are absent: Celeb-DF-v2/Celeb-synthesis/frames/a/1.png",
            "1 videos or images are not in dataset_json and are left out: rgb/other.png",
        ],
    )


def test_lists_that_repeat_frames_share_groups(tree):
    """DeepfakeBench writes FF-DF.json and FF-F2F.json beside FaceForensics++.json, each with the real videos."""
    pairs = {"FF-DF": "000_003", "FF-F2F": "003_000", "FF-FH": "000_003"}
    media = [FF.format("003/0"), *(f"{name}/{pair}/0.png" for name, pair in pairs.items())]
    real = {"train": {"c23": {"003": video("FF-real", media[0])}}}
    fake = {
        name: {"train": {"c23": {pair: video(name, path)}}}
        for (name, pair), path in zip(pairs.items(), media[1:], strict=True)
    }
    lists = {
        "FF-DF": {"FF-real": real, "FF-DF": fake["FF-DF"]},
        "FF-F2F": {"FF-real": real, "FF-F2F": fake["FF-F2F"]},
        "FaceForensics++": {"FF-real": real, "FF-DF": fake["FF-DF"], "FF-F2F": fake["FF-F2F"]},
        "FaceShifter": {"FF-real": real, "FF-FH": fake["FF-FH"]},
    }
    texts = {f"dataset_json/{name}.json": json.dumps({name: content}) for name, content in lists.items()}
    entries, warnings = deepfakebench.read(tree(media, texts), [*texts, *media])
    assert warnings == []
    assert {(entry.path, entry.dataset) for entry in entries} == {
        *((path, "FaceForensics++") for path in media[:3]),
        (media[3], "FaceShifter"),
    }
    assert len({entry.group for entry in entries}) == 1


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["1152039_A_001", "22_1152039_A_001", "1152039_22_B_000"], ["1152039", "1152039", "22"]),
        (["M101_BlendShape_camera_down", "000_M101", "001_M101", "002_W004"], ["000", "000", "000", "002"]),
        (["01__scene", "01_02__scene__AB", "id1_0000", "id0_id1_0003"], ["01", "01", "id1", "id0"]),
        (["0017", "0017_fake", "aaqaifqrwn"], ["0017", "0017", "aaqaifqrwn"]),
    ],
)
def test_people_and_sources_are_told_by_names(tree, names, groups):
    media = [f"{name}/0.png" for name in names]
    videos = {name: video("", path) for name, path in zip(names, media, strict=True)}
    pair = {"001_002": video("", "001_002/0.png")}  # of another dataset, where numbers mean something else
    contents = {"D": {"D_Fake": {"test": videos}}, "other": {"O": {"test": pair}}}
    media.append("001_002/0.png")
    texts = {f"dataset_json/{name}.json": json.dumps({name: content}) for name, content in contents.items()}
    entries, _ = deepfakebench.read(tree(media, texts), [*texts, *media])
    assert [entry.group for entry in entries] == [*(f"D/{group}" for group in groups), "other/001"]


def test_dfdc_as_it_is_listed(tree):
    """The script lists train again as val, where it also leaves the label and frames of a test video."""
    train, test = ({name: video("DFDC_Real", f"DFDC/{name}/0.png")} for name in "ab")
    content = {"DFDC": {"DFDC_Real": {"train": train, "test": test, "val": test["b"] | train}}}
    media = ["DFDC/a/0.png", "DFDC/b/0.png"]
    root = tree(media, {"dataset_json/DFDC.json": json.dumps(content)})
    entries, _ = deepfakebench.read(root, ["dataset_json/DFDC.json", *media])
    assert {entry.path: entry.split for entry in entries} == {media[0]: "train", media[1]: "test"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "is no list of DeepfakeBench"),
        ({"UADFV": {"UADFV_Real": {"training": {}}}}, "unknown split 'training' of UADFV, UADFV_Real"),
        ({"UADFV": {"UADFV_Real": {"test": {"0001": {"label": "UADFV_Real"}}}}}, "'0001' of UADFV_Real has no list"),
        ({"FF": {"FF-DF": {"test": {"c23": []}}}}, "is no list of DeepfakeBench"),
    ],
)
def test_bad_list(tree, content, message):
    root = tree([], {"dataset_json/a.json": json.dumps(content)})
    with pytest.raises(UserError, match=message):
        deepfakebench.read(root, ["dataset_json/a.json"])
