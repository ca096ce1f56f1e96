"""What teachers add to a student's loss: knowledge distillation (KD).

soft         their probabilities (Hinton et al. 2015; thesis 5.8.1)
rkd          relations between their embeddings of a batch: distances and angles (Park et al. 2019)
contrastive  their embeddings of real faces against the student's of real and of fake ones (CKD, equations 3 to 9)

N faces, D numbers per embedding, A anchors (the real faces of N), K negatives, P numbers in the space of `Contrast`.
All losses are computed in float32, outside of autocast: for temperatures of 0.05, half precision is too coarse.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, assert_never

import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import logsigmoid, normalize, smooth_l1_loss

from raydistal.compression.teaching import PROJECTED, Teaching
from raydistal.detector.examples import Batch
from raydistal.detector.runtime import mixed_precision
from raydistal.detector.training import Outputs, TeacherLoss, outputs
from raydistal.detector.zoo import Detector

DISTANCE_WEIGHT, ANGLE_WEIGHT = 25.0, 50.0  # RKD, section 4: both together
FACES_FOR_ANGLES = 64  # angles cost N^3 D: 128 faces take seconds on a CPU
TINY = 1e-12  # keeps the gradient of the distance between equal embeddings finite


def soft_loss(
    logit_N: torch.Tensor,
    teachers_TN: Sequence[torch.Tensor],
    hard_loss: torch.Tensor,
    alpha: float,
    temperature: float,
) -> torch.Tensor:
    """The labels and the teachers' probabilities: alpha * T^2 * BCE(z / T, p) + (1 - alpha) * hard_loss.

    p is the mean of the teachers' sigmoid(z / T).

    Thesis 5.8.1, where T = 1: alpha weighs the teachers. T^2 keeps the size of the gradient (Hinton et al. 2015). The
    gradient is that of T^2 * KL of two-class softmaxes; the value has the teachers' entropy on top.
    """
    probability_N = torch.stack([torch.sigmoid(z_N / temperature) for z_N in teachers_TN]).mean(0)
    soft = temperature**2 * bce(logit_N / temperature, probability_N)
    return alpha * soft + (1 - alpha) * hard_loss


def relational_loss(student_ND: torch.Tensor, teacher_ND: torch.Tensor) -> torch.Tensor:
    """25 * distance loss + 50 * angle loss (RKD, section 3.2). D may differ; one face alone has no relations: 0.

    Means over all pairs and triplets of smooth L1 (delta 1): of distances in units of the mean distance of the batch,
    and of cosines of the angle at the middle of three. Angles are those of the first 64 faces: a batch is in random
    order.
    """
    distance = smooth_l1_loss(_distances(student_ND), _distances(teacher_ND))
    some = slice(FACES_FOR_ANGLES)
    angle = smooth_l1_loss(_cosines(student_ND[some]), _cosines(teacher_ND[some]))
    return DISTANCE_WEIGHT * distance + ANGLE_WEIGHT * angle


def _distances(embedding_ND: torch.Tensor) -> torch.Tensor:
    """(N, N), in units of the mean of those that are not 0."""
    square_NN = (embedding_ND[:, None] - embedding_ND).square().sum(-1)
    is_apart_NN = square_NN > TINY
    distance_NN = square_NN.clamp_min(TINY).sqrt() * is_apart_NN
    return distance_NN / distance_NN[is_apart_NN].mean() if is_apart_NN.any() else distance_NN


def _cosines(embedding_ND: torch.Tensor) -> torch.Tensor:
    """(N, N, N): for each face the cosine of the angle, there, between every two others; 0 where there is none."""
    towards_NND = normalize(embedding_ND - embedding_ND[:, None], dim=-1)
    return towards_NND @ towards_NND.transpose(1, 2)


class Contrast(nn.Module):
    """Contrastive knowledge transfer from one teacher (CKD, section III).

    Pairs (3, 4): with C = 1 the teacher's and the student's embedding of the same real face, with C = 0 the teacher's
    of a real face and the student's of a fake one (figure 1 has real and fake faces "in turn" as positives; the text,
    III-C and III-D, real ones alone); K of these to one of those:

        q(t, s | C=1) = p(t, s),   q(t, s | C=0) = p(t) p(s),   q(C=1) = 1 / (K + 1),   q(C=0) = K / (K + 1)

    By Bayes, and as -log(1 + x) <= -log x (5), the mutual information is bounded from below (6):

        log q(C=1 | t, s) = -log(1 + K p(t) p(s) / p(t, s)) <= -log K + log(p(t, s) / (p(t) p(s)))
        MI(T, S) >= log K + E_{q(t, s | C=1)} log q(C=1 | t, s)

    q(C=1 | t, s) is estimated by h (7), with linear maps g to P numbers of length 1, trained along with the student,
    and M training faces:

        h(t, s) = exp(u) / (exp(u) + K / M),   u = g_T(z_t) . g_S(z_s) / tau

    and the bound is raised by raising (8), which enters the loss with lambda (9):

        L_distill = E_{C=1} log h + K * E_{C=0} log(1 - h),   L_final = lambda * L_distill + L_task

    Both logarithms are at most 0 and L_distill is to be raised, so what is minimised here is L_task - lambda *
    L_distill: with the signs as printed in (9) the student would be pushed away from its teacher.

    With a = u - log(K / M), h = sigmoid(a): log h and log(1 - h) are logsigmoid(a) and logsigmoid(-a), which stay
    finite where 1 - h rounds to 0. h is as in (7), without the normalisation by Z of CRD (Tian et al. 2020).

    Negatives are drawn with replacement for each real face: half of K from the fakes of the batch, which carry gradient
    to the student (without them, the second term would train g_T alone), the others from the bank of earlier fakes;
    all from one where the other has none.

    The bank (algorithm 1) holds the latest projections of fakes as they were, first in, first out. In a process group
    all processes hold the fakes of all.

    Args:
        student_dim: D of the student.
        teacher_dim: D of the teacher.
        negatives: K.
        tau: temperature.
        num_faces: M, on all processes together.
        bank: the most fakes that are remembered: (bank, P) float32 are allocated at once.
        device: of the bank.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        *,
        negatives: int,
        tau: float,
        num_faces: int,
        bank: int,
        device: str = "cpu",
    ) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(student_dim, PROJECTED), nn.Linear(teacher_dim, PROJECTED)
        self.negatives, self.tau, self.offset = negatives, tau, math.log(negatives / num_faces)
        # Not a buffer: DDP copies buffers between processes at every step.
        self._bank_BP = torch.zeros(bank, PROJECTED, device=device)
        self._num_pushed = 0

    @property
    def remembered(self) -> torch.Tensor:
        """The filled part of the bank, (B, P)."""
        return self._bank_BP[: self._num_pushed]

    def forget(self) -> None:
        """Empties the bank."""
        self._num_pushed = 0

    def forward(self, student_ND: torch.Tensor, teacher_ND: torch.Tensor, label_N: torch.Tensor) -> torch.Tensor:
        """-L_distill of the faces, at least 0; 0 where there is no real face, or no fake yet. Then remembers the fakes.

        Args:
            student_ND: float32, with gradient.
            teacher_ND: of the same faces.
            label_N: 1 fake, 0 real.
        """
        learnt_NP = normalize(self.student(student_ND), dim=1)
        taught_NP = normalize(self.teacher(teacher_ND), dim=1)
        is_fake_N = label_N == 1
        loss = 0 * (learnt_NP.sum() + taught_NP.sum())  # processes wait for the gradient of every parameter
        anchor_AP, negative_AKP = taught_NP[~is_fake_N], self._draw(learnt_NP[is_fake_N], int((~is_fake_N).sum()))
        if negative_AKP.numel():
            positive_A = self._log_odds((anchor_AP * learnt_NP[~is_fake_N]).sum(1))
            negative_AK = self._log_odds(torch.einsum("ap,akp->ak", anchor_AP, negative_AKP))
            loss = loss - logsigmoid(positive_A).mean() - self.negatives * logsigmoid(-negative_AK).mean()
        self._remember(learnt_NP.detach(), is_fake_N)
        return loss

    def _log_odds(self, cosine: torch.Tensor) -> torch.Tensor:
        """a; h is its sigmoid."""
        return cosine / self.tau - self.offset

    def _draw(self, fake_FP: torch.Tensor, num_anchors: int) -> torch.Tensor:
        """(A, K, P) negatives; empty where there are no anchors, or neither fakes nor a bank."""
        bank_BP = self.remembered
        num_now = self.negatives if not len(bank_BP) else -(-self.negatives // 2) if len(fake_FP) else 0
        drawn = [
            pool[torch.randint(len(pool), (num_anchors, num), device=pool.device)]
            for pool, num in ((fake_FP, num_now), (bank_BP, self.negatives - num_now))
            if len(pool) and num
        ]
        return torch.cat(drawn, 1) if drawn else fake_FP[:0]

    def _remember(self, learnt_NP: torch.Tensor, is_fake_N: torch.Tensor) -> None:
        """Puts the fakes of all processes into the bank, in place of the oldest."""
        rows = torch.cat([learnt_NP, is_fake_N[:, None].float()], 1)
        if dist.is_initialized() and dist.get_world_size() > 1:
            of_all = [torch.empty_like(rows) for _ in range(dist.get_world_size())]  # all have equally many faces
            dist.all_gather(of_all, rows)
            rows = torch.cat(of_all)
        fake_FP = rows[rows[:, -1] == 1, :-1]
        place_F = (self._num_pushed + torch.arange(len(fake_FP), device=rows.device)) % len(self._bank_BP)
        last = slice(-len(self._bank_BP), None)
        self._bank_BP[place_F[last]] = fake_FP[last]
        self._num_pushed += len(fake_FP)


class Panel:
    """Runs the teachers, which are never trained.

    Args:
        detectors: moved to the device.
        device: "cpu" or "cuda".
    """

    def __init__(self, detectors: Sequence[Detector], device: str) -> None:
        self.detectors = [
            detector.eval().to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            for detector in detectors
        ]
        self.device = torch.device(device)
        self._autocast, _ = mixed_precision(self.device)

    @torch.no_grad()
    def __call__(self, crops: Mapping[int, npt.NDArray[Any]]) -> list[Outputs]:
        """Each teacher's outputs, in float32, for the same N faces, given as (N, S, S, 3) for each input size S."""
        per_teacher = []
        for detector in self.detectors:
            crops_NHWC = torch.tensor(crops[detector.input_px]).to(self.device)
            with self._autocast:
                found = outputs(detector, crops_NHWC)
            per_teacher.append(Outputs(*(values.float() for values in found)))
        return per_teacher


@torch.no_grad()
def embedding_dim(detector: Detector) -> int:
    """D, as measured: the number that timm gives is wrong for pruned networks."""
    was_training, size_px = detector.training, detector.input_px
    dim = outputs(detector.eval(), torch.zeros(1, size_px, size_px, 3)).embedding_ND.shape[1]
    detector.train(was_training)
    return dim


class Distillation(TeacherLoss):
    """The loss that `Teaching` describes, for one student in training.

    Args:
        teaching: as asked for.
        student_dim: D of the student.
        teacher_dims: D of each teacher.
        num_faces: training faces, on all processes together.
        panel: live teachers, which see every face; None: their cached outputs are in `Batch.teaching`.
        device: "cpu" or "cuda".
        seed: of the projections.
    """

    def __init__(
        self,
        teaching: Teaching,
        *,
        student_dim: int,
        teacher_dims: Sequence[int],
        num_faces: int,
        panel: Panel | None,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.teaching, self.device = teaching, torch.device(device)
        self._panel, self._num_teachers = panel, len(teacher_dims)
        options: dict[str, Any] = {"negatives": teaching.negatives, "tau": teaching.tau, "bank": teaching.bank}
        is_contrastive = teaching.kd == "contrastive"
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.contrasts = nn.ModuleList(
                Contrast(student_dim, dim, num_faces=num_faces, device=device, **options)
                for dim in teacher_dims
                if is_contrastive
            )

    def begin_epoch(self) -> None:
        """Empties the banks, our reading of "Reload M" in CKD's algorithm 1: no embedding of an old student stays.

        What lasts from epoch to epoch is in the parameters, and so in a checkpoint.
        """
        for contrast in self.contrasts:
            contrast.forget()  # type: ignore[operator]

    def teacher_outputs(self, batch: Batch) -> list[Outputs]:
        """The teachers' outputs, live or cached; embeddings have 0 numbers where they were not read."""
        if self._panel:
            sizes_px = {detector.input_px for detector in self._panel.detectors}
            return self._panel({px: batch.teaching.get(f"crops_{px}", batch.crops_NHWC) for px in sizes_px})
        per_teacher = []
        for number in range(self._num_teachers):
            logit_N = batch.teaching[f"logit_{number}"]
            embedding_ND = batch.teaching.get(f"embedding_{number}", logit_N[:, None][:, :0])
            found = (torch.tensor(values).to(self.device, torch.float32) for values in (logit_N, embedding_ND))
            per_teacher.append(Outputs(*found))
        return per_teacher

    def forward(
        self, hard_loss: torch.Tensor, student: Outputs, label_N: torch.Tensor, teachers: Sequence[Outputs]
    ) -> torch.Tensor:
        """soft: thesis 5.8.1; else L_task + lambda * the sum of the teachers' losses (CKD, equation 10)."""
        teaching = self.teaching
        match teaching.kd:
            case "soft":
                logits = [teacher.logit_N for teacher in teachers]
                return soft_loss(student.logit_N, logits, hard_loss, teaching.alpha, teaching.temperature)
            case "rkd":
                losses = [relational_loss(student.embedding_ND, teacher.embedding_ND) for teacher in teachers]
            case "contrastive":
                losses = [
                    contrast(student.embedding_ND, teacher.embedding_ND, label_N)
                    for contrast, teacher in zip(self.contrasts, teachers, strict=True)
                ]
            case _:
                assert_never(teaching.kd)
        return hard_loss + teaching.weight * torch.stack(losses).sum()
