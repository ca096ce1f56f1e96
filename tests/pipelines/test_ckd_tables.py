"""jobs/papers/ckd_tables.py without its trainings."""

import dataclasses
import re
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from raydistal import tables
from raydistal.detector.evaluated import Evaluation
from raydistal.errors import UserError


@pytest.fixture
def job(load_paper):
    return load_paper("ckd_tables")


@pytest.fixture
def config(job):
    return job.Config(faceforensics="/ff", celebdf="/celeb", out="/out")


@pytest.fixture
def parts(job):
    methods = ("Deepfakes", "FaceSwap")
    made = [job.Part(name, "/ff", name, tuple({*methods} - {name}), 14_000) for name in methods]
    return [*made, job.Part("Celeb-DF", "/celeb", None, (), 3_000)]


def test_the_papers_numbers_stand_where_they_belong(job, config, parts):
    found = list(job.entries(config, parts))
    # 13 rows of three pairs for each part; in figure 4, 5 values of K of 1000 faces and 4 of 100.
    assert Counter(entry.table for entry in found) == {"1": 78, "2": 39, "3": 4, "figure-2": 24, "figure-4": 27}
    paper = {(entry.table, entry.data, entry.row, entry.column): entry.paper for entry in found}
    second, third = "xception > efficientnet_b0", "efficientnet_b0 > mobilenetv2"
    assert paper["1", "FaceSwap", "full VT", third] == 98.6
    assert paper["1", "FaceSwap", "1000 RKD", second] == 94.4
    assert paper["2", "Celeb-DF", "10 CKD", "xception > xception"] == 64.8
    assert paper["3", "Celeb-DF", "100", third] == 77.5
    assert paper["3", "Celeb-DF", "1000", "xception + efficientnet_b0 > mobilenetv2"] == 86.5
    assert paper["figure-2", "FaceForensics++", "100", "mobilenetv2"] == pytest.approx((85.2 + 86.7) / 2)
    assert paper["figure-4", "Celeb-DF", "1000 K=32", second] == 90.2
    assert paper["figure-4", "Celeb-DF", "1000 K=64", second] is None


def test_how_detectors_are_made(job, config, parts):
    made = {(entry.table, entry.data, entry.row, entry.column): entry.cells for entry in job.entries(config, parts)}
    pair = "xception > efficientnet_b0"
    places = "/out/detectors/faceforensics/FaceSwap"

    def of(*key, seed=1):
        (cell,) = made[key]
        return config.to_train(cell, seed)

    whole = of("1", "FaceSwap", "full VT", pair)
    assert (whole.architecture, whole.weights, whole.data, whole.seed) == ("efficientnet_b0", "imagenet", "/ff", 1)
    assert (whole.limits.max_faces, whole.limits.leave_out) == (14_000, ("Deepfakes",))
    assert (whole.input_px, whole.full_recipe().batch_size, whole.teaching.teachers) == (299, 24, ())
    student = of("1", "FaceSwap", "100 CKD", pair)
    assert (student.architecture, student.weights, student.limits.max_faces) == ("efficientnet_b0", "random", 100)
    assert student.limits.leave_out == ("Deepfakes",)
    assert student.out == f"{places}/100-CKD-32-xception-efficientnet_b0-seed-1"
    teaching = student.teaching
    assert teaching.teachers == (f"{places}/full-VT-xception-seed-1",)
    assert (teaching.kd, teaching.negatives, teaching.tau, teaching.weight) == ("contrastive", 32, 0.05, 0.1)
    few = of("2", "Celeb-DF", "10 CKD", pair)
    assert (few.batch_size, few.teaching.negatives, few.limits.leave_out) == (10, 10, ())
    assert [of("2", "Celeb-DF", f"100 {how}", pair).teaching.kd for how in ("KD", "RKD")] == ["soft", "rkd"]
    assert of("2", "Celeb-DF", "100 VT", pair).teaching.teachers == ()
    two = of("3", "Celeb-DF", "1000", "xception + efficientnet_b0 > mobilenetv2", seed=0)
    names = ("xception", "efficientnet_b0")
    assert two.teaching.teachers == tuple(f"/out/detectors/celebdf/full-VT-{name}-seed-0" for name in names)
    assert of("figure-4", "Celeb-DF", "1000 K=128", pair).teaching.negatives == 128
    assert made["figure-4", "Celeb-DF", "1000 K=32", pair] == made["2", "Celeb-DF", "1000 CKD", pair]
    assert [cell.part for cell in made["figure-2", "FaceForensics++", "full", "xception"]] == parts[:2]


def write_run(run, write_videos, methods=("a", "a", "b")):
    """In each split 3 real videos with 2 faces each, and a fake with 2 faces for each of the methods."""
    names, columns = [], {"split": [], "method": []}
    labels = []
    for split in ("train", "val", "test"):
        for number, method in enumerate([None] * 3 + list(methods)):
            names.append(f"{split}-{number}")
            labels.append(int(number >= 3))
            columns["split"].append(split)
            columns["method"].append(method)
    write_videos(str(run), names, labels, **columns)
    faces = pa.table({"video_id": names, "frame_index": pa.array([[0, 5]] * len(names), pa.list_(pa.int32()))})
    tables.write_table(f"{run}/faces", faces, {"crops": "png"})


def test_parts_are_the_fakes_of_one_method(job, tmp_path, write_videos):
    run = str(tmp_path / "run")
    write_run(run, write_videos)
    config = job.Config(faceforensics=run, celebdf=run, out="/out", faces=(4,))
    assert job.find_parts(config) == [
        job.Part("a", run, "a", ("b",), 8),  # 6 faces of real videos, 4 fakes
        job.Part("b", run, "b", ("a",), 4),
        job.Part("Celeb-DF", run, None, (), 12),
    ]

    def refused(message, **options):
        with pytest.raises(UserError, match=message):
            job.run(job.Config(**({"faceforensics": run, "celebdf": run, "out": "/out", "faces": (4,)} | options)))

    refused(r"no fakes of 'c' in train and in test\. Choose of --methods: a, b", methods=("c",))
    refused("--faces 6 needs 3 of each class; .* has 6 real ones to learn from, and 2 fakes of b", faces=(6,))
    refused("nothing to show in 3 and figure-4")
    write_run(run, write_videos, methods=("a", None))
    refused("has fakes without a method")


def test_accuracy_is_the_mean_of_both_classes_on_faces(job, config, parts, tmp_path):
    """Real: 3 of 4 faces right. Fakes of FaceSwap: 1 of 2; those of Deepfakes, all wrong, count for Celeb-DF only."""
    rows = [
        ("r0", 0, None, [0.1, 0.2]),
        ("r1", 0, None, [0.4, 0.9]),
        ("f0", 1, "FaceSwap", [0.9, 0.1]),
        ("f1", 1, "Deepfakes", [0.2, 0.2]),
    ]
    names = ("video_id", "label", "method", "frame_probability")
    scores = [dict(zip(names, row, strict=True)) | {"group_id": row[0], "frame_index": [0, 5]} for row in rows]
    tables.write_table(str(tmp_path / "scores/d--run"), pa.Table.from_pylist(scores), {})
    config = dataclasses.replace(config, seeds=1)
    for part, expected in ((parts[1], (3 / 4 + 1 / 2) / 2), (parts[2], (3 / 4 + 1 / 4) / 2)):
        cell = job.Cell(part, 100, "VT", "xception")
        info = {"detectors": [{"location": config.place(cell, 0), "name": "d"}]}
        found = job.measure(config, Evaluation(location=str(tmp_path), info=info), cell, "run")
        assert (found.value, found.num_seeds) == (pytest.approx(expected), 1)
    assert found.num_groups == 2


def test_what_is_shown(job, config, parts, capsys):
    from raydistal.detector.comparison import Draws

    found = list(job.entries(config, parts))
    cells = {cell for entry in found for cell in entry.cells}
    value = {cell: 0.65 if cell.part.name == "Deepfakes" else 0.75 for cell in cells}
    draws = {cell: Draws(value[cell], np.array([-0.05, 0.05]) + value[cell], 3, 9) for cell in cells}
    rows = [job.to_row(entry, draws) for entry in found]
    assert next(row for row in rows if row["table"] == "figure-2") == {
        **{"table": "figure-2", "data": "FaceForensics++", "row": "full", "column": "xception", "num_faces": 14_000},
        **{"how": "VT", "teachers": [], "student": "xception", "negatives": None, "num_seeds": 3},
        **{"accuracy": pytest.approx(0.7), "low": pytest.approx(0.6525), "high": pytest.approx(0.7475)},
        "paper": pytest.approx(0.986),  # the mean of both methods, as ours
    }
    job.show([row | {"dataset": "synthetic"} for row in rows])
    shown = capsys.readouterr().err
    assert "Table I, FaceSwap (ours: synthetic)" in shown
    assert re.search(r"\n1000 RKD +75\.0 70-80 \(95\.9\) +75\.0 70-80 \(94\.4\) +75\.0 70-80 \(95\.2\)", shown)
    assert re.search(r"\n1000 K=64 +75\.0 70-80 +75\.0 70-80 +75\.0 70-80", shown)
    assert max(map(len, shown.splitlines())) <= 80
    table = pa.Table.from_pylist(rows)
    assert table["teachers"].type == pa.list_(pa.string())
    assert len(table) == len(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"faceforensics": ""}, "table 1 needs --faceforensics"),
        ({"celebdf": ""}, "need --celebdf"),
        ({"networks": ("xception",)}, "three --networks"),
        ({"networks": ("xception", "xception", "mobilenetv2")}, "--networks names something twice"),
        ({"faces": (5,)}, "--faces that are even"),
        ({"seeds": 0}, "--seeds of at least 1"),
    ],
)
def test_wrong_use(job, options, message):
    with pytest.raises(UserError, match=message):
        job.Config(**({"faceforensics": "/ff", "celebdf": "/celeb", "out": "/out"} | options))
