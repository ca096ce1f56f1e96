import json

import pytest

from raydistal.datasets import dfdcp
from raydistal.datasets.layout import Entry
from raydistal.errors import UserError

REAL = {"label": "real", "set": "test", "target_id": 11, "swapped_id": None, "augmentations": []}
FAKE = {"label": "fake", "set": "train", "target_id": 22, "swapped_id": 11, "augmentations": ["fps-15"]}
LIST = {
    "original_videos/11/11_A_001.mp4": REAL,
    "original_videos/22/22_A_001.mp4": REAL | {"target_id": 22, "set": "train"},
    "method_A/22/22_A/11_22_A_001.mp4": FAKE | {"source_video": "22_A"},
    "method_B/33/33_C/11_33_C_002.mp4": FAKE | {"target_id": 33},
}


@pytest.mark.parametrize("places", [list(LIST), [f"{key.split('/')[0]}/videos/{key.split('/')[-1]}" for key in LIST]])
def test_official_layout_and_copies_with_videos(tree, places):
    places = places[:-1]
    files = [*places, "method_A/other.mp4", "dataset.json"]
    root = tree(files, {"dataset.json": json.dumps(LIST)})
    assert dfdcp.matches(files)
    assert dfdcp.read(root, files) == (
        [
            Entry(path=places[0], label=0, group="11", split="test"),
            Entry(path=places[1], label=0, group="22", split="train"),
            Entry(path=places[2], label=1, group="22", method="method_A", original=places[1], split="train"),
        ],
        [
            "1 videos of dataset.json are absent: method_B/33/33_C/11_33_C_002.mp4",
            "1 videos or images are not in dataset.json and are left out: method_A/other.mp4",
        ],
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "must map paths to their label"),
        ({"method_A/a.mp4": FAKE | {"label": "swap"}}, "method_A/a.mp4: unknown label 'swap'"),
        ({"method_A/a.mp4": FAKE | {"set": "valid"}}, "unknown set 'valid'"),
        ({"method_A/a.mp4": {"label": "fake", "set": "train"}}, "no target_id"),
    ],
)
def test_bad_list(tree, content, message):
    root = tree(["method_A/a.mp4"], {"dataset.json": json.dumps(content)})
    with pytest.raises(UserError, match=message):
        dfdcp.read(root, ["method_A/a.mp4", "dataset.json"])
