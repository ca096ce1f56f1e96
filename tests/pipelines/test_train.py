"""Detectors trained on made-up faces: noise, the fakes brighter."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from raydistal import schemas, storage, tables
from raydistal.compression.teaching import Teaching
from raydistal.detector import checkpoint, zoo
from raydistal.detector.examples import Limits
from raydistal.errors import UserError
from raydistal.pipelines import epochs, report, train

pytestmark = pytest.mark.slow


def config(run, **changes):
    values = {"data": str(run), "out": str(run / "detector"), "architecture": "timm:test_resnet", "weights": "random"}
    values |= {"recipe": "finetune", "epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "input_px": 32}
    return train.Config(**(values | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_run):
    run = tmp_path_factory.mktemp("run")
    write_run(run)
    return run


@pytest.fixture(scope="module")
def teacher(made):
    """Of random weights, and for larger crops than the students."""
    location = str(made / "teacher")
    checkpoint.save(location, zoo.create("timm:test_efficientnet", "random", 4, 48).eval(), {})
    return location


@pytest.fixture(autouse=True)
def few_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def weights(location):
    return checkpoint.load(str(location))[0].state_dict()


def assert_same(one, other):
    one, other = weights(one), weights(other)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_from_a_run_to_a_detector(made):
    told = []
    summary = train.fit(config(made, recipe="thesis", epochs=6, learning_rate=2e-2), told.append)
    detector, about = checkpoint.load(str(made / "detector"))
    assert summary["detector"] == str(made / "detector")
    assert (summary["faces"], summary["epochs"], summary["device"]) == (96, 6, "cpu")
    assert summary["val_auc"] > 0.95
    assert about["data"]["num_faces"] == {"train": {"real": 48, "fake": 48}, "val": {"real": 18, "fake": 18}}
    assert about["data"]["num_videos"] == {"train": 16, "val": 6}
    assert about["data"]["synthetic"] is False
    assert about["recipe"]["name"] == "thesis"
    assert about["recipe"]["epochs"] == 6
    assert about["cost"]["images"] == 6 * 96
    assert about["cost"]["gpu_seconds"] == 0
    assert about["threshold"]["from"] == "val"
    assert 0 < about["threshold"]["video"] < 1
    assert [row["epoch"] for row in about["history"]] == list(range(6))
    assert told == about["history"]
    names = ("technique", "parent", "teaching", "trainable")
    assert [about[name] for name in names] == ["train", None, None, "all"]
    assert about["data"]["methods"] == ["swap", "talk"]
    assert about["best_epoch"] == min(about["history"], key=lambda row: row["val_loss"])["epoch"]
    assert not detector.training
    used = tables.read_table(str(made / "detector/trained_on"), "train").to_pylist()
    splits = ("train",) * 8 + ("val",) * 3
    expected = {
        (f"g{group:02}-{label}", f"g{group:02}", split) for group, split in enumerate(splits) for label in (0, 1)
    }
    assert {tuple(row.values()) for row in used} == expected
    assert not (made / "detector" / epochs.CHECKPOINT).exists()


def test_a_finished_detector_is_left_alone_and_other_settings_are_refused(made, tmp_path):
    asked = config(made, out=str(tmp_path / "d"), epochs=1)
    first = train.fit(asked)
    before = (tmp_path / "d/weights.safetensors").stat().st_mtime_ns
    again = train.fit(asked)
    assert (tmp_path / "d/weights.safetensors").stat().st_mtime_ns == before
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    page = train.run(asked)["report"]
    assert report.run(report.Config(out=asked.out)) == {"report": page}
    assert "detector" in Path(page).read_text()
    with pytest.raises(UserError, match="seed: 0 there, 1 now"):
        train.fit(config(made, out=str(tmp_path / "d"), epochs=1, seed=1))


def test_seeds_make_runs_repeatable(made, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train.fit(config(made, out=str(tmp_path / name), epochs=2, seed=seed))
    assert_same(tmp_path / "a", tmp_path / "b")
    one, other = weights(tmp_path / "a"), weights(tmp_path / "c")
    assert not all(torch.equal(value, other[name]) for name, value in one.items())


def test_an_interrupted_run_goes_on(made, teacher, tmp_path, monkeypatch):
    """Of a student that is taught: its projections are in the checkpoint."""
    teaching = Teaching(teachers=(teacher,), kd="contrastive", negatives=4)
    train.fit(config(made, out=str(tmp_path / "whole"), teaching=teaching))
    write, num_written = storage.write_bytes, []

    def stop_after_the_second(location, content):
        write(location, content)
        if location.endswith(epochs.CHECKPOINT):
            num_written.append(location)
            if len(num_written) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_bytes", stop_after_the_second)
    with pytest.raises(KeyboardInterrupt):
        train.fit(config(made, out=str(tmp_path / "stopped"), teaching=teaching))
    with pytest.raises(UserError, match=r"checkpoint.pt[\s\S]*batch_size: 8 there, 4 now"):
        train.fit(config(made, out=str(tmp_path / "stopped"), teaching=teaching, batch_size=4))
    train.fit(config(made, out=str(tmp_path / "stopped"), teaching=teaching))
    assert len(num_written) == 3
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_a_detector_can_be_tuned_on(made, tmp_path):
    train.fit(config(made, out=str(tmp_path / "first"), epochs=1))
    train.fit(config(made, out=str(tmp_path / "second"), epochs=1, weights=str(tmp_path / "first"), learning_rate=1e-9))
    about, first = (checkpoint.load(str(tmp_path / name))[1] for name in ("second", "first"))
    assert about["weights"] == str(tmp_path / "first")
    assert about["parent"] == {"location": str(tmp_path / "first"), "model_id": checkpoint.model_id(first)}
    one, other = weights(tmp_path / "first"), weights(tmp_path / "second")
    name = "network.fc.weight"
    torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=0)


def test_with_lora_only_weights_change(made, tmp_path):
    train.fit(config(made, out=str(tmp_path / "d"), epochs=1, trainable="lora:2"))
    start = zoo.create("timm:test_resnet", "random", 0, 32).state_dict()
    changed = {name for name, value in weights(tmp_path / "d").items() if not torch.equal(value, start[name])}
    vectors = {name for name, value in start.items() if value.ndim < 2}  # batch norm, statistics included
    assert changed & vectors == {"network.fc.bias"}
    assert changed - vectors > {"network.fc.weight"}
    about = checkpoint.load(str(tmp_path / "d"))[1]
    assert (about["trainable"], about["adapter"]) == ("lora:2", "")


@pytest.mark.parametrize(("kd", "weight"), [("soft", 1.0), ("rkd", 1.0), ("contrastive", 0.1)])
def test_a_student(made, teacher, tmp_path, kd, weight, capsys):
    """The teacher looks at every face, as no table is there."""
    teaching = Teaching(teachers=(teacher,), kd=kd, negatives=4, bank=1000)
    train.fit(config(made, out=str(tmp_path / "d"), epochs=1, recipe="ckd-vanilla", teaching=teaching))
    about = checkpoint.load(str(tmp_path / "d"))[1]
    model_id = checkpoint.model_id(checkpoint.read_about(teacher))
    assert about["teaching"] == {
        "teachers": [{"location": teacher, "model_id": model_id}],
        "kd": kd,
        "alpha": 0.25,
        "temperature": 1.0,
        "kd_weight": weight,
        "tau": 0.05,
        "negatives": 4,
        "bank": 1000,
        "bank_mb": 0.512 if kd == "contrastive" else 0.0,
        "outputs": "live",
    }
    assert about["settings"]["teaching"]["teachers"] == [model_id]
    assert about["history"][0]["train_loss"] != about["history"][0]["hard_loss"]
    assert ("up to 1000 fakes for each of 1 teachers: 0.5 MB" in capsys.readouterr().err) == (kd == "contrastive")


def test_teachers_that_cannot_teach(made, teacher, tmp_path):
    def refused(message, **options):
        teaching = Teaching(**({"teachers": (teacher,)} | options))
        with pytest.raises(UserError, match=message):
            train.fit(config(made, out=str(tmp_path / "d"), teaching=teaching))

    refused("no finished detector", teachers=("/no/such/detector",))
    refused(r"--negatives 97: there are 96 faces to learn from\. Use --negatives 96 or", kd="contrastive", negatives=97)
    refused(r"says is missing or unfinished\. Run: raydistal teach --teachers", outputs="cached")
    content = json.loads(storage.read_bytes(f"{teacher}/detector.json"))
    for name, changes in (("again", {}), ("exported", {"runtime": "onnx"})):
        storage.write_bytes(str(tmp_path / name / "detector.json"), json.dumps(content | changes).encode())
    refused("exported model", teachers=(str(tmp_path / "exported"),))
    refused("names a detector twice", teachers=(teacher, str(tmp_path / "again")))


def test_only_the_videos_of_the_manifest_and_the_faces_within_limits(made, tmp_path):
    videos = tables.read_table(str(made / "videos"), "index")
    few = videos.filter(pa.array([group in ("g00", "g01", "g02", "g09") for group in videos["group_id"].to_pylist()]))
    ranked = few.append_column("rank", pa.array(range(len(few)), pa.int64()))
    tables.write_table(str(tmp_path / "distilled"), schemas.conform(ranked, schemas.DISTILLED), {})
    asked = config(made, out=str(tmp_path / "d"), epochs=1, manifest=str(tmp_path / "distilled"))
    assert train.fit(asked)["faces"] == 36
    about = checkpoint.load(str(tmp_path / "d"))[1]
    assert about["data"]["num_faces"]["val"] == {"real": 18, "fake": 18}  # that of the run
    asked = config(made, out=str(tmp_path / "e"), epochs=1, limits=Limits(max_faces=10))
    assert train.fit(asked)["faces"] == 10
    asked = config(made, out=str(tmp_path / "f"), epochs=1, limits=Limits(leave_out=("talk",)))
    assert train.fit(asked)["faces"] == 48 + 24
    about = checkpoint.load(str(tmp_path / "f"))[1]
    assert about["data"]["methods"] == ["swap"]
    assert about["data"]["num_faces"]["val"] == {"real": 18, "fake": 12}


def test_without_val_the_threshold_is_a_half(tmp_path, write_run, capsys):
    write_run(tmp_path, splits=("train",) * 4)
    train.fit(config(tmp_path, epochs=1))
    about = checkpoint.load(str(tmp_path / "detector"))[1]
    assert about["threshold"] == {"video": 0.5, "frame": 0.5, "from": "default"}
    assert "val has not faces of both classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "best"}, "use one of thesis, finetune"),
        ({"epochs": -1}, "--epochs"),
        ({"compute": epochs.Compute(num_workers=3)}, "cannot share a batch of 8 evenly"),
        ({"architecture": "alexnet"}, "unknown architecture 'alexnet'"),
        ({"weights": "/no/such/file"}, "--weights random"),
        ({"data": "/no/such/run"}, "raydistal index"),
        ({"manifest": "/no/such/table"}, "/no/such/table"),
        ({"input_px": 7}, "--input-px"),
        ({"trainable": "tail"}, "unknown --trainable 'tail'"),
        ({"recipe": "deepdistal", "trainable": "head"}, "use --trainable all"),
        ({"limits": Limits(leave_out=("smile", "talk"))}, r"no fakes of 'smile'\. Methods: swap, talk"),
    ],
)
def test_wrong_use(made, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train.fit(config(made, **({"out": str(tmp_path / "d")} | changes)))
    assert not (tmp_path / "d").exists() or not any((tmp_path / "d").iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there(made):
    with pytest.raises(UserError, match=r"no CUDA device here\. Use --device cpu"):
        train.fit(config(made, compute=epochs.Compute(device="cuda")))


def test_tables_that_cannot_be_learnt_from(tmp_path, write_run):
    write_run(tmp_path / "a", crops="none")
    with pytest.raises(UserError, match=r"keeps no crops\. Run: raydistal extract --crops png"):
        train.fit(config(tmp_path / "a"))
    write_run(tmp_path / "b")
    storage.delete(str(tmp_path / "b/faces" / tables.INFO))
    with pytest.raises(UserError, match="missing or unfinished"):
        train.fit(config(tmp_path / "b"))
    write_run(tmp_path / "c", splits=("val", "test"))
    with pytest.raises(UserError, match="not 0 real and 0 fake ones as in split train"):
        train.fit(config(tmp_path / "c"))
    write_run(tmp_path / "d")
    videos = tables.read_table(str(tmp_path / "d/videos"), "index").to_pylist()
    videos[0]["split"] = "val"  # its fake stays in train
    tables.write_table(str(tmp_path / "d/videos"), pa.Table.from_pylist(videos, schemas.VIDEOS), {})
    with pytest.raises(UserError, match="1 groups are in both train and val, such as g00"):
        train.fit(config(tmp_path / "d"))


def test_all_on_an_object_store(made, tmp_path, s3):
    for path in made.glob("[vf]*/*"):
        storage.write_bytes(f"{s3}/run/{path.relative_to(made)}", path.read_bytes())
    assert train.run(config(made, data=f"{s3}/run", out=f"{s3}/detector", epochs=1))["report"].startswith(s3)
    train.fit(config(made, out=str(tmp_path / "d"), epochs=1))
    assert_same(f"{s3}/detector", tmp_path / "d")
    assert storage.exists(f"{s3}/detector/report/index.html")


@pytest.mark.ray
def test_workers_of_ray_train(made, teacher, tmp_path, cluster):
    """Two learn, in step, and from a teacher. What one learns, to the bit, is in tests/faults/test_train.py."""
    teaching = Teaching(teachers=(teacher,), kd="contrastive", negatives=4, kd_weight=0.01)
    asked = config(made, out=str(tmp_path / "d"), compute=epochs.Compute(num_workers=2), teaching=teaching)
    summary = train.fit(asked)
    about = json.loads((tmp_path / "d/detector.json").read_text())
    assert about["cost"]["num_workers"] == 2
    assert about["cost"]["images"] == 3 * 96
    assert summary["val_auc"] > 0.9
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        *("_lock.json",) * (tmp_path / "d/_lock.json").exists(),
        "detector.json",
        "trained_on",
        "weights.safetensors",
    ]


@pytest.mark.ray
def test_trouble_in_a_worker_is_told(made, tmp_path, cluster):
    with pytest.raises(UserError, match="Lower --learning-rate"):
        train.fit(config(made, out=str(tmp_path / "d"), learning_rate=1e30, compute=epochs.Compute(num_workers=1)))
