"""Trains a detector: epochs over batches, measured on val after each; the best epoch is kept.

`Training.state()` holds all that changes, so a killed run resumes from its last finished epoch, with the same bits as
if it had not been killed (on the CPU; on CUDA the order of sums is not fixed).
"""

import contextlib
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence, Set
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from raydistal.detector.examples import Batch
from raydistal.detector.recipes import Recipe, learning_rate, make_optimizer, trainable_groups
from raydistal.detector.runtime import mixed_precision
from raydistal.detector.zoo import Detector, train_only
from raydistal.errors import UserError

Floats = npt.NDArray[np.float64]


class Outputs(NamedTuple):
    """A network's outputs for N faces."""

    logit_N: torch.Tensor
    embedding_ND: torch.Tensor
    """The input of the classifier."""


class TeacherLoss(nn.Module, ABC):
    """What a detector learns from besides the labels. Its own parameters are trained as well, and then discarded.

    In a process group, the gradients of these parameters are averaged like those of the detector.
    """

    @abstractmethod
    def begin_epoch(self) -> None:
        """Drops all state of the last epoch but the parameters, which alone are in a checkpoint."""

    @abstractmethod
    def teacher_outputs(self, batch: Batch) -> Sequence[Outputs]:
        """The teachers' outputs for the faces."""

    @abstractmethod
    def forward(
        self, hard_loss: torch.Tensor, student: Outputs, label_N: torch.Tensor, teachers: Sequence[Outputs]
    ) -> torch.Tensor:
        """The loss, a mean over the faces. Must always depend on every parameter, as DDP waits for all gradients.

        Args:
            hard_loss: loss on the labels.
            student: in float32, like all other inputs.
            label_N: 1.0 fake, 0.0 real.
            teachers: from `teacher_outputs`.
        """


def outputs(detector: Detector, crops_NHWC: torch.Tensor) -> Outputs:
    """(N,) logits and (N, D) embeddings of (N, S, S, 3) crops from one pass; under autocast, in its precision."""
    seen: list[torch.Tensor] = []
    classifier = detector.network.get_classifier()
    handle = classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        logit_N = detector(crops_NHWC)
    finally:
        handle.remove()
    return Outputs(logit_N, seen[0].flatten(1))


class Learner(nn.Module):
    """A detector and its losses as one module, so that DDP averages the gradients of both together."""

    def __init__(self, detector: Detector, teacher_loss: TeacherLoss | None) -> None:
        super().__init__()
        self.detector, self.teacher_loss = detector, teacher_loss
        self.autocast, _ = mixed_precision(detector._mean_C.device)

    def forward(
        self, crops_NHWC: torch.Tensor, label_N: torch.Tensor, teachers: Sequence[Outputs]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The training loss, and the loss on the labels alone, without gradient; both are means over the faces."""
        if self.teacher_loss is None:
            with self.autocast:
                logit_N = self.detector(crops_NHWC)
            loss = hard_loss = bce(logit_N.float(), label_N)
        else:
            with self.autocast:
                student = outputs(self.detector, crops_NHWC)
            student = Outputs(*(values.float() for values in student))
            hard_loss = bce(student.logit_N, label_N)
            loss = self.teacher_loss(hard_loss, student, label_N, teachers)
        return loss, hard_loss.detach()


class Training:
    """A detector in training on this process's device; all processes of a process group hold the same one.

    Args:
        detector: on the CPU; moved to the device.
        recipe: how it learns.
        num_batches: per epoch and process.
        device: "cpu" or "cuda".
        faces_at_once: faces per forward pass; the gradients of a larger batch are summed. 0: the whole batch.
        seed: of dropout and the like.
        trainable: names of the parameters to train; None: all, or those that the recipe's schedule says.
        teacher_loss: what to learn besides the labels; sees no more than `faces_at_once` faces together.
    """

    def __init__(
        self,
        detector: Detector,
        recipe: Recipe,
        num_batches: int,
        device: str,
        faces_at_once: int,
        seed: int,
        trainable: Set[str] | None = None,
        teacher_loss: TeacherLoss | None = None,
    ) -> None:
        self.recipe, self.num_batches, self.seed, self.device = recipe, num_batches, seed, torch.device(device)
        self.rank, self.world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.faces_at_once = faces_at_once or recipe.batch_size
        self.detector = detector.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trainable, self.teacher_loss = trainable, teacher_loss.to(self.device) if teacher_loss else None
        self._learner = Learner(self.detector, self.teacher_loss)
        self.optimizer = make_optimizer(recipe, self._learner)
        self.groups = self.detector.groups() if recipe.greedy else []
        self.autocast, dtype = mixed_precision(self.device)
        self.scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16)
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self._unfrozen: set[int] | None = None
        self._parallel: nn.Module = self._learner.eval()

    @property
    def is_finished(self) -> bool:
        """True after all epochs, or after `recipe.patience` epochs without improvement."""
        waited = self.epoch - 1 - self.best.get("epoch", self.epoch - 1)
        return self.epoch >= self.recipe.epochs or 0 < self.recipe.patience <= waited

    def fit(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """One epoch over this process's batches; returns the means over all processes.

        Raises:
            UserError: the loss is not finite, or memory runs out; the message says what to lower.
        """
        torch.manual_seed(int(np.random.SeedSequence([self.seed, self.epoch, self.rank]).generate_state(1)[0]))
        if self.teacher_loss:
            self.teacher_loss.begin_epoch()
        loss_sum = hard_sum = num_faces = 0.0
        for number, batch in enumerate(batches):
            self._set_trainable((self.epoch + number / self.num_batches) / self.recipe.epochs)
            rate = learning_rate(self.recipe, self.epoch + number / self.num_batches)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss, hard_loss = self._step(batch)
            loss_sum, hard_sum, num_faces = loss_sum + loss, hard_sum + hard_loss, num_faces + len(batch.label_N)
        loss_sum, hard_sum, num_faces = self._sum(loss_sum, hard_sum, num_faces)
        if not math.isfinite(loss_sum):
            raise UserError(f"the loss became {loss_sum} in epoch {self.epoch}. Lower --learning-rate.")
        fitted = {"learning_rate": rate, "train_loss": loss_sum / max(1, num_faces), "images": int(num_faces)}
        return fitted | ({"hard_loss": hard_sum / max(1, num_faces)} if self.teacher_loss else {})

    def _step(self, batch: Batch) -> tuple[float, float]:
        """Learns from one batch; returns both losses of `Learner`, summed over its faces."""
        self.optimizer.zero_grad(set_to_none=True)
        num_faces, loss_sum, hard_sum = len(batch.label_N), 0.0, 0.0
        try:
            for start in range(0, num_faces, self.faces_at_once):
                some = batch.some(slice(start, start + self.faces_at_once))
                is_last = start + self.faces_at_once >= num_faces
                waiting = contextlib.nullcontext() if is_last else getattr(self._parallel, "no_sync", _nothing)()
                with waiting:  # processes exchange gradients once per batch
                    teachers = self.teacher_loss.teacher_outputs(some) if self.teacher_loss else ()
                    label_N = torch.from_numpy(some.label_N).to(self.device, torch.float32)
                    loss, hard_loss = self._parallel(self._on_device(some.crops_NHWC), label_N, teachers)
                    share = len(label_N) / num_faces
                    self.scaler.scale(loss * share).backward()
                loss_sum, hard_sum = (
                    total + len(label_N) * one.item() for total, one in ((loss_sum, loss), (hard_sum, hard_loss))
                )
            self.scaler.step(self.optimizer)
            self.scaler.update()
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise UserError(
                    f"out of memory on {self.device} with {min(num_faces, self.faces_at_once)} faces of "
                    f"{self.detector.input_px} pixels at once. Lower --faces-at-once (gradients are summed: the result "
                    "is nearly the same), --batch-size or --input-px."
                ) from error
            raise
        return loss_sum, hard_sum

    def _on_device(self, crops_NHWC: npt.NDArray[np.uint8]) -> torch.Tensor:
        return torch.from_numpy(crops_NHWC).to(self.device, non_blocking=True)

    def _set_trainable(self, fraction_done: float) -> None:
        """Freezes what the recipe's schedule does not train now."""
        unfrozen = trainable_groups(len(self.groups), fraction_done) if self.recipe.greedy else None
        if unfrozen == self._unfrozen and self.detector.training:
            return
        self._unfrozen = unfrozen
        names = self.trainable if unfrozen is None else set().union(*(self.groups[number] for number in unfrozen))
        self._learner.train()
        train_only(self.detector, names)
        self._parallel = self._learner
        if self.world_size > 1:  # it checks only once, here, what requires gradients
            ids = [self.device.index or 0] if self.device.type == "cuda" else None
            self._parallel = nn.parallel.DistributedDataParallel(self._learner, device_ids=ids)

    @torch.inference_mode()
    def measure(self, batches: Iterable[Batch]) -> tuple[npt.NDArray[np.int64], Floats]:
        """(N,) labels and logits of the faces of all processes, in the order of the processes and their batches."""
        self.detector.eval()
        for buffer in self.detector.buffers() if self.world_size > 1 else ():
            dist.broadcast(buffer, 0)  # batch norm statistics: processes differ until the next step
        label_N: list[int] = []
        logit_N: list[float] = []
        for batch in batches:
            for start in range(0, len(batch.label_N), self.faces_at_once):
                some = batch.some(slice(start, start + self.faces_at_once))
                with self.autocast:
                    logit_N += self.detector(self._on_device(some.crops_NHWC)).tolist()
            label_N += batch.label_N.tolist()
        found: list[Any] = [(label_N, logit_N)]
        if self.world_size > 1:
            found = [None] * self.world_size
            dist.all_gather_object(found, (label_N, logit_N))
        label_N, logit_N = (list(chain.from_iterable(values)) for values in zip(*found, strict=True))
        return np.array(label_N, np.int64), np.array(logit_N, np.float64)

    def finish_epoch(self, fitted: dict[str, Any], label_N: npt.NDArray[np.int64], logit_N: Floats) -> None:
        """Records an epoch and its measures on val (N = 0: there is no val); keeps the weights if they are the best.

        Raises:
            UserError: a logit is not finite.
        """
        if not np.isfinite(logit_N).all():
            raise UserError(f"the logits on val are not finite after epoch {self.epoch}. Lower --learning-rate.")
        row: dict[str, Any] = {"epoch": self.epoch, **fitted, "val_loss": None, "val_accuracy": None, "val_auc": None}
        if len(label_N):
            row |= {f"val_{name}": value for name, value in validation_metrics(label_N, logit_N).items()}
        self.history.append(row)
        if row["val_loss"] is None or row["val_loss"] < self.best.get("val_loss", math.inf):
            weights = {name: value.detach().cpu().clone() for name, value in self.detector.state_dict().items()}
            self.best = {"epoch": self.epoch, "val_loss": row["val_loss"], "weights": weights}
            self.best |= {"val_logit": torch.from_numpy(logit_N)}
        self.epoch += 1

    def state(self, about: dict[str, Any]) -> bytes:
        """All that the next epoch depends on, and `about`. Tensors and plain values only: reading it runs no code."""
        content = about | {name: getattr(self, name) for name in ("epoch", "history", "best")}
        content |= {name: getattr(self, name).state_dict() for name in self._parts()}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    def restore(self, state: dict[str, Any]) -> None:
        """Resumes from what `read_state` returned."""
        self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]
        for name in self._parts():
            getattr(self, name).load_state_dict(state[name])

    def _parts(self) -> tuple[str, ...]:
        return ("detector", "optimizer", "scaler", *(("teacher_loss",) if self.teacher_loss else ()))

    def _sum(self, *values: float) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(total)
        return [float(value) for value in total]


def validation_metrics(label_N: npt.NDArray[np.integer[Any]], logit_N: Floats) -> dict[str, float | None]:
    """Loss (of the labels, a mean), accuracy (at P(fake) = 0.5) and auc (None without both classes) of N > 0 faces."""
    return {
        "loss": float(np.mean(np.logaddexp(0, np.where(label_N == 1, -logit_N, logit_N)))),
        "accuracy": float(np.mean((logit_N > 0) == (label_N == 1))),
        "auc": float(roc_auc_score(label_N, logit_N)) if len(np.unique(label_N)) == 2 else None,
    }


def read_state(content: bytes) -> dict[str, Any]:
    """The content that `Training.state` wrote, for `Training.restore`."""
    return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))


def _nothing() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()
