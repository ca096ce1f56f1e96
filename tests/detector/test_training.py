"""Tiny networks on noise."""

import dataclasses
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist

from raydistal.compression.distillation import Distillation, Panel, embedding_dim
from raydistal.compression.teaching import Teaching
from raydistal.detector.examples import Batch
from raydistal.detector.recipes import RECIPES
from raydistal.detector.training import Training, read_state
from raydistal.detector.zoo import create
from raydistal.errors import UserError

SIZE_PX = 32
WITHOUT_BATCH_NORM = "timm:test_vit"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def faces(num: int, seed: int = 0, size_px: int = SIZE_PX) -> Batch:
    """Noise; fakes are brighter."""
    rng = np.random.default_rng(seed)
    label_N = rng.integers(0, 2, num)
    crops_NHWC = rng.integers(0, 128, (num, size_px, size_px, 3)) + 64 * label_N[:, None, None, None]
    return Batch(crops_NHWC.astype(np.uint8), label_N)


def training(
    name="finetune",
    architecture="timm:test_resnet",
    faces_at_once=0,
    size_px=SIZE_PX,
    teacher_loss=None,
    trainable=None,
    **values,
) -> Training:
    recipe = dataclasses.replace(RECIPES[name], **values)
    detector = create(architecture, "random", seed=1, input_px=size_px)
    return Training(detector, recipe, 3, "cpu", faces_at_once, seed=2, teacher_loss=teacher_loss, trainable=trainable)


def distillation(kd: str, **options) -> Distillation:
    """For the student of `training`, by a teacher of random weights."""
    teacher, student = (create(f"timm:test_{name}", "random", 7, SIZE_PX) for name in ("efficientnet", "resnet"))
    dims = {"student_dim": embedding_dim(student), "teacher_dims": [embedding_dim(teacher)]}
    teaching = Teaching(teachers=("t",), kd=kd, negatives=4, bank=16, **options)
    return Distillation(teaching, num_faces=24, panel=Panel([teacher], "cpu"), seed=5, **dims)


def run(job: Training, num_epochs: int) -> None:
    for _ in range(num_epochs):
        fitted = job.fit(faces(8, seed=10 * job.epoch + number) for number in range(3))
        job.finish_epoch(fitted, *job.measure([faces(16, seed=99)]))


def same(one: Training, other: Training) -> bool:
    states = one.detector.state_dict(), other.detector.state_dict()
    return all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_learns():
    job = training(epochs=8, learning_rate=1e-3)
    run(job, 8)
    assert job.history[-1]["train_loss"] < job.history[0]["train_loss"] / 2
    assert job.history[-1]["val_auc"] > 0.95
    assert [row["epoch"] for row in job.history] == list(range(8))
    assert job.history[0]["images"] == 24


@pytest.mark.parametrize("name", ["finetune", "thesis"])
def test_going_on_from_a_state_gives_the_same_bits(name):
    whole, first = training(name), training(name)
    run(whole, 3)
    run(first, 1)
    second = training(name)
    second.restore(read_state(first.state({"told": 1})))
    run(second, 2)
    assert same(whole, second)
    assert second.history == whole.history
    assert read_state(first.state({"told": 1}))["told"] == 1


@pytest.mark.slow
def test_a_lesson_goes_on_from_a_state_too():
    """Its projections and their optimizer are in the state; its bank begins anew with each epoch."""
    whole, first = (training(teacher_loss=distillation("contrastive")) for _ in range(2))
    run(whole, 3)
    run(first, 1)
    second = training(teacher_loss=distillation("contrastive"))
    second.restore(read_state(first.state({})))
    run(second, 2)
    assert same(whole, second)
    assert second.history == whole.history
    for one, other in zip(whole.teacher_loss.parameters(), second.teacher_loss.parameters(), strict=True):
        assert torch.equal(one, other)
        assert not torch.equal(
            one, training(teacher_loss=distillation("contrastive")).teacher_loss.contrasts[0].student.weight
        )
    assert whole.history[0]["train_loss"] > whole.history[0]["hard_loss"]
    assert whole.best["weights"].keys() == whole.detector.state_dict().keys()  # without those of the teacher loss


@pytest.mark.slow
def test_a_student_comes_to_say_what_its_teacher_says():
    """At alpha 1 whatever the labels; val is measured by the labels."""
    teacher_loss = distillation("soft", alpha=1.0)
    job, batch = training(teacher_loss=teacher_loss, epochs=30, learning_rate=3e-3), faces(24)
    wrong = Batch(batch.crops_NHWC, 1 - batch.label_N)
    teacher = teacher_loss._panel.detectors[0]
    torch.nn.init.constant_(teacher.network.get_classifier().bias, 3.0)  # all are fake
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    for _ in range(30):
        fitted = job.fit([wrong])
    label_N, logit_N = job.measure([batch])
    said_N = teacher_loss.teacher_outputs(batch)[0].logit_N.numpy()
    assert np.abs(logit_N - said_N).mean() < 1
    job.finish_epoch(fitted, label_N, logit_N)
    expected = np.mean([math.log1p(math.exp(-z if y else z)) for z, y in zip(logit_N, label_N, strict=True)])
    assert job.history[0]["val_loss"] == pytest.approx(expected)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_only_what_is_trainable_changes():
    head = {"network.fc.weight", "network.fc.bias"}
    job = training(trainable=head)
    before = {name: value.clone() for name, value in job.detector.state_dict().items()}
    run(job, 1)
    changed = {name for name, value in job.detector.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == head  # statistics of batch norm neither


def test_other_seeds_give_other_bits():
    one, again, other = training(), training(), training()
    other.seed = 3
    for job in (one, again, other):
        job.detector.network.drop_rate = 0.5
        job.fit([faces(4)])
    assert same(one, again)
    assert not same(one, other)


def test_a_batch_in_pieces_gives_the_gradient_of_the_whole():
    """With a network that has no batch norm."""
    whole, pieces = (training(architecture=WITHOUT_BATCH_NORM, faces_at_once=num, size_px=160) for num in (0, 3))
    for job in (whole, pieces):
        job._set_trainable(0)
        job._step(faces(8, size_px=160))
    for (name, one), (_, other) in zip(
        whole.detector.named_parameters(), pieces.detector.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6, msg=name)


def step_of_one_of_two(rank, folder):
    """One process of a group takes its half of a batch, and writes down the gradients."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    job, batch = training(architecture=WITHOUT_BATCH_NORM, size_px=160), faces(8, size_px=160)
    half = slice(4 * rank, 4 * rank + 4)
    job._set_trainable(0)
    job._step(Batch(batch.crops_NHWC[half], batch.label_N[half]))
    label_N, logit_N = job.measure([Batch(batch.crops_NHWC[half], batch.label_N[half])])
    gradients = {name: parameter.grad for name, parameter in job.detector.named_parameters()}
    taught, batch = training(teacher_loss=distillation("contrastive")), faces(8, 3)
    taught._set_trainable(0)
    taught._step(Batch(batch.crops_NHWC[half], batch.label_N[half]))
    told = {"bank": taught.teacher_loss.contrasts[0].remembered}
    told |= {name: parameter.grad for name, parameter in taught.teacher_loss.named_parameters()}
    torch.save((gradients, label_N.tolist(), len(logit_N), told), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_the_joined_batch(tmp_path):
    programs = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [program.wait(120) for program in programs] == [0, 0]
    whole, batch = training(architecture=WITHOUT_BATCH_NORM, size_px=160), faces(8, size_px=160)
    whole._set_trainable(0)
    whole._step(batch)
    for rank in (0, 1):
        gradients, label_N, num_logits, _ = torch.load(tmp_path / f"{rank}.pt")
        for name, parameter in whole.detector.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-6, msg=name)
        assert (label_N, num_logits) == (batch.label_N.tolist(), 8)  # measured together, in order
    losses = [torch.load(tmp_path / f"{rank}.pt")[-1] for rank in (0, 1)]
    for name, values in losses[0].items():
        assert torch.equal(values, losses[1][name]), name
    assert len(losses[0]["bank"]) == faces(8, 3).label_N.sum()  # the fakes of both
    assert losses[0]["contrasts.0.teacher.weight"].abs().sum() > 0


def test_the_loss_is_the_mean_over_faces():
    job = training(learning_rate=1e-12)
    batches = [faces(6, 1), faces(2, 2)]
    logit_N = []
    with torch.no_grad():
        job.detector.train()
        for batch in batches:
            logit_N += job.detector(torch.from_numpy(batch.crops_NHWC)).tolist()
    label_N = [label for batch in batches for label in batch.label_N.tolist()]
    expected = sum(math.log1p(math.exp(-z if y else z)) for z, y in zip(logit_N, label_N, strict=True)) / 8
    assert job.fit(batches)["train_loss"] == pytest.approx(expected, rel=1e-5)


def test_the_best_epoch_is_kept_and_patience_ends_it():
    job = training(epochs=20, patience=2)
    label_N = np.array([0, 1])
    for loss_sign in (1.0, 3.0, 2.0, 2.5):  # the second is the best, two worse ones follow
        assert not job.is_finished
        with torch.no_grad():
            next(job.detector.parameters()).fill_(loss_sign)
        job.finish_epoch({"train_loss": 0.0}, label_N, np.array([-loss_sign, loss_sign]))
    assert job.is_finished
    assert job.best["epoch"] == 1
    assert next(iter(job.best["weights"].values())).eq(3.0).all()
    assert job.best["val_logit"].tolist() == [-3.0, 3.0]
    assert job.history[1]["val_loss"] == pytest.approx(math.log1p(math.exp(-3)))


def test_without_val_the_last_epoch_is_kept():
    job = training(epochs=2)
    for _ in range(2):
        job.finish_epoch({"train_loss": 1.0}, np.empty(0, np.int64), np.empty(0))
    assert job.is_finished
    assert (job.best["epoch"], job.history[1]["val_loss"], job.history[1]["val_auc"]) == (1, None, None)


def test_val_of_one_class_has_no_auc():
    job = training()
    job.finish_epoch({"train_loss": 1.0}, np.array([1, 1]), np.array([2.0, -1.0]))
    assert (job.history[0]["val_auc"], job.history[0]["val_accuracy"]) == (None, 0.5)


def test_greedy_trains_the_lowest_group_first_and_all_in_the_end():
    job = training("deepdistal", epochs=2)
    before = {name: value.clone() for name, value in job.detector.named_parameters()}
    job.fit([faces(4)])
    changed = {name for name, value in job.detector.named_parameters() if not torch.equal(value, before[name])}
    groups = job.detector.groups()
    assert changed <= {*groups[0], *groups[-1]}
    assert changed & set(groups[0])
    job.epoch = 1
    job.fit([faces(4)])
    assert all(parameter.requires_grad for parameter in job.detector.parameters())


def test_a_loss_that_is_no_number_is_said():
    job = training(learning_rate=1e30)
    with pytest.raises(UserError, match="--learning-rate"):
        run(job, 3)


def test_logits_of_val_that_are_no_numbers_are_said():
    with pytest.raises(UserError, match="--learning-rate"):
        training().finish_epoch({"train_loss": 1.0}, np.array([0, 1]), np.array([0.5, np.nan]))


def test_out_of_memory_says_what_to_lower(monkeypatch):
    job = training()

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(job.detector, "forward", full)
    with pytest.raises(UserError, match=r"8 faces of 32 pixels at once\. Lower --faces-at-once"):
        job.fit([faces(8)])


if __name__ == "__main__":
    step_of_one_of_two(int(sys.argv[1]), sys.argv[2])
