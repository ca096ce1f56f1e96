"""The select pipeline on a local cluster, on faces whose features are made up."""

from collections import Counter
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.pipelines import select
from raydistal.selection.uncertainty import ProbeStrategy, Strategy

pytestmark = pytest.mark.ray

NUM_VIDEOS, NUM_DIMS = 40, 8


def write_run(run, videos_per_part=7, seed=0, finished=True):
    """40 videos: a real one and a fake of it per group; every tenth has no face. Fakes are shifted along one axis."""
    rng = np.random.default_rng(seed)
    names = [f"v{number:02}" for number in range(NUM_VIDEOS)]
    labels = np.arange(NUM_VIDEOS) % 2
    videos = pa.table(
        {
            "video_id": names,
            "dataset": ["made up"] * NUM_VIDEOS,
            "uri": [f"/videos/{name}" for name in names],
            "label": pa.array(labels, pa.int8()),
            "method": [None, "warp"] * (NUM_VIDEOS // 2),
            "group_id": [f"g{number // 2:02}" for number in range(NUM_VIDEOS)],
            "split": ["test" if number >= 36 else "train" for number in range(NUM_VIDEOS)],
        }
    )
    tables.write_table(f"{run}/videos", schemas.conform(videos, schemas.VIDEOS), {})
    rows = []
    for number, name in enumerate(names):
        num_faces = 0 if number % 10 == 9 else 3 + number % 3
        features_ND = rng.normal(0, 1, (num_faces, NUM_DIMS)) + np.eye(NUM_DIMS)[0] * labels[number] * 2
        row = {
            "video_id": [name],
            "status": ["ok" if num_faces else "no_face"],
            "error": [None if num_faces else "no face in 5 frames"],
            "num_frames_seen": [5],
            "frame_index": schemas.list_column(np.arange(num_faces, dtype=np.int32) * 10, [num_faces]),
            "pts_s": schemas.list_column(np.arange(num_faces) * 0.4, [num_faces]),
            "box_xyxy_px": schemas.list_column(np.tile(np.float32([0, 0, 90, 100]), (num_faces, 1)), [num_faces]),
            "detection_score": schemas.list_column(np.ones(num_faces, np.float32), [num_faces]),
            "feature": schemas.list_column(features_ND.astype(np.float16), [num_faces]),
        }
        rows.append(schemas.conform(pa.table(row), schemas.faces_schema(NUM_DIMS)))
    for start in range(0, NUM_VIDEOS, videos_per_part):
        tables.write_part(f"{run}/faces", pa.concat_tables(rows[start : start + videos_per_part]), {})
    if finished:
        tables.write_info(f"{run}/faces", {}, num_rows=NUM_VIDEOS, counts={"ok": 36, "no_face": 4})


def read(run, name):
    return tables.read_table(f"{run}/{name}", "select")


def config(run, **changes):
    return select.Config(**{"out": str(run), "frames": 30, "ratio": 0.25} | changes)


@pytest.fixture
def run(tmp_path):
    write_run(tmp_path)
    return tmp_path


def algorithm_1(frames, num_per_class):
    """DeepDistAL, Algorithm 1, step 3, as printed: argmax, append while the class has room, set to minus infinity."""
    uncertainty = [frame["uncertainty"] for frame in frames]
    selected = {0: [], 1: []}
    for _ in frames:
        index = max(range(len(frames)), key=lambda i: uncertainty[i])
        if len(selected[frames[index]["label"]]) < num_per_class:
            selected[frames[index]["label"]].append(index)
        uncertainty[index] = -np.inf
    return [frames[index] for index in selected[0] + selected[1]]


@pytest.mark.parametrize("strategy", ["entropy", "random"])
def test_algorithms_1_and_2(cluster, run, strategy):
    summary = select.run(config(run, strategy=strategy))
    scored = read(run, "uncertainty").sort_by("video_id")
    frames = tables.explode_faces(scored).to_pylist()
    assert {frame["video_id"] for frame in frames} == {f"v{n:02}" for n in range(36) if n % 10 != 9}
    chosen = read(run, "representative").to_pylist()
    expected = algorithm_1(frames, 15)
    assert [(f["video_id"], f["frame_index"]) for f in chosen] == [(f["video_id"], f["frame_index"]) for f in expected]
    assert [f["order"] for f in chosen] == [*range(15), *range(15)]

    histogram = Counter(frame["video_id"] for frame in expected)
    mean = {row["video_id"]: np.mean(row["uncertainty"]) for row in scored.to_pylist() if row["uncertainty"]}
    names = [f"v{number:02}" for number in range(36)]
    order = sorted(names, key=lambda name: (-histogram[name], -mean.get(name, -np.inf), name))
    ranking = read(run, "ranking").to_pylist()
    assert [row["video_id"] for row in ranking] == order
    assert [row["num_representative"] for row in ranking] == [histogram[name] for name in order]
    distilled = read(run, "distilled")
    assert distilled.schema.remove_metadata().equals(schemas.DISTILLED)
    assert distilled.select(["video_id", "rank"]).to_pylist() == [
        {"video_id": name, "rank": rank} for rank, name in enumerate(order[:9])
    ]
    assert (summary["videos"], summary["distilled"], summary["representative"]) == (36, 9, 30)


def test_result_does_not_depend_on_how_faces_lie_in_parts(cluster, tmp_path):
    for videos_per_part in (1, 40):
        write_run(tmp_path / str(videos_per_part), videos_per_part)
        select.run(config(tmp_path / str(videos_per_part)))
    for name in ("representative", "ranking", "distilled", "coverage"):
        assert read(tmp_path / "1", name).equals(read(tmp_path / "40", name))


def test_a_probe_on_a_sample(cluster, run, tmp_path, monkeypatch):
    monkeypatch.setattr(select, "PROBE_BYTES", 80 * NUM_DIMS * 4)  # about half of the faces
    select.run(config(run))
    first = read(run, "representative")
    write_run(tmp_path / "again", 3)
    select.run(config(tmp_path / "again"))
    assert first.equals(read(tmp_path / "again", "representative"))


@pytest.mark.parametrize("strategy", get_args(Strategy))
def test_every_strategy_gives_valid_tables(cluster, run, strategy):
    select.run(config(run, strategy=strategy, arrange="balanced"))
    representative = read(run, "representative")
    assert representative.num_rows == 30
    assert Counter(representative["label"].to_pylist()) == {0: 15, 1: 15}
    scored = tables.explode_faces(read(run, "uncertainty"))
    assert np.isfinite(scored["uncertainty"].to_numpy()).all()
    probability = scored["probability"].to_numpy()
    assert (
        np.isnan(probability).all()
        if strategy not in get_args(ProbeStrategy)
        else ((probability > 0) & (probability < 1)).all()
    )
    assert sorted(read(run, "ranking")["rank"].to_pylist()) == list(range(36))


def test_probes_learn_and_uncertain_frames_lie_near_their_boundary(cluster, run):
    select.run(config(run))
    frames = tables.explode_faces(read(run, "uncertainty"))
    probability, label = frames["probability"].to_numpy(), frames["label"].to_numpy()
    assert ((probability > 0.5) == label).mean() > 0.75
    representative = read(run, "representative")["probability"].to_numpy()
    assert np.abs(representative - 0.5).max() < np.abs(probability - 0.5).max()


def test_rounds(cluster, run):
    select.run(config(run, rounds=3))
    representative = read(run, "representative")
    frames = list(zip(representative["video_id"].to_pylist(), representative["frame_index"].to_pylist(), strict=True))
    assert len(set(frames)) == 30
    by_label = {
        label: [row["order"] for row in representative.to_pylist() if row["label"] == label] for label in (0, 1)
    }
    assert by_label == {0: list(range(15)), 1: list(range(15))}
    first_round = [row for row in representative.to_pylist() if row["order"] < 5]
    assert all(np.isnan(row["probability"]) for row in first_round)  # random: no probe yet


def test_rounds_are_kept_when_only_the_arrangement_changes(cluster, run):
    select.run(config(run, rounds=2))
    before = read(run, "representative").drop_columns(["probability"])  # NaN in the first round
    select.run(config(run, rounds=2, arrange="balanced"))
    assert read(run, "representative").drop_columns(["probability"]).equals(before)
    assert sum(read(run, "ranking")["num_representative"].to_pylist()) == 30


def test_another_ratio_costs_nothing(cluster, run, no_cluster):
    select.run(config(run))
    no_cluster(select)
    files = [name for name in storage.list_files(str(run)) if not name.startswith(("distilled", "coverage"))]
    before = {name: storage.read_bytes(f"{run}/{name}") for name in files}
    small = read(run, "distilled")["video_id"].to_pylist()
    select.run(config(run, ratio=0.5))
    assert {name: storage.read_bytes(f"{run}/{name}") for name in files} == before
    assert read(run, "distilled")["video_id"].to_pylist()[: len(small)] == small
    assert read(run, "distilled").num_rows == 18


def test_new_faces_are_scored(cluster, run, no_cluster):
    select.run(config(run))
    write_run(run, seed=1)
    tables.write_info(f"{run}/faces", {}, num_rows=NUM_VIDEOS, counts={"ok": 36, "no_face": 3, "crashed": 1})
    no_cluster(select)
    with pytest.raises(pytest.fail.Exception, match="needs a cluster"):
        select.run(config(run))


def test_shortage_is_told_not_padded(cluster, run):
    summary = select.run(config(run, frames=1000, strategy="random"))
    num_faces = len(tables.explode_faces(read(run, "uncertainty")))
    assert summary["representative"] == num_faces
    assert summary["shortage"]["real"] + summary["shortage"]["fake"] == 1000 - num_faces


def test_groups_stay_together(cluster, run):
    select.run(config(run, arrange="groups", ratio=0.3))
    groups = Counter(read(run, "distilled")["group_id"].to_pylist())
    assert set(groups.values()) == {2}
    assert sum(groups.values()) == 10


def test_coverage_counts_videos(cluster, run):
    select.run(config(run))
    rows = {(row["dimension"], row["value"]): row for row in read(run, "coverage").to_pylist()}
    distilled = read(run, "distilled")
    assert rows["label", "fake"]["num_full"] == 18
    assert rows["label", "fake"]["num_distilled"] == sum(distilled["label"].to_pylist())
    assert rows["face_size", "64-128"]["num_full"] == 33
    assert rows["status", "no_face"]["num_full"] == 3


def test_refusals(tmp_path, run):
    with pytest.raises(UserError, match="raydistal index"):
        select.run(config(tmp_path / "nothing"))
    with pytest.raises(UserError, match=r"no labelled videos in split 'val'.*train"):
        select.run(config(run, split="val"))
    write_run(tmp_path / "half", finished=False)
    with pytest.raises(UserError, match="unfinished"):
        select.run(config(tmp_path / "half"))
    for bad in (
        {"ratio": 0},
        {"ratio": 1.1},
        {"frames": 1},
        {"rounds": 0},
        {"rounds": 2, "strategy": "random"},
    ):
        with pytest.raises(UserError):
            config(run, **bad)
