"""Detectors pruned on made-up faces, in this process: noise, the fakes brighter."""

import json
import shutil

import pyarrow as pa
import pytest
import torch

from raydistal import schemas, tables
from raydistal.compression import pruning
from raydistal.compression.teaching import Teaching
from raydistal.detector import checkpoint, shapes
from raydistal.detector.examples import Limits
from raydistal.errors import UserError
from raydistal.pipelines import epochs, prune, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_run):
    """A run, and a detector trained on it."""
    run = tmp_path_factory.mktemp("run")
    write_run(run)
    how = {"architecture": "timm:test_resnet", "weights": "random", "recipe": "finetune", "input_px": 32, "epochs": 1}
    train.fit(train.Config(data=str(run), out=str(run / "parent"), batch_size=8, **how))
    return run


def config(run, out, **changes):
    values = {"detector": str(run / "parent"), "data": str(run), "out": str(out), "ratio": 0.6, "steps": 2}
    return prune.Config(**(values | {"epochs": 1, "batch_size": 8, "calibration": 8} | changes))


def logits(location):
    detector = checkpoint.load(str(location))[0]
    crops_NHWC = torch.randint(0, 256, (4, 32, 32, 3), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return detector(crops_NHWC)


@pytest.fixture(scope="module")
def pruned(made):
    """60 % of the parameters in two steps, without an interruption."""
    return prune.fit(config(made, made / "pruned"))


def test_from_a_detector_to_a_smaller_one(made, pruned):
    out = made / "pruned"
    parent, parent_about = checkpoint.load(str(made / "parent"))
    detector, about = checkpoint.load(str(out))
    before, after = pruning.count(parent), pruning.count(detector)
    assert pruned["detector"] == str(out)
    assert (pruned["params_before"], pruned["params_after"]) == (before["params"], after["params"])
    assert (pruned["macs_before"], pruned["macs_after"]) == (before["macs"], after["macs"])
    assert after["params"] == pytest.approx(0.4 * before["params"], abs=0.01 * before["params"])
    assert pruned["images"] == 2 * 96

    assert (about["technique"], about["weights"]) == ("prune", str(made / "parent"))
    assert about["parent"] == {"location": str(made / "parent"), "model_id": checkpoint.model_id(parent_about)}
    assert about["shapes"] == shapes.read(detector.network, parent.network)
    told = about["pruning"]
    assert (told["of"], told["ratio"], told["scope"]) == ("params", 0.6, "global")
    assert (told["before"], told["after"]) == (before, after)
    assert [step["ratio"] for step in told["steps"]] == pytest.approx([0.3, 0.6])
    widths = pruning.layer_widths(parent)
    assert told["widths"] == {name: [widths[name], width] for name, width in pruning.layer_widths(detector).items()}
    for number, step in enumerate(told["steps"], 1):
        found, last = checkpoint.load(f"{out}/steps/{number}")
        assert pruning.count(found) == {name: step[name] for name in before}
        assert step["params"] == pytest.approx((1 - step["ratio"]) * before["params"], abs=0.01 * before["params"])
        assert step["val_loss"] == last["history"][0]["val_loss"]
        assert last["parent"]["location"] == f"{out}/steps/{number}-pruned"
        earlier = checkpoint.read_about(f"{out}/steps/{number}-pruned")
        assert earlier["parent"]["location"] == str(made / "parent" if number == 1 else out / "steps/1")
    assert about["digest"] == last["digest"]
    assert (about["threshold"], about["data"]) == (last["threshold"], last["data"])
    assert about["cost"]["seconds"] == pytest.approx(sum(step["seconds"] for step in told["steps"]))

    used = tables.read_table(str(out / "trained_on"), "prune")
    assert used.equals(tables.read_table(str(out / "steps/2/trained_on"), "train"))


def test_what_the_parent_learnt_from_stays_known(made, tmp_path):
    """Pruned on other data, it must not be tested on the parent's."""
    other = pa.table({"video_id": ["old"], "group_id": ["g"], "split": ["train"]}, schema=schemas.TRAINED_ON)
    shutil.copytree(made / "parent", tmp_path / "parent")
    tables.write_table(str(tmp_path / "parent/trained_on"), other, {})
    prune.fit(config(made, tmp_path / "p", detector=str(tmp_path / "parent"), ratio=0.3, steps=1))
    used = tables.read_table(str(tmp_path / "p/trained_on"), "prune")
    assert used.slice(0, len(used) - 1).equals(tables.read_table(str(tmp_path / "p/steps/1/trained_on"), "train"))
    assert used.slice(len(used) - 1).to_pylist() == other.to_pylist()


def test_a_stopped_run_goes_on_and_other_settings_are_refused(made, pruned, tmp_path, monkeypatch):
    run_training, num_trained = train.fit, []

    def stop_in_the_second(asked):
        num_trained.append(asked.out)
        if len(num_trained) == 2:
            raise KeyboardInterrupt
        return run_training(asked)

    monkeypatch.setattr(train, "fit", stop_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        prune.fit(config(made, tmp_path / "p"))
    with pytest.raises(UserError, match=r"steps/1-pruned.*:\n *ratio: 0\.6 there, 0\.7 now"):
        prune.fit(config(made, tmp_path / "p", ratio=0.7))
    before = (tmp_path / "p/steps/1/weights.safetensors").stat().st_mtime_ns
    again = prune.fit(config(made, tmp_path / "p"))
    assert (tmp_path / "p/steps/1/weights.safetensors").stat().st_mtime_ns == before
    assert [again[name] for name in ("params_after", "val_loss")] == [pruned[n] for n in ("params_after", "val_loss")]
    assert torch.equal(logits(tmp_path / "p"), logits(made / "pruned"))

    num_trained.clear()
    assert prune.fit(config(made, tmp_path / "p")) | {"seconds": 0} == again | {"seconds": 0}
    assert not num_trained
    with pytest.raises(UserError, match="scope: 'global' there, 'local' now"):
        prune.fit(config(made, tmp_path / "p", scope="local"))


def test_one_shot_of_a_pruned_detector_with_a_teacher(made, pruned, tmp_path):
    """Thesis 6.2.5.2: the fine-tuning listens to the unpruned detector."""
    taught = Teaching(teachers=(str(made / "parent"),), alpha=0.5)
    asked = config(made, tmp_path / "p", detector=str(made / "pruned"), ratio=0.5, steps=1, of="macs", teaching=taught)
    done = prune.fit(asked)
    about = json.loads((tmp_path / "p/detector.json").read_text())
    assert done["macs_before"] == pruned["macs_after"]
    assert done["macs_after"] == pytest.approx(0.5 * done["macs_before"], abs=0.01 * done["macs_before"])
    assert about["parent"]["location"] == str(made / "pruned")
    assert about["teaching"]["alpha"] == 0.5
    assert [teacher["location"] for teacher in about["teaching"]["teachers"]] == [str(made / "parent")]
    assert len(about["pruning"]["steps"]) == 1


def test_a_ratio_that_the_last_step_cannot_meet_is_refused_before_training(made, tmp_path, monkeypatch):
    monkeypatch.setattr(pruning, "ROUND_TO", (32,))
    with pytest.raises(UserError, match=r"cannot remove 90\.0% of the params"):
        prune.fit(config(made, tmp_path / "p", ratio=0.9))
    assert not (tmp_path / "p/steps").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 1.0}, "--ratio must be above 0 and below 1"),
        ({"steps": 0}, "--steps of at least 1"),
        ({"calibration": 1}, "--calibration of at least 2"),
        ({"recipe": "none"}, "unknown --recipe"),
        ({"epochs": -1}, "--epochs"),
    ],
)
def test_wrong_settings(made, changes, message):
    with pytest.raises(UserError, match=message):
        config(made, made / "p", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"limits": Limits(leave_out=("nothing",))}, "--leave-out: there are no fakes of 'nothing'"),
        ({"compute": epochs.Compute(device="cuda")}, "no CUDA device here"),
        ({"teaching": Teaching(teachers=("parent",), kd="contrastive", negatives=1000)}, "--negatives 1000: there are"),
    ],
)
def test_what_training_would_refuse_is_refused_before_pruning(made, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(made)
    with pytest.raises(UserError, match=message):
        prune.fit(config(made, tmp_path / "p", **changes))
    assert not (tmp_path / "p/steps").exists()


def test_no_such_detector(made, tmp_path):
    with pytest.raises(UserError, match="no finished detector"):
        prune.fit(config(made, tmp_path / "p", detector=str(tmp_path / "nothing")))
