"""The page of a detector, from a detector.json on disk."""

import copy
import json

import numpy as np
import pytest

from raydistal import storage
from raydistal.errors import UserError
from raydistal.report import training
from raydistal.report.page import Tile

NUM_EPOCHS, BEST = 12, 8


def history(is_measured=True):
    """Losses fall; that on val rises again after epoch BEST."""
    epoch_E = np.arange(NUM_EPOCHS)
    loss_E, val_E = 0.69 * np.exp(-epoch_E / 5), 0.3 + 0.006 * (epoch_E - BEST) ** 2
    rows = []
    for epoch in range(NUM_EPOCHS):
        measured = {
            "val_loss": val_E[epoch],
            "val_accuracy": 0.95 - val_E[epoch] / 5,
            "val_auc": 0.99 - val_E[epoch] / 6,
        }
        if not is_measured:
            measured = dict.fromkeys(measured)
        rate = 5e-4 * min(1, (epoch + 1) / 4) * (1 if epoch < 4 else np.cos((epoch - 4) / 5.2))
        rows.append(
            {"epoch": epoch, "learning_rate": rate, "train_loss": loss_E[epoch], "images": 4000, "seconds": 61.5}
        )
        rows[-1] |= measured
    return rows


ABOUT = {
    "format": "detector/1",
    "architecture": "efficientnet_b0",
    "input_px": 224,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "num_params": 4_008_829,
    "technique": "train",
    "weights": "imagenet",
    "recipe": {
        "name": "thesis",
        "optimizer": "sgd",
        "learning_rate": 5e-4,
        "epochs": 30,
        "patience": 5,
        "greedy": False,
    },
    "settings": {"architecture": "efficientnet_b0", "seed": 0, "train_faces": "0123456789abcdef"},
    "data": {
        "location": "/runs/one two",
        "manifest": "/runs/one two/distilled",
        "dataset": ["synthetic"],
        "synthetic": True,
        "fingerprint": "0123456789abcdef",
        "num_videos": {"train": 400, "val": 100},
        "num_faces": {"train": {"real": 2000, "fake": 1900}, "val": {"real": 500, "fake": 480}},
    },
    "cost": {"images": 48_000, "seconds": 740.0, "gpu_seconds": 0.0, "device": "cpu", "num_workers": 2},
    "history": history(),
    "best_epoch": BEST,
    "threshold": {"video": 0.4321, "frame": 0.5, "from": "val"},
    "versions": {"python": "3.12.1", "torch": "2.15.0"},
}


def save(location, **changes):
    about = copy.deepcopy(ABOUT) | changes
    storage.write_bytes(f"{location}/detector.json", json.dumps(about).encode())
    return about


@pytest.fixture(scope="module")
def detector(tmp_path_factory, read_page, hostile):
    """A detector of hostile data, reported."""
    location = str(tmp_path_factory.mktemp("detectors") / "b0 <b>")
    save(
        location, data=ABOUT["data"] | {"dataset": ["synthetic", f"{hostile}$x^{{2\u202e"]}, weights="/w/<svg onload=x>"
    )
    return location, training.write(location), read_page(location)


def test_files(detector):
    location, path, _ = detector
    assert path == f"{location}/report/index.html"
    assert storage.list_files(f"{location}/report") == ["index.html", "learning.png"]


def test_says_what_detector_json_says(detector, hostile):
    location, _, page = detector
    for said in (
        "training report b0 <b> efficientnet_b0 · from /w/<svg onload=x> · recipe thesis · datasets synthetic",
        "Synthetic data",
        "Faces learnt from 3,900 2,000 real 1,900 fake of 400 videos",
        "Validation AUC 0.940 accuracy 89.0 % 980 faces of 100 videos",
        "Parameters 4.01 M",
        "Training time 12.3 min 48,000 images on 2 x cpu",
        "12 epochs: the training loss went from 0.690 to 0.076. Epoch 9 was kept, with a validation loss of 0.300, an "
        "accuracy of 89.0 % and an AUC of 0.940.",
        "9 kept 0.139 0.300 0.890 0.940 0.000359 4,000 61.5",
        "threshold, video P(fake) > 0.4321",
        "threshold from chosen on validation faces",
        "optimizer sgd",
        "run /runs/one two learnt from /runs/one two/distilled",
        "faces, train 2,000 real, 1,900 fake",
        f"raydistal evaluate --detectors '{location}' --data '/runs/one two' OTHER_RUN --out EVALUATION",
        "torch 2.15.0",
        hostile,
    ):
        assert said in page.words
    (alt,) = page.attributes("alt")
    assert "Epoch 9 was kept" in alt
    assert "Notices" not in page.words


def test_without_a_val_split(tmp_path, read_page, coarse):
    threshold = {"video": 0.5, "frame": 0.5, "from": "default"}
    data = copy.deepcopy(ABOUT["data"]) | {"synthetic": False}
    data["num_videos"], data["num_faces"]["val"] = {"train": 400}, {"real": 0, "fake": 0}
    save(tmp_path, history=history(is_measured=False), best_epoch=NUM_EPOCHS - 1, threshold=threshold, data=data)
    training.write(str(tmp_path))
    page = read_page(tmp_path)
    assert "Validation AUC \N{EN DASH} no validation faces" in page.words
    assert "Index the data with a val split." in page.words
    assert "Epoch 12 was kept. " in page.words
    assert "Synthetic data" not in page.words


def test_learning_curves_mark_the_epoch_that_was_kept(monkeypatch):
    drawn = []
    monkeypatch.setattr(training, "picture", lambda name, alt, draw: drawn.append(draw))
    training.learning_curves(ABOUT)
    loss, scores, rate = drawn[0].keywords["panels"]
    assert [line.name for line in (*loss.lines, *scores.lines, *rate.lines)] == [
        "training loss",
        "validation loss",
        "validation accuracy",
        "validation AUC",
        "learning rate",
    ]
    assert loss.mark == scores.mark == (9, "kept: epoch 9")
    assert loss.lines[1].x == list(range(1, 13))
    assert loss.lines[1].y == [row["val_loss"] for row in ABOUT["history"]]


def test_notices():
    data = ABOUT["data"] | {"num_faces": {"train": {"real": 100, "fake": 500}, "val": {"real": 1, "fake": 9}}}
    about = ABOUT | {"weights": "random", "best_epoch": NUM_EPOCHS - 1, "data": data}
    assert training.notices(ABOUT) == []
    assert training.notices(about) == [
        "It started from random weights: most published detectors start from those of ImageNet.",
        "The last epoch was the best one: more --epochs may help.",
        "Its accuracy on validation faces, 87.9 %, is no higher than that of calling them all fake: 90.0 %.",
        "The training faces are imbalanced: one class has 5 times as many as the other.",
    ]


def test_tiles_of_one_worker():
    about = ABOUT | {"cost": ABOUT["cost"] | {"num_workers": 1, "seconds": 8000.0, "device": "NVIDIA H100"}}
    assert training.tiles(about)[3] == Tile("Training time", "2.22 h", ["48,000 images", "on NVIDIA H100"])


def test_no_detector(tmp_path):
    with pytest.raises(UserError, match="raydistal train"):
        training.write(str(tmp_path))


@pytest.mark.browser
def test_in_a_browser(detector, look):
    _, path, _ = detector
    assert look(path) == 1


PRUNED = {
    "of": "params",
    "ratio": 0.35,
    "scope": "global",
    "before": {"params": 6_000_000, "macs": 400_000_000, "channels": 20_000},
    "after": {"params": 4_008_829, "macs": 300_000_000, "channels": 15_000},
    "steps": [
        {
            "ratio": 0.175 * number,
            "reached": 0.166 * number,
            "round_to": 8,
            "params": 6_000_000 - 995_585 * number,
            "macs": 400_000_000 - 50_000_000 * number,
            "channels": 20_000 - 2_500 * number,
            "val_loss": 0.2 + number / 10,
            "val_accuracy": 0.95,
            "val_auc": 0.98,
            "epochs": 4,
            "seconds": 61.5,
        }
        for number in (1, 2)
    ],
    "widths": {"conv_stem": [32, 24], "blocks.0.0.conv_dw": [32, 24], "<b>": [16, 16]},
}
PARENT = {"technique": "prune", "parent": {"location": "/d/b 0", "model_id": "0" * 12}, "pruning": PRUNED}


def test_a_pruned_detector(tmp_path, read_page, coarse):
    save(tmp_path, **PARENT)
    training.write(str(tmp_path))
    page = read_page(tmp_path)
    for said in (
        "2 steps, with training after each, removed 33.2 % of the parameters, from 6 M to 4.01 M, 25.0 % of the "
        "multiply-accumulates (MACs), from 400 M to 300 M, and 25.0 % of the channels, from 20,000 to 15,000. The "
        "target was 35.0 % of the parameters, the least important of all.",
        "Parameters 4.01 M 33.2 % fewer than 6 M input 224 x 224 px",
        "2 33.2 aim 35.0 4.01 M 300 M 15,000 8 0.400 0.950 0.980 4 61.5",
        "<b> 16 16 100.0",
        "Training after the last step",
        f"raydistal evaluate --detectors '/d/b 0' {tmp_path} --data",
    ):
        assert said in page.words
    assert "Channels of 3 layers before and after pruning." in page.attributes("alt")[0]
    assert storage.list_files(f"{tmp_path}/report") == ["index.html", "learning.png", "pruning.png"]


def test_pruning_curves(monkeypatch):
    drawn = []
    monkeypatch.setattr(training, "picture", lambda name, alt, draw: drawn.append(draw))
    training.pruning_curves(PRUNED)
    widths, scores = drawn[0].keywords["panels"]
    assert [(line.name, line.x, line.y) for line in widths.lines] == [
        ("before", [1, 2, 3], [32, 32, 16]),
        ("after", [1, 2, 3], [24, 24, 16]),
    ]
    assert [(line.x, line.y) for line in scores.lines] == [([16.6, 33.2], [0.95] * 2), ([16.6, 33.2], [0.98] * 2)]
    training.pruning_curves(PRUNED | {"steps": PRUNED["steps"][:1]})  # one-shot: nothing to draw a curve of
    assert len(drawn[1].keywords["panels"]) == 1


@pytest.mark.parametrize(
    ("kd", "said"),
    [
        ("soft", "kd soft alpha 0.25 temperature 2.0 outputs live teacher 1 /d/b0 (012345abcdef)"),
        ("rkd", "kd rkd kd weight 1.0 outputs live teacher 1"),
        ("contrastive", "kd contrastive kd weight 1.0 tau 0.05 negatives 32 bank 4096 outputs live teacher 1"),
    ],
)
def test_who_taught_and_what_was_trained(kd, said):
    teaching = {"kd": kd, "alpha": 0.25, "temperature": 2.0, "kd_weight": 1.0, "tau": 0.05, "negatives": 32}
    teaching |= {"bank": 4096, "outputs": "live", "teachers": [{"location": "/d/b0", "model_id": "012345abcdef"}]}
    made_of = training.made_of(ABOUT | {"teaching": teaching, "trainable": "bottleneck:8", "adapter": "bottleneck:8"})
    assert " ".join(f"{key} {value}" for key, value in made_of["Taught by"].items()).startswith(said)
    assert (made_of["Detector"]["trained"], made_of["Detector"]["adapters that stayed"]) == ("bottleneck:8",) * 2
    assert "Taught by" not in training.made_of(ABOUT | {"teaching": None, "trainable": "all", "adapter": ""})
