"""Two detectors of an evaluation that is on disk: numbers from a random generator."""

import json

import numpy as np
import pyarrow as pa
import pytest

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.pipelines import difference

NUM = 30
DETECTORS = {"big": (0.6, 0.5), "small-int8": (0.6, 0.15)}  # how far it lifts fakes of swap, and those of new


def write_scores(place, data, name, seed):
    rng = np.random.default_rng([seed, *data.encode()])
    rows = []
    for group in range(NUM):
        for method, more in zip((None, "swap", "new"), (0.0, *DETECTORS[name]), strict=True):
            probability = float(np.clip(0.2 + more + rng.normal(scale=0.1), 0, 1))
            row = {"video_id": f"{data}-{group}-{method}", "model_id": name, "status": "ok", "label": int(more > 0)}
            row |= {"method": method, "group_id": f"{data}-{group}", "probability": probability}
            rows.append(row | {"frame_index": [0, 9], "frame_probability": [probability] * 2})
    rng.shuffle(rows)
    tables.write_table(f"{place}/scores/{name}--{data}", pa.Table.from_pylist(rows, schemas.SCORES), {})


def write_evaluation(folder):
    """On the runs ffpp, which both learnt from (not from new), and wild."""
    place = str(folder / "evaluation")
    datasets = {"ffpp": ["ffpp"], "wild": ["wild"]}
    detectors, parent = [], None
    for seed, name in enumerate(DETECTORS):
        about = {"format": "detector/1", "architecture": "a", "input_px": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}
        about |= {"digest": str(seed) * 16, "parent": parent, "data": {"dataset": ["ffpp"], "methods": ["swap"]}}
        (folder / name).mkdir()
        (folder / name / "detector.json").write_text(json.dumps(about))
        parent = {"location": str(folder / name), "model_id": about["digest"][:12]}
        told = {"name": name, "location": str(folder / name), "model_id": parent["model_id"], "architecture": "a"}
        detectors.append(told | {"num_params": 1000, "synthetic": False})
        for data in datasets:
            write_scores(place, data, name, seed)
    config = {"aggregate": "mean", "no_face": "unsure"}
    config |= {
        "detectors": {
            one["name"]: [one["location"], one["model_id"], {"video": 0.5, "frame": 0.5}] for one in detectors
        }
    }
    data = [
        {
            "name": name,
            "datasets": names,
            "synthetic": False,
            "num_videos": 3 * NUM,
            "num_real": NUM,
            "num_fake": 2 * NUM,
        }
        for name, names in datasets.items()
    ]
    told = {"detectors": detectors, "data": data, "protocol": {"id": "1a2b", "text": "Videos of split test."}}
    tables.write_table(f"{place}/metrics", schemas.METRICS.empty_table(), config, **told)
    return place


@pytest.mark.slow
def test_a_loss_on_the_unseen_comes_first(tmp_path, capsys):
    place = write_evaluation(tmp_path)
    config = difference.Config(evaluation=place, before="big", after="small-int8", margin=0.11)
    summary = difference.run(config)
    folder = f"{place}/difference/big--small-int8"
    table = tables.read_table(f"{folder}/difference", "difference")
    assert table.schema.remove_metadata().equals(schemas.DIFFERENCE)
    rows = table.to_pylist()
    assert len(rows) == 2 * 7
    assert {row["slice"] for row in rows[:4]} == {"new", "all"}
    assert rows[0]["slice"] == "new"
    order = [(difference.ORDER.index(row["verdict"]), row["difference"]) for row in rows]
    assert order == sorted(order)
    assert all((row["broken"] is None) == (row["metric"] == "auc") for row in rows)
    seen = {(row["dataset"], row["slice"]): (row["seen_before"], row["seen_after"]) for row in rows}
    assert seen == {
        ("ffpp", "all"): (True, True),
        ("ffpp", "real"): (True, True),
        ("ffpp", "swap"): (True, True),
        ("ffpp", "new"): (False, False),
        **{("wild", name): (False, False) for name in ("all", "real", "swap", "new")},
    }
    unseen = [row for row in rows if not row["seen_after"]]
    assert len(unseen) == 9
    for name, some in (("all", rows), ("unseen", unseen)):
        counts = {word: sum(row["verdict"] == word for row in some) for word in difference.ORDER}
        assert summary[name] | counts == summary[name]
        assert summary[name]["worst"].items() <= rows[0].items()
    assert summary["report"] == f"{folder}/report/index.html"
    assert json.loads(json.dumps(summary)) == summary
    shown = capsys.readouterr().err
    assert "2 more rows" in shown
    assert shown.index(f"new of {rows[0]['dataset']}") < shown.index("non-inferior")
    assert max(map(len, shown.splitlines())) <= 80
    before = storage.read_bytes(f"{folder}/difference/part-0.parquet")
    difference.run(config)
    assert storage.read_bytes(f"{folder}/difference/part-0.parquet") == before


def test_wrong_use(tmp_path):
    with pytest.raises(UserError, match="raydistal evaluate"):
        difference.run(difference.Config(evaluation=str(tmp_path), before="a", after="b"))
    with pytest.raises(UserError, match="name two detectors"):
        difference.Config(evaluation="/e", before="a", after="a")
    with pytest.raises(UserError, match="--margin"):
        difference.Config(evaluation="/e", before="a", after="b", margin=0)
    place = write_evaluation(tmp_path)
    with pytest.raises(UserError, match=r"has no detector tiny\. It has: big, small-int8"):
        difference.run(difference.Config(evaluation=place, before="big", after="tiny"))
