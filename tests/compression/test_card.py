import json
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from raydistal import schemas, tables
from raydistal.compression import card
from raydistal.detector import checkpoint, runtime
from raydistal.detector.scoring import Scorer
from raydistal.errors import UserError
from raydistal.faces import crop


@pytest.mark.parametrize("name", ["onnx", "int8"])
def test_the_example_says_what_the_scorer_says(exported, tmp_path, name):
    shutil.copytree(exported / name, tmp_path / "model")  # alone
    pictures = [
        np.random.default_rng(n).integers(0, 256, (px, px, 3), dtype=np.uint8) for n, px in enumerate((50, 32, 20))
    ]
    for number, picture in enumerate(pictures):
        (tmp_path / f"face {number}.png").write_bytes(crop.encode(picture, "png"))
    paths = [str(tmp_path / f"face {number}.png") for number in range(3)]
    done = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "model/example.py"), *paths], capture_output=True, text=True, check=True
    )
    model, about = runtime.load(str(exported / name))
    expected = Scorer(model)(np.stack([crop.resize(one, 32) if one.shape[0] != 32 else one for one in pictures]))
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == paths
    assert [float(row[1]) for row in rows] == pytest.approx(expected, abs=1e-6)
    assert [row[2] for row in rows] == ["fake" if one > about["threshold"]["frame"] else "real" for one in expected]
    assert "raydistal" not in (tmp_path / "model/example.py").read_text()


def test_the_card_tells_where_it_came_from(exported):
    content = json.loads((exported / "int8" / card.JSON).read_text())
    parent = checkpoint.read_about(str(exported / "detector"))
    about = checkpoint.read_about(str(exported / "int8"))
    assert content["how it came about"] == [
        {
            "location": str(exported / "int8"),
            "model_id": checkpoint.model_id(about),
            "technique": "export",
            "architecture": "timm:test_resnet",
            "num_params": parent["num_params"],
            "runtime": "onnx",
            "precision": "int8",
        },
        {
            "location": str(exported / "detector"),
            "model_id": checkpoint.model_id(parent),
            "technique": "train",
            "architecture": "timm:test_resnet",
            "num_params": parent["num_params"],
            "recipe": parent["recipe"],
            "cost": parent["cost"],
        },
    ]
    assert content["measured on val, before export"] == {"val_loss": 0.1, "val_accuracy": 0.9, "val_auc": 0.95}
    assert content["data"] == parent["data"]
    assert content["export"] == {"parity": None, "quantization": about["quantization"]}
    assert content["limits"][0] == card.LIMIT_SYNTHETIC
    assert content["limits"][-1] == card.LIMIT_INT8
    text = (exported / "int8" / card.MARKDOWN).read_text()
    assert "## Licence\n\nNot given.\n" in text
    assert f"| {exported}/detector | {checkpoint.model_id(parent)} | train |" in text


@pytest.mark.parametrize(("change", "note"), [(None, "not there any more"), ("f" * 16, "replaced by another")])
def test_a_parent_that_is_gone(exported, tmp_path, change, note):
    about = checkpoint.read_about(str(exported / "onnx"))
    about["parent"] = about["parent"] | {"location": str(tmp_path / "detector")}
    if change:
        shutil.copytree(exported / "detector", tmp_path / "detector")
        parent = json.loads((tmp_path / "detector/detector.json").read_text())
        (tmp_path / "detector/detector.json").write_text(json.dumps(parent | {"digest": change}))
    *_, last = card.ancestors("here", about)
    assert note in last["note"]
    assert last["model_id"] == about["parent"]["model_id"]


def test_a_parent_that_is_its_own_descendant(exported, tmp_path):
    about = checkpoint.read_about(str(exported / "onnx"))
    about["parent"] = {"location": str(tmp_path), "model_id": checkpoint.model_id(about)}
    (tmp_path / "detector.json").write_text(json.dumps(about))
    assert [one.get("note") for one in card.ancestors("here", about)] == [None, None, "its own descendant"]


def test_evaluations_are_of_this_model_or_of_its_parent(exported, tmp_path):
    about = checkpoint.read_about(str(exported / "onnx"))
    row = {"detector": "d", "dataset": "run", "split": "test", "level": "video", "slice": "all", "metric": "auc"}
    row |= {"value": 0.9, "low": 0.8, "high": 1.0, "num": 6}
    ids = {"parent": about["parent"]["model_id"], "own": checkpoint.model_id(about), "other": "0" * 12}
    rows = [row | {"model_id": model_id} for model_id in ids.values()]
    rows += [row | {"model_id": ids["own"], "slice": "real"}, row | {"model_id": ids["own"], "metric": "tp"}]
    metrics = pa.Table.from_pylist(rows, schemas.METRICS)
    tables.write_table(f"{tmp_path}/metrics", metrics, {}, data=[{"name": "run", "protocol": "abcd"}])
    kept = {name: row[name] for name in ("dataset", "split", "level", "metric", "value", "low", "high", "num")}
    content = card.card("here", about, str(tmp_path))
    assert content["evaluation"] == [
        {"of": "before export", "protocol": "abcd", **kept},
        {"of": "this model", "protocol": "abcd", **kept},
    ]
    assert "| this model | abcd | run | test | video | auc | 0.9 | 0.8 | 1 | 6 |" in card.markdown(content)
    tables.write_table(f"{tmp_path}/metrics", metrics.slice(2, 1), {}, data=[{"name": "run", "protocol": "abcd"}])
    with pytest.raises(UserError, match=r"measured other detectors\. Run: raydistal evaluate"):
        card.card("here", about, str(tmp_path))


def test_names_in_markdown_are_text():
    content = {"name": "a|b<img src=x>", "data": {"where": "[x](javascript:y)\n# h", "n": 0.123456, "none": []}}
    assert card.markdown(content).splitlines() == [
        "# a\\|b&lt;img src=x>",
        "",
        "## Data",
        "",
        "| | |",
        "|---|---|",
        "| where | \\[x](javascript:y) # h |",
        "| n | 0.1235 |",
        "| none | \N{EN DASH} |",
    ]
    assert "| a\\|b |" in card.markdown({"name": "x", "how it came about": [{"a|b": 1}]})
