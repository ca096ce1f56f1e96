"""Detectors trained on made-up faces: noise, the fakes brighter."""

import json

import pyarrow as pa
import pytest
import torch

from raydistal import schemas, storage, tables
from raydistal.detector import checkpoint
from raydistal.detector.examples import Limits
from raydistal.errors import UserError
from raydistal.pipelines import train


def config(run, **changes):
    values = {"data": str(run), "out": str(run / "detector"), "architecture": "timm:test_resnet", "weights": "random"}
    values |= {"recipe": "finetune", "epochs": 3, "batch_size": 8, "learning_rate": 1e-3, "input_px": 32}
    return train.Config(**(values | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_run):
    run = tmp_path_factory.mktemp("run")
    write_run(run)
    return run


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
    summary = train.run(config(made, recipe="thesis", epochs=6, learning_rate=2e-2))
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
    assert about["best_epoch"] == min(about["history"], key=lambda row: row["val_loss"])["epoch"]
    assert not detector.training
    used = tables.read_table(str(made / "detector/trained_on"), "train").to_pylist()
    splits = ("train",) * 8 + ("val",) * 3
    expected = {
        (f"g{group:02}-{label}", f"g{group:02}", split) for group, split in enumerate(splits) for label in (0, 1)
    }
    assert {tuple(row.values()) for row in used} == expected
    assert "detector" in (made / "detector/report/index.html").read_text()
    assert not (made / "detector" / train.CHECKPOINT).exists()


def test_a_finished_detector_is_left_alone_and_other_settings_are_refused(made, tmp_path):
    asked = config(made, out=str(tmp_path / "d"), epochs=1)
    first = train.run(asked)
    before = (tmp_path / "d/weights.safetensors").stat().st_mtime_ns
    again = train.run(asked)
    assert (tmp_path / "d/weights.safetensors").stat().st_mtime_ns == before
    assert {**again, "seconds": 0} == {**first, "seconds": 0}
    with pytest.raises(UserError, match="seed: 0 there, 1 now"):
        train.run(config(made, out=str(tmp_path / "d"), epochs=1, seed=1))


def test_seeds_make_runs_repeatable(made, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train.run(config(made, out=str(tmp_path / name), epochs=2, seed=seed))
    assert_same(tmp_path / "a", tmp_path / "b")
    one, other = weights(tmp_path / "a"), weights(tmp_path / "c")
    assert not all(torch.equal(value, other[name]) for name, value in one.items())


def test_an_interrupted_run_goes_on(made, tmp_path, monkeypatch):
    train.run(config(made, out=str(tmp_path / "whole")))
    write, num_written = storage.write_bytes, []

    def stop_after_the_second(location, content):
        write(location, content)
        if location.endswith(train.CHECKPOINT):
            num_written.append(location)
            if len(num_written) == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_bytes", stop_after_the_second)
    with pytest.raises(KeyboardInterrupt):
        train.run(config(made, out=str(tmp_path / "stopped")))
    with pytest.raises(UserError, match=r"checkpoint.pt[\s\S]*batch_size: 8 there, 4 now"):
        train.run(config(made, out=str(tmp_path / "stopped"), batch_size=4))
    train.run(config(made, out=str(tmp_path / "stopped")))
    assert len(num_written) == 3
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_a_detector_can_be_tuned_on(made, tmp_path):
    train.run(config(made, out=str(tmp_path / "first"), epochs=1))
    train.run(config(made, out=str(tmp_path / "second"), epochs=1, weights=str(tmp_path / "first"), learning_rate=1e-9))
    about = checkpoint.load(str(tmp_path / "second"))[1]
    assert about["weights"] == str(tmp_path / "first")
    one, other = weights(tmp_path / "first"), weights(tmp_path / "second")
    name = "network.fc.weight"
    torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=0)


def test_only_the_videos_of_the_manifest_and_the_faces_within_limits(made, tmp_path):
    videos = tables.read_table(str(made / "videos"), "index")
    few = videos.filter(pa.array([group in ("g00", "g01", "g02", "g09") for group in videos["group_id"].to_pylist()]))
    ranked = few.append_column("rank", pa.array(range(len(few)), pa.int64()))
    tables.write_table(str(tmp_path / "distilled"), schemas.conform(ranked, schemas.DISTILLED), {})
    asked = config(made, out=str(tmp_path / "d"), epochs=1, manifest=str(tmp_path / "distilled"))
    assert train.run(asked)["faces"] == 36
    about = checkpoint.load(str(tmp_path / "d"))[1]
    assert about["data"]["num_faces"]["val"] == {"real": 18, "fake": 18}  # that of the run
    asked = config(made, out=str(tmp_path / "e"), epochs=1, limits=Limits(max_faces=10))
    assert train.run(asked)["faces"] == 10


def test_without_val_the_threshold_is_a_half(tmp_path, write_run, capsys):
    write_run(tmp_path, splits=("train",) * 4)
    train.run(config(tmp_path, epochs=1))
    about = checkpoint.load(str(tmp_path / "detector"))[1]
    assert about["threshold"] == {"video": 0.5, "frame": 0.5, "from": "default"}
    assert "no val faces" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "best"}, "use one of thesis, finetune"),
        ({"epochs": -1}, "--epochs"),
        ({"compute": train.Compute(num_workers=3)}, "cannot share a batch of 8 evenly"),
        ({"architecture": "alexnet"}, "unknown architecture 'alexnet'"),
        ({"weights": "/no/such/file"}, "--weights random"),
        ({"data": "/no/such/run"}, "raydistal index"),
        ({"manifest": "/no/such/table"}, "/no/such/table"),
        ({"input_px": 7}, "--input-px"),
    ],
)
def test_wrong_use(made, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train.run(config(made, **({"out": str(tmp_path / "d")} | changes)))
    assert not (tmp_path / "d").exists() or not any((tmp_path / "d").iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there(made):
    with pytest.raises(UserError, match=r"no CUDA device here\. Use --device cpu"):
        train.run(config(made, compute=train.Compute(device="cuda")))


def test_tables_that_cannot_be_learnt_from(tmp_path, write_run):
    write_run(tmp_path / "a", crops="none")
    with pytest.raises(UserError, match=r"keeps no crops\. Run: raydistal extract --crops png"):
        train.run(config(tmp_path / "a"))
    write_run(tmp_path / "b")
    storage.delete(str(tmp_path / "b/faces" / tables.INFO))
    with pytest.raises(UserError, match="missing or unfinished"):
        train.run(config(tmp_path / "b"))
    write_run(tmp_path / "c", splits=("val", "test"))
    with pytest.raises(UserError, match="0 real, 0 fake in split train"):
        train.run(config(tmp_path / "c"))
    write_run(tmp_path / "d")
    videos = tables.read_table(str(tmp_path / "d/videos"), "index").to_pylist()
    videos[0]["split"] = "val"  # its fake stays in train
    tables.write_table(str(tmp_path / "d/videos"), pa.Table.from_pylist(videos, schemas.VIDEOS), {})
    with pytest.raises(UserError, match="1 groups are in both train and val, such as g00"):
        train.run(config(tmp_path / "d"))


def test_all_on_an_object_store(made, tmp_path, s3):
    for path in made.glob("[vf]*/*"):
        storage.write_bytes(f"{s3}/run/{path.relative_to(made)}", path.read_bytes())
    train.run(config(made, data=f"{s3}/run", out=f"{s3}/detector", epochs=1))
    train.run(config(made, out=str(tmp_path / "d"), epochs=1))
    assert_same(f"{s3}/detector", tmp_path / "d")
    assert storage.exists(f"{s3}/detector/report/index.html")


@pytest.mark.ray
@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_of_ray_train(made, tmp_path, cluster, num_workers):
    """One worker gives the bits of a run in this process; two learn as well, in step."""
    asked = config(made, out=str(tmp_path / "d"), compute=train.Compute(num_workers=num_workers))
    summary = train.run(asked)
    about = json.loads((tmp_path / "d/detector.json").read_text())
    assert about["cost"]["num_workers"] == num_workers
    assert about["cost"]["images"] == 3 * 96
    assert summary["val_auc"] > 0.9
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [
        *("_lock.json",) * (tmp_path / "d/_lock.json").exists(),
        "detector.json",
        "report",
        "trained_on",
        "weights.safetensors",
    ]
    if num_workers == 1:
        train.run(config(made, out=str(tmp_path / "here")))
        assert_same(tmp_path / "d", tmp_path / "here")


@pytest.mark.ray
def test_trouble_in_a_worker_is_told(made, tmp_path, cluster):
    with pytest.raises(UserError, match="Lower --learning-rate"):
        train.run(config(made, out=str(tmp_path / "d"), learning_rate=1e30, compute=train.Compute(num_workers=1)))
