"""The cost pipeline: a trained detector and the same exported, in processes of their own. No Ray."""

import shutil

import pytest

from raydistal import schemas, storage, tables
from raydistal.compression.cost import describe
from raydistal.errors import UserError
from raydistal.pipelines import cost

pytestmark = pytest.mark.slow

NAMES = ("onnx", "detector")


def config(exported, out, names=NAMES, **changes):
    return cost.Config(detectors=tuple(f"{exported}/{name}" for name in names), out=str(out), **changes)


@pytest.fixture(scope="module")
def measured(exported, tmp_path_factory):
    asked = config(exported, tmp_path_factory.mktemp("cost"), batch_sizes=(1, 4), rounds=2)
    return asked, cost.run(asked)


def test_a_row_per_detector_and_batch(measured, exported):
    rows = tables.read_table(f"{measured[0].out}/cost", "cost")
    assert rows.schema.remove_metadata().equals(schemas.COST)
    rows = rows.to_pylist()
    assert [(row["detector"], row["device"], row["batch_size"]) for row in rows if row["device"] == "cpu"] == [
        (name, "cpu", batch_size) for name in NAMES for batch_size in (1, 4)
    ]
    for row in rows:
        known = describe(f"{exported}/{row['detector']}")
        assert {name: row[name] for name in known} == known
        assert 0 < row["p10_ms"] <= row["median_ms"] <= row["p90_ms"]
        assert 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        if row["detector"] == "onnx":
            assert (row["ratio_low"], row["ratio"], row["ratio_high"]) == (1, 1, 1)
    shown = ("detector", "device", "batch_size", "size_mb", "median_ms", "ratio")
    assert measured[1]["results"] == [{name: row[name] for name in shown} for row in rows]
    info = tables.read_info(f"{measured[0].out}/cost")
    assert info["runs"] == {"single": 10, "batch": 3}
    assert info["locations"] == {name: f"{exported}/{name}" for name in NAMES}


def test_a_rerun_measures_nothing(measured, exported, monkeypatch):
    monkeypatch.setattr(cost, "_measure", None)
    assert cost.run(measured[0])["results"] == measured[1]["results"]
    assert storage.exists(measured[1]["report"])
    with pytest.raises(UserError, match=r"threads: 1 there, 2 now"):
        cost.run(config(exported, measured[0].out, batch_sizes=(1, 4), rounds=2, threads=2))
    with pytest.raises(UserError, match=r"detectors: .*'onnx': \['[0-9a-f]{12}', 'onnx'\]"):
        cost.run(config(exported, measured[0].out, names=NAMES[:1], batch_sizes=(1, 4), rounds=2))


def test_requests_that_cannot_be_served(exported, tmp_path):
    with pytest.raises(UserError, match="no finished detector"):
        cost.run(config(exported, tmp_path / "out", names=("absent",)))
    with pytest.raises(UserError, match="is one of the folders to read"):
        cost.run(config(exported, exported / "onnx"))
    with pytest.raises(UserError, match="names a folder twice"):
        cost.run(config(exported, tmp_path / "out", names=("onnx", "onnx")))
    shutil.copytree(exported / "onnx", tmp_path / "bad")
    (tmp_path / "bad/model.onnx").write_bytes(b"")
    with pytest.raises(UserError, match="is not what"):
        cost.run(cost.Config(detectors=(f"{tmp_path}/bad",), out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes", [{"detectors": ()}, {"batch_sizes": ()}, {"batch_sizes": (0,)}, {"batch_sizes": (1, 1)}, {"rounds": 0}]
)
def test_bad_settings(changes):
    with pytest.raises(UserError):
        cost.Config(**({"detectors": ("d",), "out": "o"} | changes))
