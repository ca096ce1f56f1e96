import dataclasses
import math
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from raydistal import schemas, tables
from raydistal.compression import counting
from raydistal.compression.teaching import Teaching
from raydistal.detector import checkpoint, runtime, zoo
from raydistal.errors import UserError
from raydistal.faces import crop
from raydistal.pipelines import search
from raydistal.pipelines.trainings import Training
from raydistal.pipelines.trial import Pruning
from raydistal.search.agenda import Trial
from raydistal.search.strategies import Bisection, Sampled

SIZE_PX = 32
SPLITS = ("train",) * 6 + ("val",) * 3 + ("test",)
TINY = Training(
    weights="random", recipe="ckd-vanilla", epochs=1, batch_size=8, learning_rate=2e-3, input_px=SIZE_PX, cpus=2
)
CUTS = Pruning(prune_steps=1, finetune_recipe="ckd-vanilla", finetune_epochs=1)
POINT = {"set": "ranking", "data": 1.0, "prune": 0.0, "bits": 32}


def config(run, **changes):
    values = {"data": str(run), "out": str(run / "out"), "architecture": "timm:test_resnet", "space": ("prune=0,0.4",)}
    return search.Config(**(values | {"training": TINY, "pruning": CUTS} | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_run):
    run = tmp_path_factory.mktemp("run")
    write_run(run, splits=SPLITS, size_px=SIZE_PX)
    order = [f"g{group:02}-{label}" for group in range(6) for label in (1, 0)]
    ranking = {"video_id": order, "label": [int(name[-1]) for name in order], "num_representative": [1] * len(order)}
    ranking = schemas.conform(pa.table(ranking | {"rank": range(len(order))}), schemas.RANKING)
    tables.write_table(f"{run}/ranking", ranking, {"arrange": "frequency"})
    return run


GRID = {"space": ("data=0.05,0.5", "bits=32,8", "prune=0.4")}


@pytest.fixture(scope="module")
def searched(made, cluster):
    return search.run(config(made, **GRID))


def read_rows(out):
    return tables.read_table(f"{out}/trials", "search").to_pylist()


def logits_by_hand(run, location):
    """(N,) labels and logits of the faces of val."""
    found, about = runtime.load(location)
    logits, label_N, logit_N = runtime.start(found), [], []
    split = {row["video_id"]: row["split"] for row in tables.read_table(f"{run}/videos", "index").to_pylist()}
    for row in tables.read_table(f"{run}/faces", "extract").to_pylist():
        if split[row["video_id"]] == "val":
            crops = np.stack([crop.decode(image, about["input_px"]) for image in row["crop"]])
            logit_N += logits(crops).tolist()
            label_N += [int(row["video_id"][-1])] * len(crops)
    return np.array(label_N), np.array(logit_N)


@pytest.mark.ray
def test_every_trial_is_a_row(made, searched):
    rows = {(row["data"], row["bits"]): row for row in read_rows(made / "out")}
    assert set(rows) == {(data, bits) for data in (0.05, 0.5) for bits in (32, 8)}
    for bits in (32, 8):
        row = rows[0.5, bits]
        trial = Trial(POINT | {"data": 0.5, "prune": 0.4, "bits": bits}, 0)
        place = f"{made}/out/detectors/{trial.stages[-1]}"
        label_N, logit_N = logits_by_hand(made, place)
        margin_N = np.where(label_N == 1, logit_N, -logit_N)
        fakes, reals = logit_N[label_N == 1], logit_N[label_N == 0]
        pairs = [(fake > real) + (fake == real) / 2 for fake in fakes for real in reals]
        pruned = checkpoint.load(f"{made}/out/detectors/{trial.stages[1]}")[0]
        file = Path(place, "model.onnx" if bits == 8 else "weights.safetensors")
        spent = {name: row[name] for name in ("seconds", "cpu_seconds")}
        none = dict.fromkeys(("alpha", "temperature", "kd_weight", "tau", "negatives", "error"))
        assert row == none | spent | trial.point | {
            "trial": trial.id,
            "status": "ok",
            "seed": 0,
            "detector": place,
            "accuracy": np.mean(margin_N > 0),
            "auc": pytest.approx(np.mean(pairs)),
            "loss": pytest.approx(np.mean(np.log1p(np.exp(-margin_N))), rel=1e-5),
            "num_params": sum(parameter.numel() for parameter in pruned.parameters()),
            "macs": counting.count_macs(pruned),
            "size_mb": os.path.getsize(file) / 1e6,
            "epochs": 2,
            "images": 2 * 6 * 6,
            "gpu_seconds": 0.0,
        }
        assert min(spent.values()) > 0
        learnt = tables.read_table(f"{made}/out/detectors/{trial.stages[0]}/trained_on", "train").to_pylist()
        assert {one["video_id"] for one in learnt if one["split"] == "train"} == {
            f"g{group:02}-{label}" for group in range(3) for label in (0, 1)
        }
        failed = rows[0.05, bits]
        assert (failed["status"], failed["detector"], failed["accuracy"]) == ("failed", None, None)
        assert "the set 0.05 has 0 faces of real videos" in failed["error"]
    assert len(list(Path(made, "out/detectors").glob("train-*"))) == 1
    assert {name: searched[name] for name in ("trials", "ok", "stopped", "failed", "bisect")} == {
        "trials": 4,
        "ok": 2,
        "stopped": 0,
        "failed": 2,
        "bisect": None,
    }
    info = tables.read_info(f"{made}/out/trials")
    assert info["best"] == searched["best"]
    (smallest,) = (one["id"] for one in info["points"] if one["bits"] == 8)
    assert smallest in searched["front"]
    assert Path(searched["report"]).exists()


def files_of(folder):
    return {str(path): path.read_bytes() for path in Path(folder).rglob("*.parquet")} | {
        str(path): path.stat().st_mtime_ns for path in Path(folder).rglob("detector.json")
    }


@pytest.mark.ray
def test_a_killed_search_goes_on(made, searched):
    """Killed while it exported: no row, half of the directory, and what Tune left."""
    before = read_rows(made / "out")
    (row,) = (row for row in before if row["status"] == "ok" and row["bits"] == 8)
    out = made / "out"
    (out / "trials" / f"part-{row['trial']}.parquet").unlink()
    (out / "trials" / tables.INFO).unlink()
    (Path(row["detector"]) / checkpoint.INFO).unlink()
    (out / search.TUNE_FOLDER).mkdir()
    kept = {name: content for name, content in files_of(out).items() if "failed" not in name}
    narrower = {"space": ("data=0.5", "bits=32,8", "prune=0.4")}  # the failed ones are not of this space
    again = search.run(config(made, **narrower))
    assert (again["trials"], again["ok"], again["failed"]) == (2, 2, 0)
    after = {row["trial"]: row for row in read_rows(out)}
    changing = ("seconds", "cpu_seconds")
    for one in before:
        assert {name: value for name, value in one.items() if name not in changing} == {
            name: value for name, value in after[one["trial"]].items() if name not in changing
        }
    assert kept.items() <= files_of(out).items()
    assert not (out / search.TUNE_FOLDER).exists()


@pytest.mark.ray
def test_a_trial_that_falls_behind_is_stopped(made, searched, tmp_path):
    """Its teacher says fake of what is real."""
    (row,) = (row for row in read_rows(made / "out") if row["status"] == "ok" and row["bits"] == 32)
    teacher, about = checkpoint.load(row["detector"])
    with torch.no_grad():
        for parameter in teacher.network.get_classifier().parameters():
            parameter.neg_()
    checkpoint.save(str(tmp_path / "liar"), teacher, about)
    training = dataclasses.replace(TINY, epochs=2, cpus=4)  # one after the other
    asked = {"space": ("alpha=0,1",), "training": training, "teaching": Teaching(teachers=(str(tmp_path / "liar"),))}
    found = search.run(config(made, out=str(tmp_path / "out"), stop_early=True, **asked))
    assert (found["ok"], found["stopped"], found["failed"]) == (1, 1, 0)
    good, bad = sorted(read_rows(tmp_path / "out"), key=lambda row: row["alpha"])
    assert (good["status"], good["epochs"], good["alpha"]) == ("ok", 2, 0.0)
    assert (bad["status"], bad["alpha"], bad["detector"], bad["size_mb"]) == ("stopped", 1.0, None, None)
    assert (bad["epochs"], bad["images"]) == (1, 6 * 12)
    assert bad["accuracy"] < good["accuracy"]
    assert checkpoint.read_about(good["detector"])["teaching"]["outputs"] == "cached"  # the teacher looked only once


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"space": ("alpha=0,1",)}, "alpha has no part in a training without --teachers"),
        ({"space": ("tau=1",), "teaching": Teaching(teachers=("T",))}, "tau has no part in a training --kd soft"),
        ({"space": ("negatives=5000",), "teaching": Teaching(teachers=("T",), kd="contrastive")}, "--bank of no less"),
        ({"space": ("prune=0..0.5",)}, "prune is a range"),
        ({"strategy": "bisect", "space": ("prune=0..0.5",)}, "--floor 0.9"),
        ({"strategy": "bisect", "space": ("bits=8,32",)}, "not for bits"),
        ({"strategy": "bisect", "space": ("prune=0..0.5", "bits=8,32"), "floor": 0.9}, "varies one quantity, not 2"),
        ({"strategy": "pareto", "stop_early": True}, "--stop-early"),
        ({"strategy": "tpe", "space": ("prune=0.5",)}, "something to choose from"),
        ({"seeds": 0}, "--seeds"),
        ({"training": dataclasses.replace(TINY, recipe="none")}, "unknown --recipe"),
    ],
)
def test_what_is_refused(tmp_path, changes, told):
    with pytest.raises(UserError, match=told):
        config(tmp_path, **changes)


def test_other_settings_are_refused_before_any_work(made, tmp_path, monkeypatch):
    job_config = config(made, out=str(tmp_path))
    videos = tables.read_table(f"{made}/videos", "index")
    networks, create = [], zoo.create
    monkeypatch.setattr(zoo, "create", lambda name, *how, **more: networks.append(name) or create(name, *how, **more))
    settings = search._settings(job_config, videos)
    assert len(networks) == 1
    row = {"trial": "t", "status": "ok", "seed": 0, **POINT, "epochs": 1, "images": 1}
    row |= {"seconds": 1.0, "cpu_seconds": 1.0, "gpu_seconds": 0.0}
    with tables.sole_writer(f"{tmp_path}/trials") as claim:
        search._write_row(f"{tmp_path}/trials", row, settings, claim)
    other = dataclasses.replace(job_config, training=dataclasses.replace(TINY, learning_rate=1e-3))
    with pytest.raises(UserError, match=r"recipe: .*'learning_rate': 0.002.* there, .*'learning_rate': 0.001.* now"):
        search.run(other)


def test_val_must_suffice(made, tmp_path, write_run):
    with pytest.raises(UserError, match=r"val has 3 groups; .* at least 6 are needed"):
        search.run(config(made, strategy="bisect", space=("data=0.2..1",)))
    write_run(tmp_path, splits=("train",) * 6 + ("test",), size_px=SIZE_PX)
    with pytest.raises(UserError, match="val, which has no real or no fake faces"):
        search.run(config(tmp_path))


def known(point, status="ok", seed=0):
    trial = Trial(POINT | point, seed)
    measured = {"accuracy": 0.9, "size_mb": 1.0, "epochs": 3}
    return {"trial": trial.id, "status": status, "seed": seed, **trial.point, **measured}


def agenda_of(made, rows, **changes):
    asked = config(made, **changes)
    videos = tables.read_table(f"{made}/videos", "index")
    names = ("data", "out", "architecture", "training", "teaching", "pruning", "metric", "gpus")
    options = {name: getattr(asked, name) for name in names}
    return search._agenda(asked, search.Job(device="cpu", val=videos, **options), rows)


def planned(agenda):
    """Points and seeds of all trials to be run, each failing."""
    found = []
    while (trial := agenda.next()) is not None:
        found.append((trial.point["prune"], trial.seed))
        agenda.finish(trial, known(trial.point, "failed", trial.seed))
    assert agenda.is_finished
    return found


def test_rows_of_other_searches_are_used(made):
    rows = [known({"prune": 0.4}), known({"prune": 0.6}, "failed"), known({"prune": 0.5}, "stopped")]
    rows += [known({"prune": 0.4, "bits": 8}), known({"prune": 0.4}, seed=1)]
    space = ("prune=0.4,0.5,0.6,0.7",)
    agenda, _, _ = agenda_of(made, rows, space=space)
    assert planned(agenda) == [(0.5, 0), (0.6, 0), (0.7, 0)]
    agenda, _, _ = agenda_of(made, rows, space=space, seeds=2, stop_early=True)
    assert planned(agenda) == [(0.5, 1), (0.6, 0), (0.6, 1), (0.7, 0), (0.7, 1)]
    agenda, bisection, _ = agenda_of(made, rows, space=space, strategy="bisect", floor=0.8)
    assert isinstance(bisection, Bisection)
    assert planned(agenda) == [(0.7, 0), (0.5, 0)]


def test_samplers_finish_what_was_begun(made, monkeypatch):
    monkeypatch.setattr(search, "_num_at_once", lambda config: 1)
    rows = [known({"prune": 0.31}), known({"prune": 0.32}, "failed"), known({"prune": 0.9})]
    agenda, _, _ = agenda_of(made, rows, space=("prune=0.3..0.5",), strategy="tpe", num_trials=5)
    assert isinstance(agenda.strategy, Sampled)
    first, *others = planned(agenda)
    assert first == (0.32, 0)
    assert len(others) == 3
    assert all(0.3 <= prune <= 0.5 and math.isfinite(prune) for prune, _ in others)
