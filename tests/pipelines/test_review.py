"""jobs/papers/compression_review.py without its trainings: the grid from an evaluation that is on disk."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from raydistal import schemas, tables
from raydistal.compression import cost
from raydistal.errors import UserError

METHODS = {"source": ("progan", "crn"), "target": ("glide",)}
TRANSFERRED = ("TL+FT", "TL+FT+Q", "TL+adapter")


@pytest.fixture
def job(load_paper):
    return load_paper("compression_review")


def write_detector(place, recipe, number, parent):
    run = "target" if recipe in TRANSFERRED else "source"
    about = {"format": "detector/1", "architecture": "a", "input_px": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}
    about |= {"digest": str(number) * 16, "data": {"dataset": [run], "methods": list(METHODS[run])}}
    place.mkdir(parents=True)
    (place / "detector.json").write_text(json.dumps(about | {"parent": parent}))
    return {"location": str(place), "model_id": about["digest"][:12]}


def test_the_grid(job, tmp_path, monkeypatch, capsys):
    """A detector has the AUC 0.9 on what it learnt from, 0.8 on what its parent did, 0.7 on all else."""
    config = job.Config(source="/source", target="/target", out=str(tmp_path))
    places, detectors, rows, parent = {}, [], [], None
    for number, recipe in enumerate(job.RECIPES):
        place = config.place(recipe, 0)
        places[place] = recipe
        told = write_detector(Path(place), recipe, number, parent)
        parent = parent or told  # all come from BL
        detectors.append(told | {"name": recipe})
        for run, methods in METHODS.items():
            is_own = (run == "target") == (recipe in TRANSFERRED)
            auc = 0.9 if is_own else 0.8 if run == "source" else 0.7
            slices = [("all", "auc", 0.5), ("real", "accuracy", 0.5)]
            slices += [(name, metric, value) for name in methods for metric, value in (("auc", auc), ("accuracy", auc))]
            fixed = {"model_id": told["model_id"], "detector": recipe, "dataset": run, "split": "test", "num": 9}
            rows += [
                fixed | {"level": level, "slice": name, "metric": metric, "value": value if level == "video" else 0.1}
                for name, metric, value in slices
                for level in ("video", "frame")
            ]
    info = {"detectors": detectors, "data": [{"name": run, "datasets": [run]} for run in METHODS]}
    table = pa.Table.from_pylist(rows, schemas.METRICS)
    tables.write_table(str(tmp_path / "evaluation/metrics"), table, {}, **info)
    monkeypatch.setattr(cost, "describe", lambda location: {"num_params": 2e6, "size_mb": 8.0})
    found = job.grid(str(tmp_path / "evaluation"), places)
    assert [row["recipe"] for row in found] == list(job.RECIPES)
    for row in found:
        is_transferred = row["recipe"] in TRANSFERRED
        expected = (0.9, 0.8, None) if is_transferred else (0.9, None, 0.7)
        assert tuple(row[f"{group}_auc"] for group in job.GROUPS) == tuple(map(pytest.approx, expected))
        assert row["same_accuracy"] == pytest.approx(0.7)  # half of 0.9 and 0.5
        assert (row["num_params"], row["size_mb"]) == (2e6, 8.0)
    job.show(found, "Note.")
    shown = capsys.readouterr().err
    assert re.search(r"TL\+FT +2\.000 8\.00 70\.0 / 0\.900 65\.0 / 0\.800 +- ", shown)
    assert max(map(len, shown.splitlines())) <= 80


def test_recipes_start_from_the_baseline(job, tmp_path):
    config = job.Config(source="/source", target="/target", out=str(tmp_path), seeds=2)
    baseline = config.place("BL", 1)
    made = config.trainings(1)
    assert {one.out for one in made.values()} == {config.place(recipe, 1) for recipe in made}
    assert {recipe: (one.data, one.weights, one.trainable) for recipe, one in made.items()} == {
        "BL": ("/source", "imagenet", "all"),
        "KD-small": ("/source", "imagenet", "all"),
        "TL+FT": ("/target", baseline, "last:2"),
        "TL+adapter": ("/target", baseline, "bottleneck:16"),
    }
    assert made["KD-small"].teaching.teachers == (baseline,)
    pruned = config.to_prune(1)
    assert (pruned.detector, pruned.out, pruned.ratio) == (baseline, config.place("CPF", 1), 0.9)
    exported = config.to_export("TL+FT", 1, "/target")
    assert (exported.detector, exported.out) == (config.place("TL+FT", 1), config.place("TL+FT+Q", 1))


def test_wrong_use(job):
    with pytest.raises(UserError, match="name a run twice"):
        job.Config(source="/a", target="/b", others=("/a",), out="/o")
    with pytest.raises(UserError, match="--ratio"):
        job.Config(source="/a", target="/b", out="/o", ratio=1.0)


def test_a_whole_run_without_its_work(job, tmp_path, monkeypatch):
    config = job.Config(source="/source", target="/target", out=str(tmp_path))
    trained, made, tested = [], [], []
    monkeypatch.setattr(job, "videos_to_test", lambda videos, split, location: tested.append(location))
    monkeypatch.setattr(job.tables, "read_table", lambda *_: None)
    monkeypatch.setattr(job.tables, "read_info", lambda place: {"data": [{"datasets": ["one"]}]})
    monkeypatch.setattr(job.tables, "faces_info", lambda *_, **__: None)
    monkeypatch.setattr(job.Training, "check", lambda *_: None)
    monkeypatch.setattr(job, "train_all", lambda verb, configs, training: trained.append((training, configs)))
    monkeypatch.setattr(job, "_on_cluster", lambda work, asked, device: made.append(asked.out))
    monkeypatch.setattr(job.evaluate, "run", lambda asked: {"report": "page"})
    monkeypatch.setattr(job, "grid", lambda out, places: [])
    assert job.run(config) == {"recipes": [], "report": "page"}
    assert tested == ["/source", "/target"]
    assert [training for training, _ in trained] == [config.training] * 2
    made += [one.out for _, configs in trained for one in configs]
    assert set(made) == {config.place(recipe, 0) for recipe in job.RECIPES}
