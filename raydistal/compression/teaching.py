"""How a student learns from teachers: the settings of knowledge distillation (KD)."""

import math
from dataclasses import dataclass
from typing import Literal

from raydistal.errors import UserError

KD = Literal["soft", "rkd", "contrastive"]
WEIGHTS = {"soft": 1.0, "rkd": 1.0, "contrastive": 0.1}  # of contrastive: CKD 4.A


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """What is learnt from which teachers. Without teachers: nothing."""

    teachers: tuple[str, ...] = ()
    """Detector directories; of several, their losses are added (CKD equation 10), for soft their probabilities averaged."""
    kd: KD = "soft"
    """soft: their probabilities (thesis 5.8.1); rkd: distances and angles between embeddings; contrastive: as CKD."""
    alpha: float = 0.25
    """Of soft: weight of the teachers' probabilities; the labels weigh 1 - alpha (thesis 6.2.5: 0.25)."""
    temperature: float = 1.0
    """Of soft: logits are divided by it."""
    kd_weight: float = 0.0
    """Of rkd and contrastive: lambda, weight of the teachers' loss beside that of the labels. 0: 1, contrastive 0.1."""
    tau: float = 0.05
    """Of contrastive: temperature of the similarities."""
    negatives: int = 32
    """Of contrastive: K, fakes that each real face is held against."""
    bank: int = 4096
    """Of contrastive: fakes remembered from earlier steps, at most; 128 numbers each."""
    outputs: Literal["auto", "live", "cached"] = "auto"
    """cached: teachers speak from the table that raydistal teach made of their run; live: they look at every face again,
    as augmented; auto: cached if it is there and faces are not augmented."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"--alpha must be from 0 to 1, not {self.alpha}")
        if not (0 < self.temperature < math.inf and 0 < self.tau < math.inf and 0 <= self.kd_weight < math.inf):
            raise UserError("need --temperature and --tau above 0, and --kd-weight of 0 or more")
        if self.negatives < 1 or self.bank < self.negatives:
            raise UserError(f"need --negatives of at least 1 and --bank of no less, not {self.negatives}, {self.bank}")
        if len(set(self.teachers)) < len(self.teachers):
            raise UserError(f"--teachers names a detector twice: {' '.join(self.teachers)}")

    @property
    def weight(self) -> float:
        """Lambda."""
        return self.kd_weight or WEIGHTS[self.kd]
