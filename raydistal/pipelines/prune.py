"""A detector -> a smaller one: channels are taken away, and what is left is trained on, once or in several steps.

    OUT/steps/1-pruned -> fine-tune -> OUT/steps/1 -> OUT/steps/2-pruned -> ... -> OUT/steps/N, which OUT becomes

Every step is a detector directory, written when it is finished: a run that was stopped goes on from there.
"""

import copy
import dataclasses
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from raydistal import storage, tables
from raydistal.compression.teaching import Teaching, find_teachers
from raydistal.detector.examples import Limits
from raydistal.errors import UserError
from raydistal.pipelines import train
from raydistal.pipelines.epochs import Compute
from raydistal.pipelines.scaling import Budget

if TYPE_CHECKING:
    from raydistal.detector.zoo import Detector

FACES_AT_ONCE = 16  # when importance is measured: gradients are summed, so the number changes nothing but memory


@dataclass(frozen=True, kw_only=True)
class Config:
    """Prune a detector and fine-tune what is left."""

    detector: str
    """Detector directory to prune; it is not changed."""
    data: str
    """Run folder with the tables videos and faces, local or s3://..."""
    out: str
    """Detector directory to write."""
    ratio: float
    """Share to remove, above 0 and below 1; met within 1 %."""
    of: Literal["params", "channels", "macs"] = "params"
    """What the ratio counts: parameters, channels or multiply-accumulates."""
    scope: Literal["global", "local", "isomorphic"] = "global"
    """global: all channels compete; local: every layer loses the same share; isomorphic: channels compete within layers
    of the same kind."""
    steps: int = 5
    """Steps of pruning, each followed by fine-tuning. 1: one-shot; more: iterative (thesis 5.7.4: 5)."""
    manifest: str = ""
    """Train only on the training videos of this table, such as RUN/distilled; val is always that of the run."""
    recipe: str = "finetune"
    """Training recipe of the fine-tuning."""
    epochs: int = 0
    """Epochs of fine-tuning after each step. 0: the recipe's."""
    batch_size: int = 0
    """Faces per step, over all workers. 0: the recipe's."""
    learning_rate: float = 0.0
    """Highest learning rate of the schedule. 0: the recipe's."""
    calibration: int = 256
    """Training faces on which importance is measured, half of each class."""
    limits: Limits = field(default_factory=Limits)
    teaching: Teaching = field(default_factory=Teaching)
    compute: Compute = field(default_factory=Compute)
    seed: int = 0
    """Seed of the order of faces, the augmentation and the choice of faces."""
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UserError(f"--ratio must be above 0 and below 1, not {self.ratio}")
        if self.steps < 1 or self.calibration < 2:
            raise UserError("need --steps of at least 1 and --calibration of at least 2")
        self.to_train(1, "efficientnet_b0")  # finds fault with the rest

    def step(self, number: int, when: Literal["-pruned", ""] = "") -> str:
        """Where the detector of a step lies, from 1: just pruned, or fine-tuned."""
        return storage.join(storage.absolute(self.out), "steps", f"{number}{when}")

    def to_train(self, number: int, architecture: str) -> train.Config:
        """How the step is fine-tuned."""
        names = ("manifest", "recipe", "epochs", "batch_size", "learning_rate", "limits", "teaching", "compute", "seed")
        return train.Config(
            data=self.data,
            out=self.step(number),
            architecture=architecture,
            weights=self.step(number, "-pruned"),
            **{name: getattr(self, name) for name in names},
        )


def run(config: Config) -> dict[str, Any]:
    """Prunes what is not done yet, draws the report and returns the job's summary. Errors as `fit`."""
    from raydistal.report import training as report

    return fit(config) | {"report": report.write(storage.absolute(config.out))}


def fit(config: Config) -> dict[str, Any]:
    """Prunes and trains what is not done yet and returns a summary. Needs Ray only if there are workers.

    Raises:
        UserError: no such detector, tables or teachers, a ratio that cannot be met, a detector made with other
            settings, or as `train.fit`; where it can be known, before any training.
    """
    from raydistal.detector import checkpoint

    began = time.monotonic()
    out = storage.absolute(config.out)
    parent, about = checkpoint.load(config.detector)
    faces = _faces(config, parent.architecture)
    settings = _settings(config, checkpoint.model_id(about), faces)
    with tables.sole_writer(out) as claim:
        if checkpoint.exists(out):
            made = checkpoint.read_about(out)
            tables.refuse_other_config(out, checkpoint.INFO, made["settings"], settings)
            return _summary(out, made, began)
        train.prepare_teachers(config.to_train(1, parent.architecture), faces["train"])  # refuses before the first cut
        for number in range(1, config.steps + 1):
            if not checkpoint.exists(config.step(number, "-pruned")):
                _prune(config, number, parent, settings, faces["calibration"])
            earlier = checkpoint.read_about(config.step(number, "-pruned"))
            tables.refuse_other_config(out, f"steps/{number}-pruned", earlier["settings"], settings)
            if not checkpoint.exists(config.step(number)):
                train.fit(config.to_train(number, parent.architecture))
            claim.check()
        made = _finish(config, parent, about, settings)
    return _summary(out, made, began)


def _faces(config: Config, architecture: str) -> dict[str, pa.Table]:
    """Those to train on, and some of them to measure importance on. Refuses what `train.fit` would refuse later."""
    from raydistal.detector.examples import choose

    training = config.to_train(1, architecture)
    train.check_device(config.compute)
    faces = train.examples_of(training, train.videos_of(training))["train"]
    return {"train": faces, "calibration": choose(faces, Limits(max_faces=config.calibration), config.seed)}


def _settings(config: Config, model_id: str, faces: dict[str, pa.Table]) -> dict[str, Any]:
    """What decides the result."""
    from raydistal.detector.examples import fingerprint

    training = config.to_train(1, "efficientnet_b0")
    teaching = dataclasses.asdict(config.teaching) | {"kd_weight": config.teaching.weight}
    teaching["teachers"] = [teacher.model_id for teacher in find_teachers(config.teaching.teachers)]
    del teaching["outputs"]  # a step may be taught live, the next from a table
    return {
        "detector": model_id,
        **{name: getattr(config, name) for name in ("ratio", "of", "scope", "steps", "seed")},
        **training.full_recipe().settings(),
        "teaching": teaching if config.teaching.teachers else None,
        **{f"{name}_faces": fingerprint(examples) for name, examples in faces.items()},
    }


def _prune(
    config: Config,
    number: int,
    parent: "Detector",
    settings: dict[str, Any],
    calibration: pa.Table,
) -> None:
    """Takes away what is due by the end of the step, from the detector of the step before."""
    from raydistal.compression import pruning
    from raydistal.detector import checkpoint, lineage
    from raydistal.detector.examples import every_face, plain_source, rebatch

    location = config.detector if number == 1 else config.step(number - 1)
    detector, about = checkpoint.load(location)
    source = plain_source(config.data, parent.input_px)
    with ThreadPoolExecutor() as threads:
        batches = list(rebatch(every_face(source, calibration, threads), FACES_AT_ONCE))
    how: dict[str, Any] = {"of": config.of, "scope": config.scope, "reference": pruning.count(parent)[config.of]}
    _to_device(detector, config.compute)
    if number == 1:  # tried before the first training: can the last step be met?
        pruning.prune(copy.deepcopy(detector), batches, ratio=config.ratio, **how)
    done = pruning.prune(detector, batches, ratio=config.ratio * number / config.steps, **how)
    left = f"{done['after']['params']:,} parameters and {done['after']['macs']:,} MACs are left"
    print(f"prune: step {number} of {config.steps}, {done['reached']:.1%} of {config.of} gone: {left}", file=sys.stderr)
    provenance = {
        "technique": "prune",
        "parent": lineage.ancestor(location, about),
        "settings": settings,
        "pruning": done,
    }
    learnt = {"data": {name: about.get("data", {}).get(name, []) for name in ("dataset", "methods")}}
    checkpoint.save(config.step(number, "-pruned"), detector, provenance | learnt | {"versions": tables.versions()})


def _to_device(detector: "Detector", compute: Compute) -> None:
    import torch

    has_cuda = compute.device != "cpu" and torch.cuda.is_available()
    detector.to("cuda" if has_cuda else "cpu")


def _finish(config: Config, parent: "Detector", about: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Writes the detector directory from that of the last step; returns what detector.json says."""
    from raydistal.compression import pruning
    from raydistal.detector import checkpoint, lineage

    out, numbers = storage.absolute(config.out), range(1, config.steps + 1)
    pruned = [checkpoint.read_about(config.step(number, "-pruned"))["pruning"] for number in numbers]
    trained = [checkpoint.read_about(config.step(number)) for number in numbers]
    detector, last = checkpoint.load(config.step(config.steps))
    widths = pruning.layer_widths(detector)
    summed = ("images", "seconds", "gpu_seconds")
    provenance = {
        "technique": "prune",
        "weights": storage.absolute(config.detector),
        "parent": lineage.ancestor(config.detector, about),
        "settings": settings,
        "pruning": {
            **{name: getattr(config, name) for name in ("of", "ratio", "scope")},
            "before": pruning.count(parent),
            "after": pruning.count(detector),
            "steps": [_step(*each) for each in zip(pruned, trained, strict=True)],
            "widths": {name: [width, widths[name]] for name, width in pruning.layer_widths(parent).items()},
        },
        "cost": last["cost"] | {name: sum(each["cost"][name] for each in trained) for name in summed},
    }
    trained_on = tables.read_table(storage.join(config.step(config.steps), "trained_on"), "prune")
    trained_on = lineage.trained_on(trained_on, [config.detector])
    tables.write_table(storage.join(out, "trained_on"), trained_on, settings)
    return checkpoint.save(out, detector, last | provenance)


def _step(pruned: dict[str, Any], trained: dict[str, Any]) -> dict[str, Any]:
    best = trained["history"][trained["best_epoch"]]
    step: dict[str, Any] = {name: pruned[name] for name in ("ratio", "reached", "round_to")} | pruned["after"]
    step |= {name: best[name] for name in ("val_loss", "val_accuracy", "val_auc")}
    return step | {"epochs": len(trained["history"]), "seconds": trained["cost"]["seconds"]}


def _summary(out: str, about: dict[str, Any], began: float) -> dict[str, Any]:
    best, pruning = about["history"][about["best_epoch"]], about["pruning"]
    counts = {f"{name}_{when}": pruning[when][name] for name in ("params", "macs") for when in ("before", "after")}
    return {
        "detector": out,
        **counts,
        **{name: best[name] for name in ("val_loss", "val_accuracy", "val_auc")},
        "images": about["cost"]["images"],
        "seconds": round(time.monotonic() - began, 1),
    }
