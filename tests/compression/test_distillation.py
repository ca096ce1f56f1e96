"""Losses against values by hand and against naive float64."""

import math
from typing import get_args

import numpy as np
import pytest
import torch

from raydistal import schemas
from raydistal.compression.distillation import (
    Contrast,
    Distillation,
    Panel,
    embedding_dim,
    relational_loss,
    soft_loss,
)
from raydistal.compression.teaching import KD, WEIGHTS, Teaching
from raydistal.detector.examples import Batch
from raydistal.detector.training import Outputs, outputs
from raydistal.detector.zoo import create

TEACHERS = ("one", "two")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def test_soft_is_the_thesis_sum_of_two_cross_entropies():
    """P(fake) of the student is 3/4 at T = 2, that of the teachers 1/2 and 3/4, so 5/8 together."""
    log_3 = math.log(3)
    student = torch.tensor([2 * log_3], dtype=torch.float64)
    teachers = [torch.tensor([value], dtype=torch.float64) for value in (0.0, 2 * log_3)]
    cross_entropy = -(5 / 8) * math.log(3 / 4) - (3 / 8) * math.log(1 / 4)
    hard_loss = torch.tensor(0.5, dtype=torch.float64)
    loss = soft_loss(student, teachers, hard_loss, alpha=0.25, temperature=2)
    assert loss.item() == pytest.approx(0.25 * 4 * cross_entropy + 0.75 * 0.5)
    assert soft_loss(student, teachers, hard_loss, alpha=0, temperature=2).item() == 0.5


def test_the_gradient_of_soft_is_that_of_two_class_softmaxes():
    student, teacher = torch.randn(2, 8, dtype=torch.float64).unbind()
    student.requires_grad_()
    (one,) = torch.autograd.grad(soft_loss(student, [teacher], torch.tensor(0.0), 1, 3), student)
    logs, targets = (torch.stack([torch.zeros(8), z_N / 3], 1).log_softmax(1) for z_N in (student, teacher))
    kl = 9 * torch.nn.functional.kl_div(logs, targets, log_target=True, reduction="batchmean")
    (other,) = torch.autograd.grad(kl, student)
    torch.testing.assert_close(one, other)


def naive_relational(student_ND, teacher_ND):
    """Pair by pair and triplet by triplet."""

    def smooth_l1(x):
        return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5

    def relations(e_ND):
        num = range(len(e_ND))
        distance = {(i, j): np.linalg.norm(e_ND[i] - e_ND[j]) for i in num for j in num}
        mean = np.mean([value for value in distance.values() if value > 0])
        cosine = {
            (i, j, k): (e_ND[j] - e_ND[i]) @ (e_ND[k] - e_ND[i]) / (distance[i, j] * distance[i, k])
            for i in num
            for j in num
            for k in num
            if distance[i, j] * distance[i, k] > 0
        }
        return {pair: value / mean for pair, value in distance.items()}, cosine

    (distance_s, cosine_s), (distance_t, cosine_t) = relations(student_ND), relations(teacher_ND)
    triplets = cosine_s.keys() | cosine_t.keys()
    distances = np.mean([smooth_l1(distance_s[pair] - distance_t[pair]) for pair in distance_s])
    angles = [smooth_l1(cosine_s.get(triplet, 0) - cosine_t.get(triplet, 0)) for triplet in triplets]
    return 25 * distances + 50 * np.sum(angles) / len(student_ND) ** 3


def test_rkd_is_that_of_all_pairs_and_triplets():
    student_ND, teacher_ND = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64)
    expected = naive_relational(student_ND.numpy(), teacher_ND.numpy())
    assert relational_loss(student_ND, teacher_ND).item() == pytest.approx(expected)
    student_ND[1] = student_ND[0]  # no distance, and no angle between them
    expected = naive_relational(student_ND.numpy(), teacher_ND.numpy())
    student_ND.requires_grad_()
    loss = relational_loss(student_ND, teacher_ND)
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert torch.isfinite(student_ND.grad).all()
    assert student_ND.grad.abs().sum() > 0
    assert relational_loss(teacher_ND * 3, teacher_ND).item() == pytest.approx(0, abs=1e-12)  # no unit of length


def test_rkd_of_one_face_is_0_and_of_many_takes_angles_of_64():
    one = torch.randn(1, 4, requires_grad=True)
    loss = relational_loss(one, torch.randn(1, 4))
    loss.backward()
    assert (loss.item(), one.grad.abs().sum()) == (0, 0)
    student_ND = torch.randn(65, 3)
    moved_ND = student_ND.clone()
    moved_ND[64] += 1e-3
    only_angles = torch.randn(65, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raydistal.compression.distillation.DISTANCE_WEIGHT", 0.0)
        assert relational_loss(student_ND, only_angles) == relational_loss(moved_ND, only_angles)


def contrast(student_dim=2, teacher_dim=3, **options):
    """With projections that keep the first numbers as they are."""
    made = Contrast(
        student_dim, teacher_dim, **({"negatives": 2, "tau": 0.5, "num_faces": 8, "bank": 4} | options)
    ).double()
    made._bank_BP = made._bank_BP.double()
    for layer in (made.student, made.teacher):
        torch.nn.init.eye_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return made


def embeddings(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_contrastive_by_hand():
    """cos is 0.6 with the positive and 0 with the negative, tau = 1/2, K / M = 1/4.

    h+ = e^1.2 / (e^1.2 + 1/4), h- = 1 / (1 + 1/4) = 4/5;  -log h+ - 2 log(1 - h-) = log(1 + e^-1.2 / 4) + 2 log 5
    """
    student_ND, teacher_ND = embeddings([3, 4], [0, 2]), embeddings([5, 0, 0], [9, 9, 9])
    loss = contrast()(student_ND, teacher_ND, torch.tensor([0.0, 1.0]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.2) / 4) + 2 * math.log(5))
    assert loss.item() == pytest.approx(3.29147, abs=1e-5)


def test_contrastive_is_equation_8():
    made = contrast(4, 5, negatives=3, num_faces=50, tau=0.1)
    student_ND, teacher_ND = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    loss = made(student_ND, teacher_ND, torch.tensor([0, 0, 1, 0, 0, 0])).item()  # one fake: nothing is drawn by chance
    z_s, z_t = (e_ND / e_ND.norm(dim=1, keepdim=True) for e_ND in (student_ND, teacher_ND))
    z_s = torch.cat([z_s, torch.zeros(6, 1)], 1)
    scores = [math.exp(z_t[i] @ z_s[i] / 0.1) for i in (0, 1, 3, 4, 5)]
    against = [math.exp(z_t[i] @ z_s[2] / 0.1) for i in (0, 1, 3, 4, 5)]
    h_1, h_0 = (np.array([e / (e + 3 / 50) for e in of]) for of in (scores, against))
    assert loss == pytest.approx(-(np.log(h_1).mean() + 3 * np.log(1 - h_0).mean()))


def test_contrastive_is_finite_where_h_rounds_to_1():
    made = contrast(tau=0.05, num_faces=10000).float()
    made._bank_BP = made._bank_BP.float()
    same_ND = torch.tensor([[1.0, 0.0], [1.0, 0.0]], requires_grad=True)
    loss = made(same_ND, torch.tensor([[1.0, 0, 0], [1.0, 0, 0]]), torch.tensor([0.0, 1.0]))
    assert loss.item() == pytest.approx(2 * (20 - math.log(2 / 10000)))  # log(1 - h) of the negative, h+ = 1
    loss.backward()
    assert torch.isfinite(same_ND.grad).all()


def test_contrastive_pulls_the_real_face_to_its_teacher_and_pushes_fakes_away():
    """By the gradient of the student's embeddings alone, and by that of each projection alone."""
    made = Contrast(4, 5, negatives=4, tau=0.5, num_faces=20, bank=8)
    student_ND, teacher_ND, label_N = torch.randn(6, 4, requires_grad=True), torch.randn(6, 5), torch.arange(6) % 2

    def cosines():
        learnt_NP, taught_NP = made.student(student_ND), made.teacher(teacher_ND)
        cosine_NN = torch.nn.functional.cosine_similarity(taught_NP[:, None], learnt_NP, dim=2)
        return cosine_NN.diagonal()[::2].mean().item(), cosine_NN[::2, 1::2].mean().item()

    made(student_ND, teacher_ND, label_N).backward()
    for values in (student_ND, made.student.weight, made.teacher.weight):
        before, step = cosines(), 1e-2 * values.grad / values.grad.norm()
        with torch.no_grad():
            values -= step
        positive, negative = cosines()
        assert positive - negative > before[0] - before[1]
        with torch.no_grad():
            values += step
    positive, negative = cosines()
    with torch.no_grad():
        student_ND -= 1e-2 * student_ND.grad
    assert cosines()[0] > positive
    assert cosines()[1] < negative
    assert student_ND.grad[1::2].abs().sum(1).min() > 0  # every fake was among the negatives, and learns


def test_the_bank_holds_the_latest_fakes_as_they_were():
    made = contrast(bank=3)
    turned = [embeddings([math.cos(angle), math.sin(angle)]).requires_grad_() for angle in (0.1, 0.2, 0.3, 0.4, 0.5)]
    teacher_1D, fake = embeddings([1, 0, 0]), torch.ones(1)
    for student_1D in turned[:2]:
        assert made(student_1D, teacher_1D, fake).item() == 0  # no real face
    assert made.remembered[:, :2].tolist() == [turned[0][0].tolist(), turned[1][0].tolist()]
    for student_1D in turned[2:]:
        made(student_1D, teacher_1D, fake)
    assert made.remembered[:, :2].tolist() == [turned[number][0].tolist() for number in (3, 4, 2)]
    assert not made.remembered.requires_grad
    four = torch.cat([student_ND.detach() for student_ND in turned[:4]])
    made(four, teacher_1D.expand(4, 3), torch.ones(4))
    assert sorted(made.remembered[:, 0].tolist()) == sorted(four[1:, 0].tolist())
    made.forget()
    assert len(made.remembered) == 0


def test_real_faces_alone_are_held_against_the_bank():
    made = contrast()
    made(embeddings([0, 2]), embeddings([9, 9, 9]), torch.ones(1))
    loss = made(embeddings([3, 4]), embeddings([5, 0, 0]), torch.zeros(1))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.2) / 4) + 2 * math.log(5))  # as by hand


def test_half_of_the_negatives_are_of_the_batch():
    made = contrast(negatives=5)
    made(embeddings([0, 1], [0, 1]), embeddings([1, 0, 0], [1, 0, 0]), torch.ones(2))
    drawn_AKP = made._draw(torch.eye(2, 128, dtype=torch.float64)[:1], 3)
    assert drawn_AKP[:, :, :2].tolist() == [[[1, 0]] * 3 + [[0, 1]] * 2] * 3


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_batch_without_pairs_has_no_loss_but_all_gradients(label):
    made = Contrast(4, 5, negatives=2, tau=0.05, num_faces=10, bank=4)
    loss = made(torch.randn(3, 4), torch.randn(3, 5), torch.full((3,), label))
    loss.backward()
    assert loss.item() == 0
    assert [parameter.grad.abs().sum().item() for parameter in made.parameters()] == [0] * 4


def test_every_kind_has_a_weight_and_settings_that_there_are():
    assert set(get_args(KD)) == set(WEIGHTS) == set(schemas.KD_SETTINGS)
    assert {name for names in schemas.KD_SETTINGS.values() for name in names} <= set(vars(Teaching()))


def teacher_loss(kd, panel=None, **options):
    teaching = Teaching(teachers=TEACHERS, kd=kd, negatives=2, bank=8, **options)
    return Distillation(teaching, student_dim=4, teacher_dims=(4, 4), num_faces=20, panel=panel, seed=3)


@pytest.mark.parametrize("kd", ["rkd", "contrastive"])
def test_of_several_teachers_the_losses_are_added(kd):
    """Equation 10: L_task + lambda * sum of L_distill."""
    taught, other = teacher_loss(kd, kd_weight=0.5), teacher_loss(kd, kd_weight=0.5)
    label_N = torch.tensor([0, 0, 1.0])  # one fake: nothing is drawn by chance
    student, *teachers = (Outputs(torch.randn(3), torch.randn(3, 4)) for _ in range(3))
    if kd == "rkd":
        losses = [relational_loss(student.embedding_ND, teacher.embedding_ND) for teacher in teachers]
    else:
        assert not torch.equal(other.contrasts[0].teacher.weight, other.contrasts[1].teacher.weight)
        losses = [
            one(student.embedding_ND, teacher.embedding_ND, label_N)
            for one, teacher in zip(other.contrasts, teachers, strict=True)
        ]
    loss = taught(torch.tensor(2.0), student, label_N, teachers)
    assert loss.item() == pytest.approx(2 + 0.5 * sum(losses).item())
    if kd == "contrastive":
        assert [len(one.remembered) for one in taught.contrasts] == [1, 1]
        taught.begin_epoch()
        assert [len(one.remembered) for one in taught.contrasts] == [0, 0]


def test_teachers_speak_live_at_their_own_size_and_normalisation_or_from_what_was_told():
    small, large = create("timm:test_resnet", "random", 1, 32), create("timm:test_efficientnet", "random", 2, 48)
    panel = Panel([small, large], "cpu")
    crops = {px: np.random.default_rng(px).integers(0, 256, (3, px, px, 3), np.uint8) for px in (32, 48)}
    said = teacher_loss("rkd", panel).teacher_outputs(Batch(crops[32], np.zeros(3, np.int64), {"crops_48": crops[48]}))
    for detector, (logit_N, embedding_ND) in zip((small, large), said, strict=True):
        crops_NHWC = torch.from_numpy(crops[detector.input_px])
        torch.testing.assert_close(logit_N, detector(crops_NHWC))
        torch.testing.assert_close(embedding_ND, detector.embed(crops_NHWC))
        assert embedding_dim(detector) == embedding_ND.shape[1]
        assert not logit_N.requires_grad
    told = {f"logit_{number}": one.logit_N.numpy() for number, one in enumerate(said)}
    heard = teacher_loss("soft").teacher_outputs(Batch(crops[32], np.zeros(3, np.int64), told))
    assert [one.logit_N.tolist() for one in heard] == [one.logit_N.tolist() for one in said]
    assert [one.embedding_ND.shape for one in heard] == [(3, 0), (3, 0)]


def test_outputs_have_the_gradient_of_the_network():
    detector = create("timm:test_resnet", "random", 1, 32).eval()
    found = outputs(detector, torch.zeros(2, 32, 32, 3))
    (one, other) = (
        torch.autograd.grad(logit_N.sum(), detector.network.fc.weight, retain_graph=True)[0]
        for logit_N in (found.logit_N, detector(torch.zeros(2, 32, 32, 3)))
    )
    assert torch.equal(one, other)
    torch.testing.assert_close(one[0], found.embedding_ND.sum(0))  # of a linear classifier: what it saw
