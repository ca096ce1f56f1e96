import json

import numpy as np
import pyarrow as pa
import pytest

from raydistal import tables
from raydistal.detector import checkpoint
from raydistal.search.agenda import Trial
from raydistal.search.findings import Criteria, answer, summarize
from raydistal.search.strategies import Bisection

POINT = {"set": "ranking", "data": 1.0, "prune": 0.0, "bits": 32}
NUM_VIDEOS = 60


def row_of(point, seed=0, status="ok", accuracy=0.9, size_mb=4.0, **values):
    trial = Trial(POINT | point, seed)
    measured = {"accuracy": accuracy, "auc": 0.95, "loss": 0.3, "num_params": 1000, "macs": 5000, "size_mb": size_mb}
    told = measured | {"images": 100, "seconds": 2.0, "epochs": 3, "status": status, "detector": None}
    return {"trial": trial.id, "seed": seed, **trial.point, **told, **values}


def criteria_of(rows, num_seeds=1, out="", **options):
    val = pa.table(
        {
            "video_id": [f"v{number}" for number in range(NUM_VIDEOS)],
            "label": [number % 2 for number in range(NUM_VIDEOS)],
            "group_id": [f"g{number // 2}" for number in range(NUM_VIDEOS)],
        }
    )
    how = {"architecture": "net", "metric": "accuracy", "floor": 0.9, "margin": 0.05} | options
    return Criteria(out=out, rows={row["trial"]: row for row in rows}, num_seeds=num_seeds, val=val, **how)


def test_summary_by_hand():
    rows = [
        row_of({"prune": 0.0}, 0, accuracy=0.75),
        row_of({"prune": 0.0}, 1, accuracy=0.625),
        row_of({"prune": 0.4}, 0, accuracy=0.6875, size_mb=2.0),
        row_of({"prune": 0.4}, 1, "failed", accuracy=None, size_mb=None),
        row_of({"prune": 0.6}, 0, accuracy=0.5, size_mb=3.0),
        row_of({"prune": 0.2}, 0, "stopped", accuracy=0.99),
        row_of({"set": "random", "data": 0.5}, 0, accuracy=0.95, size_mb=1.0),
    ]
    found = summarize(rows, "accuracy", {"accuracy": True, "size_mb": False})
    assert found["counts"] == {"ok": 5, "stopped": 1, "failed": 1}
    assert [(one["prune"], one["num_seeds"], one["size_mb"]) for one in found["points"]] == [
        (0.0, 2, 4.0),
        (0.4, 1, 2.0),
        (0.6, 1, 3.0),
        (0.0, 1, 1.0),
    ]
    assert found["points"][0]["accuracy"] == 0.6875
    pruned = found["points"][1]["id"]
    assert (found["best"], found["front"]) == (pruned, [pruned])  # as accurate, and smaller


def finish(bisection, rows):
    """Tells the bisection of every point that it asks for."""
    while (point := bisection.ask()) is not None:
        assert Trial(point, 0).id in rows
        bisection.tell(point, [0.0])
    assert bisection.is_finished


def test_largest_ratio_that_keeps_the_floor():
    """Figure 6.2.4.3.1 of the thesis, and what its 35 % would say if 40 % were better again."""
    accuracy = {0.2: 0.9, 0.25: 0.8968, 0.3: 0.8877, 0.35: 0.7861, 0.4: 0.95}
    criteria = criteria_of([row_of({"prune": ratio}, accuracy=value) for ratio, value in accuracy.items()], floor=0.88)
    points = [POINT | {"prune": ratio} for ratio in (0.2, 0.25, 0.3, 0.35)]
    bisection = Bisection(points, lambda point: criteria.by_floor(point)["holds"])
    finish(bisection, criteria.rows)
    found = answer(bisection, criteria, "prune")
    assert (found["answer"], found["contradictions"], found["versus_random"]) == (0.3, [], None)
    assert found["text"] == "0.3 is the largest prune ratio that keeps accuracy at 0.88 or more."
    assert found["evidence"] == [
        {"value": 0.2, "mean": 0.9, "holds": True, "verdict": "ok", "text": "accuracy 0.900 is at least 0.88."},
        {"value": 0.25, "mean": 0.8968, "holds": True, "verdict": "ok", "text": "accuracy 0.897 is at least 0.88."},
        {"value": 0.3, "mean": 0.8877, "holds": True, "verdict": "ok", "text": "accuracy 0.888 is at least 0.88."},
        {"value": 0.35, "mean": 0.7861, "holds": False, "verdict": "low", "text": "accuracy 0.786 is below 0.88."},
    ]
    bisection = Bisection([*points, POINT | {"prune": 0.4}], bisection.judge)
    for point in bisection.points:
        bisection.tell(point, None)
    found = answer(bisection, criteria, "prune")
    assert (found["answer"], found["contradictions"]) == (0.3, [0.4])
    assert "0.4 does so too, though a milder one does not" in found["text"]


def test_no_ratio_keeps_the_floor():
    failed = row_of({"prune": 0.2}, 0, "failed", accuracy=None)
    criteria = criteria_of([failed, row_of({"prune": 0.4}, 0, accuracy=0.5)])
    points = [POINT | {"prune": 0.2}, POINT | {"prune": 0.4}]
    bisection = Bisection(points, lambda point: criteria.by_floor(point)["holds"])
    finish(bisection, criteria.rows)
    found = answer(bisection, criteria, "prune")
    assert (found["answer"], found["text"]) == (None, "No prune ratio that was tried keeps accuracy at 0.9 or more.")
    assert [(one["mean"], one["verdict"]) for one in found["evidence"]] == [(None, "failed"), (0.5, "low")]


def scored(out, point, seed, num_wrong):
    """A row whose detector calls that many of the val videos wrong, and is unsure of none."""
    row = row_of(point, seed, detector=f"{out}/{Trial(POINT | point, seed).id}")
    probability = np.array([0.1, 0.9] * (NUM_VIDEOS // 2))
    probability[:num_wrong] = 1 - probability[:num_wrong]
    video_id = [f"v{number}" for number in reversed(range(NUM_VIDEOS))]  # in another order than those of val
    scores = pa.table({"video_id": video_id, "probability": probability[::-1]})
    tables.write_table(f"{out}/scores/{row['trial']}", scores, {})
    about = {"format": checkpoint.FORMAT, "architecture": "net", "input_px": 32, "mean": [0.5] * 3, "std": [0.5] * 3}
    about |= {"digest": "0", "threshold": {"video": 0.5}}
    (out / row["trial"]).mkdir()
    (out / row["trial"] / checkpoint.INFO).write_text(json.dumps(about))
    return row


def test_smallest_share_that_is_as_good_as_all(tmp_path, monkeypatch):
    read, real = [], tables.read_table
    monkeypatch.setattr(tables, "read_table", lambda place, by: read.append(place) or real(place, by))
    num_wrong = {1.0: 2, 0.8: 2, 0.6: 3, 0.4: 24, 0.2: 30}
    rows = [scored(tmp_path, {"data": share}, seed, num + seed) for share, num in num_wrong.items() for seed in (0, 1)]
    rows += [scored(tmp_path, {"data": 0.6, "set": "random"}, seed, 20) for seed in (0, 1)]
    criteria = criteria_of(rows, num_seeds=2, out=str(tmp_path), margin=0.1)
    full = POINT | {"data": 1.0}
    bisection = Bisection(
        [POINT | {"data": share} for share in (0.8, 0.6, 0.4, 0.2)],
        lambda point: criteria.by_test(point, full, "full")["holds"],
        references=[full],
        controls=lambda point: [point | {"set": "random"}],
    )
    finish(bisection, criteria.rows)
    found = answer(bisection, criteria, "data")
    assert (found["answer"], found["contradictions"]) == (0.6, [])
    assert [(one["value"], one["verdict"]) for one in found["evidence"]] == [
        (0.2, "inferior"),
        (0.4, "inferior"),
        (0.6, "non-inferior"),
        (0.8, "non-inferior"),
    ]
    (at_06,) = (one for one in found["evidence"] if one["value"] == 0.6)
    assert at_06["mean"] == pytest.approx(1 - 3.5 / NUM_VIDEOS)
    assert at_06["difference"] == pytest.approx(-1 / NUM_VIDEOS)
    assert found["versus_random"]["verdict"] == "better"
    assert found["text"] == (
        "0.6 is the smallest share of the data that is non-inferior to all of the data. net: 0.6 of the data is better "
        "than a random set of the same size."
    )
    assert len(read) == len(set(read))  # on a store, each is a wait
