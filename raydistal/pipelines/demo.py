"""A synthetic dataset from nothing to a report: what raydistal does, on one machine and without any download."""

import shlex
import sys
from dataclasses import dataclass, field, replace
from typing import Any

from raydistal import storage
from raydistal.errors import UserError
from raydistal.pipelines import distill, extract, report


@dataclass(frozen=True, kw_only=True)
class Config:
    """Make synthetic real and fake videos, distil them, and write a report."""

    out: str = "demo"
    """Folder for the videos and the run."""
    identities: int = 12
    """Synthetic people; each has a real video and five fakes."""
    ratio: float = 0.2
    """Share of the training videos to keep."""
    frames: int = 60
    """Representative frames to select, half of each class."""
    strength: float = 1.0
    """How visible the fakes are, up to 8. At 4, a small network learns to detect them from a thousand faces."""
    seed: int = 0
    """Seed of the synthetic people."""
    features: extract.Features = field(default_factory=extract.Features)

    def __post_init__(self) -> None:
        if not 4 <= self.identities <= 1000:
            raise UserError(f"--identities must be from 4 to 1000, not {self.identities}")
        if storage.is_uri(self.out):
            raise UserError("--out of the demo must be a local folder")


def run(config: Config) -> dict[str, Any]:
    """Runs everything; falls back to random weights where ImageNet's cannot be downloaded, and says so."""
    from raydistal.datasets.synthetic import write_dataset

    features = with_weights(config.features)
    videos, out = storage.join(config.out, "synthetic"), storage.join(config.out, "run")
    print(f"demo: drawing synthetic videos of {config.identities} people in {videos}", file=sys.stderr)
    write_dataset(videos, num_identities=config.identities, strength=config.strength, seed=config.seed)
    options = {"ratio": config.ratio, "frames": config.frames, "sample": "even:6", "features": features}
    summary = distill.run(distill.Config(videos=videos, out=out, **options))  # type: ignore[arg-type]
    page = report.run(report.Config(out=out))["report"]
    run_, comparison = shlex.quote(out), shlex.quote(storage.join(config.out, "comparison"))
    print(NEXT.format(videos=videos, out=out, page=page, run=run_, comparison=comparison), file=sys.stderr)
    return summary | {"weights": features.weights, "report": page}


def with_weights(features: extract.Features) -> extract.Features:
    """`features`, with random weights where ImageNet's were asked for and cannot be had. Raises UserError."""
    from raydistal.features.backbones import feature_dim, load

    try:
        backbone = load(features.backbone, features.weights)
    except UserError as error:
        if features.weights != "imagenet":
            raise
        features = replace(features, weights="random")
        backbone = load(features.backbone, features.weights)  # raises again what random weights do not mend
        print(f"demo: {error}\ndemo: going on with RANDOM weights; features mean little.", file=sys.stderr)
    feature_dim(backbone, extract.Faces().size_px)
    return features


NEXT = """
Synthetic videos   {videos}
Tables             {out}/videos faces uncertainty representative ranking distilled coverage
Report             {page}   (open it in a browser)

Next:
  raydistal select --out {run} --ratio 0.1      a smaller distilled set, from the same ranking
  raydistal compare --data {run} --out {comparison} --sets 0.5 --seeds 2 \\
      --architectures timm:resnet10t --weights random --recipe finetune --epochs 2 --input-px 96
                                                    small detectors on all and on half, in a few minutes
  raydistal distill --videos YOUR_VIDEOS --out YOUR_RUN --ratio 0.2 --frames 500
"""
