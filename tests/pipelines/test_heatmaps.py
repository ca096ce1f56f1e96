"""The heatmaps pipeline on a local cluster: a detector of random weights, faces of noise, the fakes brighter."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from torch import nn

from raydistal import schemas, storage, tables
from raydistal.detector import checkpoint, lineage, runtime, zoo
from raydistal.detector.heatmaps import Heatmaps
from raydistal.errors import UserError
from raydistal.faces import crop
from raydistal.pipelines import heatmaps

pytestmark = pytest.mark.ray

SPLITS = ("train",) * 2 + ("test",) * 7  # a group each: a real video and a fake of it; the last without faces


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_run):
    """A run, a detector, the same called an export, and one without maps."""
    folder = tmp_path_factory.mktemp("place")
    write_run(folder / "run", videos_per_part=4, splits=SPLITS, faces_per_video=3)
    detector = zoo.create("timm:test_resnet", "random", 0, 96)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    about = checkpoint.save(str(folder / "small"), detector, {"data": {"synthetic": False}})
    exported = runtime.Exported("onnx", b"never opened", 96)
    runtime.save(str(folder / "onnx"), exported, about | {"parent": lineage.ancestor(str(folder / "small"), about)})
    learnt = {"video_id": ["g02-0"], "group_id": ["g02"], "split": ["train"]}
    tables.write_table(f"{folder}/small/trained_on", pa.table(learnt, schemas.TRAINED_ON), {})
    checkpoint.save(str(folder / "vit"), zoo.create("timm:test_vit", "random", 0), {})
    return folder


def config(place, out, detectors=("small", "onnx"), **changes):
    locations = tuple(str(place / name) for name in detectors)
    given = {"detectors": locations, "data": str(place / "run"), "out": str(out), "faces": 7, "batch_size": 5}
    return heatmaps.Config(**(given | changes))


@pytest.fixture(scope="module")
def made(cluster, place, tmp_path_factory):
    asked = config(place, tmp_path_factory.mktemp("out"))
    return asked, heatmaps.run(asked)


def rows(out):
    return tables.read_table(f"{out}/heatmaps", "heatmaps").to_pylist()


@pytest.fixture(scope="module")
def by_hand(place):
    """Of each face of the split, by its slice and then its video and frame: P(fake) and map, one at a time."""
    maps = Heatmaps(checkpoint.load(str(place / "small"))[0])
    videos = {row["video_id"]: row for row in tables.read_table(f"{place}/run/videos", "index").to_pylist()}
    found = {"real": {}, "swap": {}, "talk": {}}
    for face in tables.read_table(f"{place}/run/faces", "extract").to_pylist():
        video = videos[face["video_id"]]
        if video["split"] == "test":
            for frame_index, image in zip(face["frame_index"], face["crop"], strict=True):
                (probability,), (heat_hw,) = maps.explain(crop.decode(image, 96)[None])
                key = face["video_id"], frame_index
                found[video["method"] or "real"][key] = float(probability), heat_hw.flatten()
    return found


def test_means_are_over_all_faces_of_the_split(made, by_hand):
    means = {(row["detector"], row["slice"]): row for row in rows(made[0].out) if row["video_id"] is None}
    assert list(means) == [(name, slice_) for name in ("small", "onnx") for slice_ in ("real", "swap", "talk")]
    for (_, slice_), row in means.items():
        faces = by_hand[slice_].values()
        assert (row["num_faces"], row["height"], row["label"]) == (len(faces), 3, int(slice_ != "real"))
        assert row["probability"] == pytest.approx(np.mean([probability for probability, _ in faces]), abs=1e-5)
        np.testing.assert_allclose(row["heat"], np.mean([heat for _, heat in faces], axis=0), atol=1e-4)
    assert [means["small", slice_]["num_faces"] for slice_ in ("real", "swap", "talk")] == [18, 9, 9]


def test_mean_faces(made, place):
    means = {row["slice"]: crop.decode(row["face"], 192) for row in rows(made[0].out) if row["face"]}
    assert 70 < means["real"].mean() < 90 < 130 < means["swap"].mean() < 150  # as `write_run` draws them


def test_faces_that_are_shown(made, by_hand):
    shown = [row for row in rows(made[0].out) if row["video_id"] and row["detector"] == "small"]
    assert [row["slice"] for row in shown] == ["real"] * 3 + ["swap"] * 2 + ["talk"] * 2
    for row in shown:
        probability, heat = by_hand[row["slice"]][row["video_id"], row["frame_index"]]
        assert (row["num_faces"], row["face"]) == (1, None)
        assert row["probability"] == pytest.approx(probability, abs=1e-5)
        np.testing.assert_allclose(row["heat"], heat, atol=1e-4)
    same = [row for row in rows(made[0].out) if row["video_id"] and row["detector"] == "onnx"]
    assert [row["video_id"] for row in same] == [row["video_id"] for row in shown]


def test_what_is_told(made, place):
    asked, summary = made
    assert (summary["detectors"], summary["videos"]) == (2, 14)
    info = tables.read_info(f"{asked.out}/heatmaps")
    small, onnx = info["detectors"]
    assert (small["cells"], small["num_known"], small["is_exported"]) == ([3, 3], 2, False)
    assert (onnx["num_known"], onnx["is_exported"], onnx["explained_by"]) == (None, True, str(place / "small"))
    page = storage.read_bytes(summary["report"]).decode()
    assert "small learnt from 2 of the 14 videos" in page


def test_the_same_again_is_only_drawn(made, place, no_cluster):
    asked = dataclasses.replace(made[0], batch_size=9)
    storage.delete(made[1]["report"])
    no_cluster(heatmaps)
    before = rows(asked.out)
    heatmaps.run(asked)
    assert rows(asked.out) == before
    assert storage.exists(made[1]["report"])
    for change in ({"seed": 1}, {"faces": 6}, {"detectors": asked.detectors[:1]}):
        with pytest.raises(pytest.fail.Exception, match="needs a cluster"):
            heatmaps.run(dataclasses.replace(asked, **change))


def choose(place, **changes):
    """With one large group and two small ones."""
    asked = config(place, "nowhere", **changes)
    videos = heatmaps._request(asked).videos
    group_id = [{"g06": "g06", "g07": "g07"}.get(group, "large") for group in videos["group_id"].to_pylist()]
    return heatmaps._choose(asked, videos.set_column(3, "group_id", pa.array(group_id)))


def test_the_choice_depends_on_the_seed(place):
    assert choose(place, seed=0) == choose(place, seed=0) != choose(place, seed=1)
    assert len(choose(place, faces=200)) == 12  # those with faces, once


def test_faces_are_of_as_many_groups_as_can_be(place):
    for seed in range(5):
        real = [video_id for video_id in choose(place, seed=seed, faces=9) if video_id.endswith("-0")]
        assert {"g06-0", "g07-0"} < set(real)
        assert len(real) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detectors": ("vit",)}, "convolutional"),
        ({"split": "val"}, "no labelled videos"),
        ({"faces": 0}, "--faces"),
        ({"detectors": ()}, "--detectors"),
    ],
)
def test_what_is_refused_before_a_cluster_starts(place, tmp_path, changes, message, no_cluster):
    no_cluster(heatmaps)
    with pytest.raises(UserError, match=message):
        heatmaps.run(config(place, tmp_path, **changes))


def test_the_folders_to_read_are_not_written(place):
    with pytest.raises(UserError, match="is one of the folders"):
        heatmaps.run(config(place, place / "run"))
