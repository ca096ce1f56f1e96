"""How a detector learns: epochs over batches, measured on val after each, the best one kept.

All that changes is in `Training.state()`, so a run that was killed goes on from its last finished epoch, to the bit as
if nothing had happened (on CPU; on CUDA the order of sums is not fixed).
"""

import contextlib
import io
import math
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from raydistal.detector.examples import Batch
from raydistal.detector.recipes import Recipe, learning_rate, make_optimizer, trainable_groups
from raydistal.detector.zoo import Detector, train_only
from raydistal.errors import UserError

Floats = npt.NDArray[np.float64]


class Training:
    """A detector on its way, on this process's device; the same in every process of a process group, if there is one.

    Args:
        detector: on the CPU; moved to the device.
        recipe: how it learns.
        num_batches: of one epoch and one process.
        device: "cpu" or "cuda".
        faces_at_once: that go through the network together; gradients of a larger batch are summed. 0: all.
        seed: of dropout and the like.
    """

    def __init__(
        self, detector: Detector, recipe: Recipe, num_batches: int, device: str, faces_at_once: int, seed: int
    ) -> None:
        self.recipe, self.num_batches, self.seed, self.device = recipe, num_batches, seed, torch.device(device)
        self.rank, self.world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.faces_at_once = faces_at_once or recipe.batch_size
        self.detector = detector.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(recipe, self.detector)
        self.groups = self.detector.groups() if recipe.greedy else []
        is_cuda = self.device.type == "cuda"
        dtype = torch.bfloat16 if is_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        self.autocast = torch.autocast("cuda", dtype) if is_cuda else contextlib.nullcontext()
        self.scaler = torch.amp.GradScaler("cuda", enabled=is_cuda and dtype == torch.float16)
        self.epoch = 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self._unfrozen: set[int] | None = None
        self._parallel: nn.Module = self.detector.eval()

    @property
    def is_finished(self) -> bool:
        """All epochs done, or none better for `recipe.patience` epochs."""
        waited = self.epoch - 1 - self.best.get("epoch", self.epoch - 1)
        return self.epoch >= self.recipe.epochs or 0 < self.recipe.patience <= waited

    def fit(self, batches: Iterable[Batch]) -> dict[str, Any]:
        """One epoch over this process's batches; returns the means over all processes.

        Raises:
            UserError: the loss is no number, or the memory does not suffice; the message says what to lower.
        """
        torch.manual_seed(int(np.random.SeedSequence([self.seed, self.epoch, self.rank]).generate_state(1)[0]))
        loss_sum = num_faces = 0.0
        for number, batch in enumerate(batches):
            self._set_trainable((self.epoch + number / self.num_batches) / self.recipe.epochs)
            rate = learning_rate(self.recipe, self.epoch + number / self.num_batches)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss_sum += self._step(batch)
            num_faces += len(batch.label_N)
        loss_sum, num_faces = self._sum(loss_sum, num_faces)
        if not math.isfinite(loss_sum):
            raise UserError(f"the loss became {loss_sum} in epoch {self.epoch}. Lower --learning-rate.")
        return {"learning_rate": rate, "train_loss": loss_sum / max(1, num_faces), "images": int(num_faces)}

    def _step(self, batch: Batch) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        num_faces, loss_sum = len(batch.label_N), 0.0
        try:
            for start in range(0, num_faces, self.faces_at_once):
                some = slice(start, start + self.faces_at_once)
                is_last = start + self.faces_at_once >= num_faces
                waiting = contextlib.nullcontext() if is_last else getattr(self._parallel, "no_sync", _nothing)()
                with waiting:  # processes exchange gradients once per batch
                    logit_N = self._logits(self._parallel, batch.crops_NHWC[some])
                    label_N = torch.from_numpy(batch.label_N[some]).to(self.device, torch.float32)
                    loss = bce(logit_N, label_N, reduction="sum")
                    self.scaler.scale(loss / num_faces).backward()  # type: ignore[no-untyped-call]
                loss_sum += loss.item()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
                raise UserError(
                    f"out of memory on {self.device} with {min(num_faces, self.faces_at_once)} faces of "
                    f"{self.detector.input_px} pixels at once. Lower --faces-at-once (gradients are summed: the result "
                    "is nearly the same), --batch-size or --input-px."
                ) from error
            raise
        return loss_sum

    def _logits(self, network: nn.Module, crops_NHWC: npt.NDArray[np.uint8]) -> torch.Tensor:
        with self.autocast:
            logit_N: torch.Tensor = network(torch.from_numpy(crops_NHWC).to(self.device, non_blocking=True))
        return logit_N.float()

    def _set_trainable(self, fraction_done: float) -> None:
        """Freezes what the recipe's schedule does not train now."""
        unfrozen = trainable_groups(len(self.groups), fraction_done) if self.recipe.greedy else None
        if unfrozen == self._unfrozen and self.detector.training:
            return
        self._unfrozen = unfrozen
        self.detector.train()
        names = None if unfrozen is None else set().union(*(self.groups[number] for number in unfrozen))
        train_only(self.detector, names)
        self._parallel = self.detector
        if self.world_size > 1:  # it looks once at what wants gradients
            ids = [self.device.index or 0] if self.device.type == "cuda" else None
            self._parallel = nn.parallel.DistributedDataParallel(self.detector, device_ids=ids)

    @torch.inference_mode()
    def measure(self, batches: Iterable[Batch]) -> tuple[npt.NDArray[np.int64], Floats]:
        """(N,) labels and logits of the faces of all processes, in the order of the processes and their batches."""
        self.detector.eval()
        for buffer in self.detector.buffers() if self.world_size > 1 else ():
            dist.broadcast(buffer, 0)  # statistics of batch norm: each process has its own until the next step
        label_N: list[int] = []
        logit_N: list[float] = []
        for batch in batches:
            for start in range(0, len(batch.label_N), self.faces_at_once):
                some = slice(start, start + self.faces_at_once)
                logit_N += self._logits(self.detector, batch.crops_NHWC[some]).tolist()
            label_N += batch.label_N.tolist()
        found: list[Any] = [(label_N, logit_N)]
        if self.world_size > 1:
            found = [None] * self.world_size
            dist.all_gather_object(found, (label_N, logit_N))
        label_N, logit_N = (list(chain.from_iterable(values)) for values in zip(*found, strict=True))
        return np.array(label_N, np.int64), np.array(logit_N, np.float64)

    def finish_epoch(self, fitted: dict[str, Any], label_N: npt.NDArray[np.int64], logit_N: Floats) -> None:
        """Notes an epoch and what val says of it (N = 0: there is no val); keeps the detector if it is the best."""
        row: dict[str, Any] = {"epoch": self.epoch, **fitted, "val_loss": None, "val_accuracy": None, "val_auc": None}
        if len(label_N):
            row["val_loss"] = float(np.mean(np.logaddexp(0, np.where(label_N == 1, -logit_N, logit_N))))
            row["val_accuracy"] = float(np.mean((logit_N > 0) == (label_N == 1)))
            row["val_auc"] = float(roc_auc_score(label_N, logit_N)) if len(np.unique(label_N)) == 2 else None
        self.history.append(row)
        if row["val_loss"] is None or row["val_loss"] < self.best.get("val_loss", math.inf):
            weights = {name: value.detach().cpu().clone() for name, value in self.detector.state_dict().items()}
            self.best = {"epoch": self.epoch, "val_loss": row["val_loss"], "weights": weights}
            self.best |= {"val_logit": torch.from_numpy(logit_N)}
        self.epoch += 1

    def state(self, about: dict[str, Any]) -> bytes:
        """All that the next epoch depends on, and `about`. Tensors and plain values only: read without running code."""
        content = about | {name: getattr(self, name) for name in ("epoch", "history", "best")}
        content |= {name: getattr(self, name).state_dict() for name in ("detector", "optimizer", "scaler")}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what `read_state` read."""
        self.epoch, self.history, self.best = state["epoch"], state["history"], state["best"]
        for name in ("detector", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(state[name])

    def _sum(self, *values: float) -> list[float]:
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(total)
        return [float(value) for value in total]


def read_state(content: bytes) -> dict[str, Any]:
    """What `Training.state` made."""
    return dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))


def _nothing() -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()
