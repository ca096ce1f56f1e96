"""The export pipeline: a detector that has learnt a little, noise for faces. No Ray."""

import json
import runpy
import shutil

import numpy as np
import pytest

from raydistal import storage, tables
from raydistal.detector import checkpoint, runtime
from raydistal.detector.examples import fingerprint
from raydistal.detector.lineage import learnt_from
from raydistal.detector.scoring import Scorer
from raydistal.errors import UserError
from raydistal.faces import crop
from raydistal.pipelines import export

pytestmark = pytest.mark.slow


def config(exported, out, name="detector", **changes):
    return export.Config(**({"detector": f"{exported}/{name}", "out": str(out)} | changes))


def noise(num):
    return np.random.default_rng(1).integers(0, 256, (num, 32, 32, 3), dtype=np.uint8)


def test_an_exported_detector_tells_what_its_parent_told(exported):
    parent, about = (checkpoint.read_about(str(exported / name)) for name in ("detector", "onnx"))
    for name in ("architecture", "mean", "std", "num_params", "threshold", "data", "cost", "history", "recipe"):
        assert about[name] == parent[name]
    assert about["technique"] == "export"
    assert about["parent"] == {"location": f"{exported}/detector", "model_id": checkpoint.model_id(parent)}
    assert about["input"] == {"name": "crops", "type": "uint8", "layout": "N, S, S, 3", "colours": "RGB"}
    assert about["size_mb"] == (exported / "onnx/model.onnx").stat().st_size / 1e6
    assert about["quantization"] is None
    assert learnt_from(about) == learnt_from(parent)
    learnt = [tables.read_table(f"{exported}/{name}/trained_on", "train") for name in ("detector", "onnx")]
    assert learnt[0].equals(learnt[1])
    assert storage.list_files(str(exported / "onnx")) == sorted(
        [
            "MODEL_CARD.md",
            "card.json",
            "detector.json",
            "example.py",
            "model.onnx",
            *(f"trained_on/{n}" for n in ("_table.json", "part-0.parquet")),
        ]
    )
    with pytest.raises(UserError, match=f"use the detector {exported}/detector"):
        checkpoint.load(str(exported / "onnx"))


def test_eight_bits_are_compared_on_faces_they_have_not_seen(exported):
    about = checkpoint.read_about(str(exported / "int8"))
    told = about["quantization"]
    assert told["calibration_faces"] == {"real": 48, "fake": 48}  # all of train
    assert (told["float_layers"], told["images"], about["parity"]) == ([], 0, None)
    assert told["drift"]["num_faces"] == 36  # all of val
    assert told["drift"]["correlation"] > 0.9
    faces = export._faces(config(exported, "out", precision="int8"), about, 32)
    models = [runtime.load(str(exported / name))[0] for name in ("detector", "int8")]
    batches = list(export._batches(faces, faces.held_out))
    before_N, after_N = (np.concatenate([Scorer(model)(one.crops_NHWC) for one in batches]) for model in models)
    assert told["drift"]["max_change"] == pytest.approx(abs(after_N - before_N).max(), abs=1e-6)
    assert told["drift"]["flips"] == np.mean((before_N > 0.6) != (after_N > 0.6))  # the threshold of frames


def test_calibration_is_balanced_and_no_face_is_used_twice(exported, tmp_path):
    about = checkpoint.read_about(str(exported / "detector"))
    faces = export._faces(config(exported, "out", precision="int8", calibration=20), about, 32)
    assert np.bincount(faces.calibration["label"].to_numpy()).tolist() == [10, 10]
    assert (len(faces.training), len(faces.held_out)) == (96, 36)
    shutil.copytree(exported / "run", tmp_path / "run")
    videos = tables.read_table(f"{tmp_path}/run/videos", "index")
    rows = [row | {"split": "train" if row["split"] == "val" else row["split"]} for row in videos.to_pylist()]
    tables.write_table(f"{tmp_path}/run/videos", videos.from_pylist(rows, videos.schema), {})
    asked = config(exported, "out", precision="int8", calibration=20, data=str(tmp_path / "run"))
    faces = export._faces(asked, about, 32)  # without val
    assert (len(faces.calibration), len(faces.held_out), len(faces.training)) == (20, 112, 20)
    assert fingerprint(faces.training) == fingerprint(faces.calibration)


def test_training_batches_go_round(exported):
    asked = config(exported, "out", precision="int8-qat", steps=5, calibration=10)
    faces = export._faces(asked, checkpoint.read_about(str(exported / "detector")), 32)
    batches = list(export._training(asked, faces))
    assert [len(batch) for batch in batches] == [32] * 5  # 3 batches are an epoch
    epoch = {crop_HWC.tobytes() for crops_NHWC in batches[:3] for crop_HWC in crops_NHWC}
    faces_once = [
        crop_HWC.tobytes() for batch in export._batches(faces, faces.training) for crop_HWC in batch.crops_NHWC
    ]
    assert len(epoch) == len(faces_once) == 96
    assert epoch == set(faces_once)
    assert not np.array_equal(batches[0], batches[3])  # another order


def test_a_finished_export_is_left_alone_and_its_card_renewed(exported, tmp_path, monkeypatch):
    shutil.copytree(exported / "onnx", tmp_path / "onnx")
    model = (tmp_path / "onnx/model.onnx").stat().st_mtime_ns
    (tmp_path / "onnx/MODEL_CARD.md").unlink()
    monkeypatch.setattr(export, "_export", None)
    summary = export.run(config(exported, tmp_path / "onnx"))
    about = checkpoint.read_about(str(tmp_path / "onnx"))
    assert {name: summary[name] for name in ("detector", "size_mb", "num_params", "macs", "parity", "card")} == {
        "detector": str(tmp_path / "onnx"),
        **{name: about[name] for name in ("size_mb", "num_params", "macs", "parity")},
        "card": str(tmp_path / "onnx/MODEL_CARD.md"),
    }
    assert (tmp_path / "onnx/MODEL_CARD.md").exists()
    assert (tmp_path / "onnx/model.onnx").stat().st_mtime_ns == model
    with pytest.raises(UserError, match=r"precision: 'float32' there, 'int8' now"):
        export.run(config(exported, tmp_path / "onnx", precision="int8"))
    with pytest.raises(UserError, match=r"calibration_faces: "):
        export.run(config(exported, exported / "int8", precision="int8", calibration=10))


def test_what_fails_its_check_is_not_left_as_finished(exported, tmp_path, monkeypatch):
    from raydistal.compression import export as exporting

    model, _ = runtime.load(str(exported / "onnx"))
    monkeypatch.setattr(exporting, "export", lambda detector, name: model)
    other = json.loads((exported / "detector/detector.json").read_text())
    detector, _ = checkpoint.load(str(exported / "detector"))
    detector.network.fc.bias.data += 1
    checkpoint.save(str(tmp_path / "other"), detector, other)
    with pytest.raises(UserError, match="does not say what timm:test_resnet says"):
        export.run(config(tmp_path, tmp_path / "out", name="other"))
    assert not checkpoint.exists(str(tmp_path / "out"))
    assert "model.onnx" not in storage.list_files(str(tmp_path / "out"))


def test_executorch(exported, tmp_path, capsys):
    pytest.importorskip("executorch")
    summary = export.run(config(exported, tmp_path / "pte", runtime="executorch", precision="int8", calibration=32))
    assert summary["drift"]["correlation"] > 0.9
    assert checkpoint.read_about(summary["detector"])["input"]["layout"] == "1, S, S, 3"
    model, _ = runtime.load(summary["detector"])
    assert len(model.content) < 0.35 * len(runtime.load(str(exported / "onnx"))[0].content)
    expected, found = (Scorer(one)(noise(3)) for one in (runtime.load(str(exported / "detector"))[0], model))
    np.testing.assert_allclose(found, expected, atol=0.05)

    (face_HWC,) = noise(1)
    (tmp_path / "face.png").write_bytes(crop.encode(face_HWC, "png"))
    runpy.run_path(str(tmp_path / "pte/example.py"))["main"]([str(tmp_path / "face.png")])
    path, probability, _ = capsys.readouterr().out.splitlines()[-1].split("\t")
    assert path == str(tmp_path / "face.png")
    assert float(probability) == pytest.approx(Scorer(model)(face_HWC[None]).item(), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calibration": 1}, "--calibration of at least 2"),
        ({"learning_rate": 0.0}, "--learning-rate"),
        ({"runtime": "executorch", "precision": "int8-dynamic"}, "for executorch use int8 or int8-qat"),
        ({"out": "there"}, "is the detector itself"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(UserError, match=message):
        export.Config(**({"detector": "there", "out": "out"} | changes))


def test_requests_that_cannot_be_served(exported, tmp_path, write_run):
    with pytest.raises(UserError, match="no finished detector"):
        export.run(config(exported, tmp_path / "out", name="absent"))
    with pytest.raises(UserError, match="was exported for onnx"):
        export.run(config(exported, tmp_path / "out", name="onnx"))
    with pytest.raises(UserError, match="raydistal index"):
        export.run(config(exported, tmp_path / "out", precision="int8", data=str(tmp_path / "absent")))
    with pytest.raises(UserError, match="raydistal evaluate"):
        export.run(config(exported, tmp_path / "out", evaluation=str(tmp_path)))
    write_run(tmp_path / "test", splits=("test",) * 3)
    with pytest.raises(UserError, match="0 faces in split train to calibrate with, and 0 others"):
        export.run(config(exported, tmp_path / "out", precision="int8", data=str(tmp_path / "test")))
    detector, _ = checkpoint.load(str(exported / "detector"))
    checkpoint.save(str(tmp_path / "bare"), detector, {})
    with pytest.raises(UserError, match="give a run folder as --data"):
        export.run(config(tmp_path, tmp_path / "out", name="bare", precision="int8"))
    assert not (tmp_path / "out").exists()
