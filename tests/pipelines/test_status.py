"""What a folder says of the job that writes it."""

import dataclasses
import io
import json
import os
import pickle
import time
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.pipelines import status


def told(out):
    return status.run(status.Config(out=str(out)))


def add_part(run, rows, at_s):
    """A part that was written `at_s`; rows are video_id, status, error, number of faces."""
    columns = ("video_id", "status", "error")
    made = [dict(zip(columns, row[:3], strict=True)) | {"frame_index": list(range(row[3]))} for row in rows]
    lists = {"pts_s": 0.0, "box_xyxy_px": [0, 0, 1, 1], "detection_score": 1.0, "feature": [0.0, 0.0]}
    for row in made:
        row |= {name: [value] * len(row["frame_index"]) for name, value in lists.items()} | {"num_frames_seen": 9}
    before = set(tables.part_names(f"{run}/faces"))
    tables.write_part(f"{run}/faces", pa.Table.from_pylist(made, schemas.faces_schema(2)), {})
    (name,) = set(tables.part_names(f"{run}/faces")) - before
    os.utime(f"{run}/faces/{name}", (at_s, at_s))


@pytest.fixture
def half(tmp_path, write_videos):
    """Ten videos, of which eight are done: two long ago, four in the last 60 s."""
    write_videos(tmp_path, [f"v{number}.mp4" for number in range(10)])
    now = time.time()
    add_part(tmp_path, [("v0", "ok", None, 3), ("v1", "no_face", "no face in 9 frames", 0)], now - 2000)
    add_part(tmp_path, [("v2", "ok", None, 3), ("v3", "ok", None, 4)], now - 100)
    add_part(tmp_path, [("v4", "crashed", "died of signal 11", 0)], now - 70)
    failed = [(f"v{n}", "decode_error", f"cannot be read: '/videos/v{n}.mp4'", 0) for n in (5, 6)]
    add_part(tmp_path, [*failed, ("v7", "ok", None, 1)], now - 40)
    return tmp_path


def test_a_run_that_is_under_way(half, capsys):
    with tables.sole_writer(f"{half}/faces"):
        found = told(half)
    (writer,) = found.pop("writers")
    assert (writer["table"], writer["pid"], writer["alive"]) == ("faces", os.getpid(), True)
    assert found.pop("location") == str(half)
    faces = found.pop("faces")
    assert 40 <= faces.pop("last_part_s") < 50
    assert found == {"videos": {"num": 10, "splits": {"train": {"real": 5, "fake": 5}}}}
    assert faces == {
        "done": 8,
        "videos": 10,
        "unreadable": 0,
        "complete": False,
        "counts": {"ok": 4, "decode_error": 2, "no_face": 1, "crashed": 1},
        "faces": 11,
        "failures": [
            {"num": 2, "status": "decode_error", "error": "cannot be read: '/videos/v5.mp4'"},
            {"num": 1, "status": "crashed", "error": "died of signal 11"},
        ],
        "videos_per_s": pytest.approx(4 / 60, abs=1e-3),
        "left_s": 30,
    }
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "0.07 videos/s, 30 s left" in printed.err
    assert all(len(line) <= 80 for line in printed.err.splitlines())


def test_a_job_that_died_has_no_time_left(half):
    tables.write_info(f"{half}/ranking", {}, num_rows=4)
    lock = half / "faces" / tables.LOCK
    lock.write_text(json.dumps({"owner": "x", "host": "node-7", "pid": 12, "beat": 3}))
    os.utime(lock, (time.time() - 300, time.time() - 300))
    found = told(half)
    (writer,) = found["writers"]
    assert writer["silent_s"] == pytest.approx(300, abs=20)
    assert not writer["alive"]
    assert "left_s" not in found["faces"]
    assert found["ranking"] == {"rows": 4}


def test_a_part_that_is_cut_off_does_not_hide_the_others(half):
    part = half / "faces" / tables.part_names(f"{half}/faces")[0]
    num = len(tables.read_table(str(part.parent), "")) - len(pq.read_table(part))
    part.write_bytes(part.read_bytes()[:-9])
    assert {name: told(half)["faces"][name] for name in ("done", "unreadable")} == {"done": num, "unreadable": 1}


def test_parts_of_others_are_none_of_ours(half):
    pq.write_table(pa.table({"a": [1]}), half / "faces/part-x.parquet")
    assert {name: told(half)["faces"][name] for name in ("done", "unreadable")} == {"done": 8, "unreadable": 1}
    for name in ("verdicts", "trials"):
        (half / name).mkdir()
        pq.write_table(pa.table({"a": [1]}), half / name / "part-x.parquet")
        assert told(half)[name]["done"] == 0


def test_only_small_columns_are_read(half, monkeypatch):
    read = []
    real = status._read
    monkeypatch.setattr(
        status, "_read", lambda place, name, columns=None: read.append(columns) or real(place, name, columns)
    )
    told(half)
    assert read == [["status", "error", "frame_index"]] * 4


def test_on_s3(half, s3):
    for name in storage.list_files(str(half)):
        storage.write_bytes(f"{s3}/run/{name}", (half / name).read_bytes())
    here, there = told(half), told(f"{s3}/run")
    assert there["videos"] == here["videos"]
    names = ("done", "videos", "counts", "faces", "failures")
    assert [there["faces"][name] for name in names] == [here["faces"][name] for name in names]
    assert there["faces"]["last_part_s"] < 30


@pytest.fixture(scope="module")
def checkpoint_pt():
    """After an epoch of two."""
    from raydistal.detector import zoo
    from raydistal.detector.recipes import RECIPES
    from raydistal.detector.training import Training

    recipe = dataclasses.replace(RECIPES["finetune"], epochs=2)
    training = Training(zoo.create("timm:test_resnet", "random", input_px=32), recipe, 1, "cpu", 0, 0)
    training.epoch, row = 1, {"epoch": 0, "train_loss": 0.5, "val_loss": 0.25, "val_accuracy": 0.75, "val_auc": None}
    training.history.append(row)
    return training.state({"settings": {"architecture": "timm:test_resnet", "epochs": 2}, "device": "cpu"})


def test_a_detector_under_way_is_read_without_its_weights(tmp_path, checkpoint_pt):
    with (
        zipfile.ZipFile(io.BytesIO(checkpoint_pt)) as archive,
        zipfile.ZipFile(tmp_path / "checkpoint.pt", "w") as copy,
    ):
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        copy.writestr(name, archive.read(name))
    assert told(tmp_path)["detector"] == {
        "finished": False,
        "architecture": "timm:test_resnet",
        "epoch": 1,
        "epochs": 2,
        "train_loss": 0.5,
        "val_loss": 0.25,
        "val_accuracy": 0.75,
        "val_auc": None,
    }


def test_a_checkpoint_runs_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    state = {"settings": {"architecture": "x", "epochs": 1}, "epoch": 1, "history": [], "evil": Evil()}
    with zipfile.ZipFile(tmp_path / "checkpoint.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(state))
    assert told(tmp_path)["detector"]["epoch"] == 1
    assert not (tmp_path / "evil").exists()


def test_trials_and_detectors(tmp_path):
    fixed = {"seed": 0, "set": "ranking", "data": 1.0, "bits": 8, "epochs": 1, "images": 9, "num_params": 5}
    fixed |= dict.fromkeys(("seconds", "cpu_seconds", "gpu_seconds"), 0.0)
    found = [
        ("a", "ok", 0.8, 2.0, 0.2),
        ("b", "ok", 0.9, 3.0, 0.3),
        ("c", "ok", 0.9, 1.0, 0.4),
        ("d", "failed", None, None, 0.5),
    ]
    for trial, state, accuracy, size_mb, prune in found:
        row = {"trial": trial, "status": state, "accuracy": accuracy, "size_mb": size_mb, "prune": prune, **fixed}
        rows = schemas.conform(pa.Table.from_pylist([row]), schemas.TRIALS)
        storage.write_bytes(f"{tmp_path}/trials/part-{trial}.parquet", tables.to_parquet(rows, {}))
    for name in ("detectors/a/detector.json", "detectors/a/checkpoint.pt", "detectors/e/checkpoint.pt"):
        storage.write_bytes(f"{tmp_path}/{name}", b"")
    assert {name: value for name, value in told(tmp_path).items() if name != "location"} == {
        "trials": {
            "done": 4,
            "complete": False,
            "counts": {"ok": 3, "failed": 1},
            "best": {
                "trial": "c",
                "accuracy": 0.9,
                "auc": None,
                "size_mb": 1.0,
                "num_params": 5,
                "point": {"set": "ranking", "data": 1.0, "prune": 0.4, "bits": 8, "seed": 0},
            },
        },
        "detectors": {"finished": 1, "under_way": 1},
    }


def test_scores_of_an_evaluation(tmp_path):
    storage.write_bytes(f"{tmp_path}/scores/a--run/part-0.parquet", b"")
    tables.write_info(f"{tmp_path}/scores/b--run", {}, num_rows=1)
    assert told(tmp_path)["scores"] == {"begun": 2, "complete": 1}


@pytest.mark.parametrize("name", ["cost", "heatmaps", "plan", "difference", "verification"])
def test_tables_that_are_written_in_one_go(tmp_path, name, capsys):
    tables.write_info(f"{tmp_path}/{name}", {}, num_rows=3)
    assert told(tmp_path) == {"location": str(tmp_path), name: {"rows": 3}}
    assert f"{name}  complete, 3 rows" in capsys.readouterr().err


NAMES = ("detector.json", "checkpoint.pt", "_lock.json", "faces/_table.json")
FOREIGN = [(name, content) for name in NAMES for content in (b"", b"{}", b"[1]", b"\x80\x04")]
FOREIGN.remove(("faces/_table.json", b"{}"))  # an incomplete table


@pytest.mark.parametrize(("name", "content"), FOREIGN)
def test_files_of_something_else_by_names_of_ours(tmp_path, name, content):
    (tmp_path / "faces").mkdir()
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        told(tmp_path)


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match="holds no table and no detector"):
        told(tmp_path)
