"""The training settings of the papers, by name, and the learning rate and trainable layers that follow from them.

A recipe is changed with `dataclasses.replace`.
"""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from raydistal.errors import UserError

if TYPE_CHECKING:  # the command line reads the recipes' names, and must not load torch for that
    import torch
    from torch import nn

WARMUP_FROM = 0.1  # share of the rate that the warm-up begins with
WARMUP_SHARE = 1 / 3  # of the epochs at most, as in thesis: a shorter run warms up for less
MOMENTUM = 0.9  # of SGD


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of one training."""

    note: str
    """Where the values come from, and which of them are ours because the source gives none."""
    optimizer: Literal["sgd", "adam"]
    """sgd: with momentum 0.9."""
    learning_rate: float
    """The highest of the schedule."""
    weight_decay: float
    """L2 penalty of all parameters, added to the gradient."""
    epochs: int
    batch_size: int
    """Faces per step."""
    warmup_epochs: int = 0
    """During which the rate rises linearly from a tenth; at most a third of the epochs."""
    schedule: Literal["constant", "cosine"] = "constant"
    """What the rate does after the warm-up; cosine: falls to 0 at the end."""
    patience: int = 0
    """Epochs without a lower validation loss after which to stop; 0: never. The best epoch is kept in any case."""
    greedy: bool = False
    """Layer by layer first, see `trainable_groups`."""
    augment: bool = False
    """Vary the training crops, see `augmentation`."""

    def __post_init__(self) -> None:
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"the learning rate must be above 0, not {self.learning_rate}")
        if self.epochs < 1 or self.batch_size < 1:
            raise UserError(f"need at least 1 epoch and 1 face per batch, not {self.epochs} and {self.batch_size}")

    def settings(self) -> dict[str, Any]:
        """The settings that decide the result of a training: all fields but the note."""
        return {name: value for name, value in asdict(self).items() if name != "note"}


RECIPES = {
    "thesis": Recipe(
        note="Lightweight-detection thesis, 5.4.1 to 5.4.6 and 5.1.3.4. Ours: the momentum.",
        optimizer="sgd",
        learning_rate=5e-4,
        weight_decay=1e-5,
        epochs=30,
        batch_size=32,
        warmup_epochs=10,
        schedule="cosine",
        patience=5,
        augment=True,
    ),
    "finetune": Recipe(
        note="Lightweight-detection thesis, 5.4.7, for trained or pruned detectors. Ours: batch size and augmentation, "
        "as in 5.4.1 and 5.1.3.4.",
        optimizer="adam",
        learning_rate=2e-4,
        weight_decay=1e-5,
        epochs=20,
        batch_size=32,
        patience=3,
        augment=True,
    ),
    "deepdistal": Recipe(
        note="DeepDistAL 4.1: ImageNet weights, crops of 299 pixels (densenet121: --input-px 299), 15 or 3 epochs, "
        "greedy layer-wise. Ours: optimizer, momentum, batch size, no weight decay, no augmentation, and what "
        "layer-wise means; one logit stands for the paper's two outputs with softmax.",
        optimizer="sgd",
        learning_rate=2e-3,
        weight_decay=0.0,
        epochs=15,
        batch_size=32,
        greedy=True,
    ),
    "ckd-vanilla": Recipe(
        note="CKD 4.A: batches of 24 crops of 299 pixels; students start from random weights (--weights random). The "
        "paper gives no more. Ours: optimizer, rate, weight decay, epochs, patience, no augmentation.",
        optimizer="adam",
        learning_rate=2e-4,
        weight_decay=0.0,
        epochs=20,
        batch_size=24,
        patience=5,
    ),
}


def learning_rate(recipe: Recipe, epoch: float) -> float:
    """The rate after `epoch` epochs, fractions included: 0 at the first step, recipe.epochs after the last.

    Linear warm-up (thesis 5.4.4), then cosine annealing without restarts (5.4.3) or a constant rate. The thesis raises
    the rate once per epoch; here it rises with every step and is reached at the end of the last epoch of warm-up.
    """
    warmup_epochs = min(recipe.warmup_epochs, WARMUP_SHARE * recipe.epochs)
    if epoch < warmup_epochs:
        return recipe.learning_rate * (WARMUP_FROM + (1 - WARMUP_FROM) * epoch / warmup_epochs)
    if recipe.schedule == "constant":
        return recipe.learning_rate
    share_done = min(1.0, (epoch - warmup_epochs) / (recipe.epochs - warmup_epochs))
    return recipe.learning_rate * (1 + math.cos(math.pi * share_done)) / 2


def trainable_groups(num_groups: int, fraction_done: float) -> set[int]:
    """Which layer groups the greedy schedule trains; group 0 is nearest to the input, the last is the classifier.

    Our reading of "guided by greedy layer-wise pre-training" (DeepDistAL 4.1, after Bengio et al. 2007) for a network
    that is trained already: in the first half of the steps each group in turn, from the input on, together with the
    classifier and for equally long, all others frozen; in the second half everything.

    Args:
        num_groups: at least 2.
        fraction_done: of all steps of the training, from 0 to 1.
    """
    if fraction_done >= 0.5:
        return set(range(num_groups))
    return {int(2 * fraction_done * (num_groups - 1)), num_groups - 1}


def make_optimizer(recipe: Recipe, detector: "nn.Module") -> "torch.optim.Optimizer":
    """Over all parameters, on whichever device they are; frozen ones, whose gradient is None, stay as they are."""
    import torch

    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            detector.parameters(), recipe.learning_rate, momentum=MOMENTUM, weight_decay=recipe.weight_decay
        )
    return torch.optim.Adam(detector.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay)
