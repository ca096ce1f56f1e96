"""How a student learns from teachers: the settings of knowledge distillation (KD), and who the teachers are."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from raydistal import storage
from raydistal.errors import UserError

KD = Literal["soft", "rkd", "contrastive"]
WEIGHTS = {"soft": 1.0, "rkd": 1.0, "contrastive": 0.1}  # of contrastive: CKD 4.A
PROJECTED = 128  # numbers per face in the space where contrastive compares; CRD's, CKD gives none


@dataclass(frozen=True, kw_only=True)
class Teaching:
    """Which teachers a student learns from, and how. Without teachers, there is no distillation."""

    teachers: tuple[str, ...] = ()
    """Detector directories. With several, losses are summed (CKD equation 10); soft averages their probabilities."""
    kd: KD = "soft"
    """What is distilled. soft: probabilities (thesis 5.8.1); rkd: distances and angles between embeddings; contrastive:
    real faces against fakes in a memory bank (CKD)."""
    alpha: float = 0.25
    """soft: weight of the teachers' probabilities; the labels have 1 - alpha (thesis 6.2.5: 0.25)."""
    temperature: float = 1.0
    """soft: divides the logits."""
    kd_weight: float = 0.0
    """rkd, contrastive: lambda, weight of the teachers' loss beside that of the labels. 0: rkd 1, contrastive 0.1."""
    tau: float = 0.05
    """contrastive: temperature of the similarities."""
    negatives: int = 32
    """contrastive: K, number of fakes that each real face is contrasted with."""
    bank: int = 4096
    """contrastive: most fakes kept from earlier steps, 128 numbers each."""
    outputs: Literal["auto", "live", "cached"] = "auto"
    """live: teachers run on every face, augmented as the student sees it; cached: their outputs come from the tables of
    raydistal teach; auto: cached if those exist and faces are not augmented."""

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

    @property
    def bank_mb(self) -> float:
        """Memory of the banks of all teachers in each process, in 1e6 bytes."""
        return len(self.teachers) * self.bank * PROJECTED * 4 / 1e6 if self.kd == "contrastive" else 0.0


class Teacher(NamedTuple):
    """A detector that teaches, without its weights."""

    location: str
    model_id: str
    input_px: int

    def table(self, run: str) -> str:
        """Where `raydistal teach` puts its outputs for the faces of a run: `schemas.teaching_schema`."""
        return storage.join(run, "teaching", self.model_id)

    def settings(self, faces: Mapping[str, Any]) -> dict[str, Any]:
        """The settings of that table; `faces` is `_table.json` of the faces."""
        return {"model_id": self.model_id, "input_px": self.input_px, "faces": faces["fingerprint"]}


def find_teachers(locations: Iterable[str]) -> list[Teacher]:
    """Looks up the teachers at these locations.

    Raises:
        UserError: one is not a finished detector, is an exported one, or is the same as another.
    """
    from raydistal.detector import checkpoint  # loads torch, which the command line must not

    found: dict[str, Teacher] = {}
    for location in locations:
        about = checkpoint.read_about(location)
        if about["runtime"] != "torch":
            raise UserError(
                f"the teacher {location} is an exported model ({about['runtime']}), which gives no embeddings: give "
                "the detector that it was exported from"
            )
        teacher = Teacher(storage.absolute(location), checkpoint.model_id(about), about["input_px"])
        if same := found.get(teacher.model_id):
            raise UserError(f"--teachers names a detector twice: {location} has the weights of {same.location}")
        found[teacher.model_id] = teacher
    return list(found.values())
