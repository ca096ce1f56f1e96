"""What teachers say of faces of noise, on a local cluster, and students that hear it from the table."""

import json
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raydistal import schemas, storage, tables
from raydistal.compression.teaching import KD, Teaching
from raydistal.detector import checkpoint, zoo
from raydistal.errors import UserError
from raydistal.faces import crop
from raydistal.pipelines import teach, train

pytestmark = pytest.mark.ray

SPLITS = ("train",) * 4 + ("val",) * 2 + ("test",) * 2
TEACHERS = {"small": ("timm:test_resnet", 32), "large": ("timm:test_efficientnet", 48)}


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_run):
    run = tmp_path_factory.mktemp("run")
    write_run(run, videos_per_part=3, faces_per_video=4, splits=SPLITS)
    for seed, (name, (architecture, input_px)) in enumerate(TEACHERS.items()):
        checkpoint.save(str(run / name), zoo.create(architecture, "random", seed, input_px).eval(), {})
    return run


@pytest.fixture(scope="module")
def taught(cluster, run):
    asked = teach.Config(teachers=tuple(str(run / name) for name in TEACHERS), data=str(run), batch_size=7)
    return asked, teach.run(asked)


def model_id(run, name):
    return checkpoint.model_id(checkpoint.read_about(str(run / name)))


def told(run, name):
    return run / "teaching" / model_id(run, name)


def by_hand(run, name, part):
    """Rows of a part, by the teacher alone, one face at a time."""
    detector, _ = checkpoint.load(str(run / name))
    rows = []
    for row in pq.read_table(run / "faces" / part).to_pylist():
        is_learnt = SPLITS[int(row["video_id"][1:3])] == "train"
        images = row["crop"] if is_learnt else []
        crops = [torch.from_numpy(crop.decode(image, detector.input_px))[None] for image in images]
        with torch.no_grad():
            logits = [detector(crop_1HWC).item() for crop_1HWC in crops]
            embeddings = [detector.embed(crop_1HWC)[0].tolist() for crop_1HWC in crops]
        rows.append({"video_id": row["video_id"], "frame_index": row["frame_index"] if is_learnt else []})
        rows[-1] |= {"logit": pytest.approx(logits, abs=1e-5)}
        rows[-1] |= {"embedding": [pytest.approx(values, rel=1e-3, abs=1e-3) for values in embeddings]}
    return rows


@pytest.mark.parametrize("name", TEACHERS)
def test_the_tables_have_the_parts_and_rows_of_the_faces(taught, run, name):
    parts = tables.part_names(str(run / "faces"))
    assert tables.part_names(str(told(run, name))) == parts
    dim = zoo.create(*("timm:test_resnet", "random") if name == "small" else ("timm:test_efficientnet", "random"))
    dim = dim.network.get_classifier().in_features
    for part in parts:
        found = pq.read_table(told(run, name) / part)
        assert found.schema.remove_metadata().equals(schemas.teaching_schema(dim))
        assert found.to_pylist() == by_hand(run, name, part)
    info = tables.read_info(str(told(run, name)))
    faces = tables.faces_info(str(run))["fingerprint"]
    assert info["config"] == {"model_id": model_id(run, name), "input_px": TEACHERS[name][1], "faces": faces}
    assert (info["num_rows"], info["embedding_dim"]) == (16, dim)


def test_the_summary(taught, run):
    assert taught[1]["teachings"] == [
        {
            "teacher": str(run / name),
            "table": str(told(run, name)),
            "videos": 8,
            "faces": 32,
            "parts_done_now": 6,
        }
        for name in TEACHERS
    ]


@pytest.mark.parametrize("kd", get_args(KD))
def test_a_student_learns_the_same_from_the_tables(taught, run, tmp_path, kd):
    values = {"data": str(run), "architecture": "timm:test_resnet", "weights": "random", "recipe": "ckd-vanilla"}
    values |= {"epochs": 1, "batch_size": 8, "input_px": 32}
    losses = {}
    for outputs in ("live", "auto"):
        teaching = Teaching(teachers=taught[0].teachers, kd=kd, negatives=4, outputs=outputs, alpha=0.5)
        rows = []
        train.fit(train.Config(**values, out=str(tmp_path / outputs), teaching=teaching), rows.append)
        losses[outputs] = [[row["train_loss"], row["hard_loss"]] for row in rows]
        about = checkpoint.read_about(str(tmp_path / outputs))
        assert about["teaching"]["outputs"] == {"live": "live", "auto": "cached"}[outputs]
    np.testing.assert_allclose(losses["live"], losses["auto"], rtol=2e-3)


def modified(table):
    return {path.name: path.stat().st_mtime_ns for path in table.glob("part-*")}


def test_a_rerun_does_what_is_missing_damaged_or_of_other_faces(taught, run, tmp_path, monkeypatch):
    asked, _ = taught
    before = {name: modified(told(run, name)) for name in TEACHERS}
    with monkeypatch.context() as patch:
        patch.setattr(teach, "connect", pytest.fail)
        assert [one["parts_done_now"] for one in teach.run(asked)["teachings"]] == [0, 0]
    assert {name: modified(told(run, name)) for name in TEACHERS} == before

    parts = tables.part_names(str(run / "faces"))
    (changed,) = [part for part in parts if "g00-0" in pq.read_table(run / "faces" / part)["video_id"].to_pylist()]
    lost, torn, *_ = sorted({*parts} - {changed})
    (told(run, "small") / lost).unlink()
    (told(run, "small") / torn).write_bytes((told(run, "small") / torn).read_bytes()[:-9])
    faces = pq.read_table(run / "faces" / changed)
    rows = faces.to_pylist()
    rows[0]["frame_index"][0] = 5
    part = pa.Table.from_pylist(rows, faces.schema.remove_metadata())
    storage.write_bytes(str(run / "faces" / changed), tables.to_parquet(part, tables.faces_info(str(run))["config"]))
    teaching = Teaching(teachers=(str(run / "large"),), outputs="cached")
    student = {"architecture": "timm:test_resnet", "weights": "random", "input_px": 32, "recipe": "ckd-vanilla"}
    with pytest.raises(UserError, match=r"lacks 1 of 32 faces\. Run: raydistal teach --teachers .*large --data"):
        train.fit(train.Config(data=str(run), out=str(tmp_path / "d"), teaching=teaching, **student))
    summary = teach.run(asked)
    assert [(one["parts_done_now"], one["faces"]) for one in summary["teachings"]] == [(3, 32), (1, 32)]
    for name in TEACHERS:
        assert pq.read_table(told(run, name) / changed).to_pylist() == by_hand(run, name, changed)
    assert pq.read_table(told(run, "small") / torn).to_pylist() == by_hand(run, "small", torn)
    after = modified(told(run, "large"))
    kept = {part for part, time_ns in before["large"].items() if after[part] == time_ns}
    assert kept == set(after) - {lost, torn, changed}


def test_what_cannot_be_taught(cluster, run, tmp_path, write_run):
    teachers = (str(run / "small"),)
    with pytest.raises(UserError, match="at least one of --teachers"):
        teach.Config(teachers=(), data=str(run))
    with pytest.raises(UserError, match="no faces in split 'pool'"):
        teach.run(teach.Config(teachers=teachers, data=str(run), split="pool"))
    write_run(tmp_path / "bare", crops="none")
    with pytest.raises(UserError, match="keeps no crops"):
        teach.run(teach.Config(teachers=teachers, data=str(tmp_path / "bare")))
    write_run(tmp_path / "bad", splits=("train",) * 2)
    (part,) = tables.part_names(str(tmp_path / "bad/faces"))
    rows = pq.read_table(tmp_path / "bad/faces" / part)
    crops = [[b"nothing", *images[1:]] for images in rows["crop"].to_pylist()]
    rows = rows.set_column(rows.column_names.index("crop"), rows.schema.field("crop"), pa.array(crops))
    storage.write_bytes(str(tmp_path / "bad/faces" / part), tables.to_parquet(rows, json.loads('{"crops": "png"}')))
    with pytest.raises(UserError, match=r"^crops of g00-0 are not images.* run's videos\.$"):
        teach.run(teach.Config(teachers=teachers, data=str(tmp_path / "bad")))
