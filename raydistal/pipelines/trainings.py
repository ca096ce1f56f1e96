"""Many trainings side by side on one cluster, for the verbs that compare what detectors learn from.

A training is a Ray task. A finished one costs nothing on a rerun; one whose process died goes on from its last epoch.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from raydistal import schemas, storage
from raydistal.detector.examples import Limits
from raydistal.errors import UserError
from raydistal.pipelines import epochs, evaluate, train
from raydistal.pipelines.connection import connect
from raydistal.pipelines.scaling import LOOK_EVERY_S, UNLIMITED, Budget, Growth, tell_wait
from raydistal.pipelines.streaming import ATTEMPTS, use_gpu
from raydistal.progress import Progress

if TYPE_CHECKING:
    from raydistal.detector.evaluated import Evaluation
    from raydistal.detector.zoo import Detector

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Training:
    """Training of every detector."""

    weights: str = "imagenet"
    """Initial weights: imagenet, random, a file or URI, or another detector directory."""
    recipe: str = "thesis"
    """Training recipe: thesis, finetune, deepdistal or ckd-vanilla."""
    epochs: int = 0
    """Number of epochs. 0: the recipe's."""
    batch_size: int = 0
    """Faces per step. 0: the recipe's."""
    learning_rate: float = 0.0
    """Highest learning rate of the schedule. 0: the recipe's."""
    input_px: int = 0
    """Side of the network's input, in pixels. 0: the architecture's."""
    device: Device = "auto"
    """auto: a GPU for each training if the cluster has any."""
    cpus: int = 1
    """CPUs per training. With more, fewer trainings run at once, which takes less memory."""

    def __post_init__(self) -> None:
        if self.cpus < 1:
            raise UserError("need --cpus of at least 1")

    def to_train(
        self, data: str, out: str, architecture: str, seed: int = 0, manifest: str = "", limits: Limits | None = None
    ) -> train.Config:
        """The config of one training, on whichever node: relative paths become absolute. UserError as it raises."""
        options: dict[str, Any] = dataclasses.asdict(self)
        del options["cpus"]
        if self.weights not in ("imagenet", "random"):
            options["weights"] = storage.absolute(self.weights)
        return train.Config(
            data=storage.absolute(data),
            out=out,
            manifest=manifest,
            architecture=architecture,
            seed=seed,
            limits=limits or Limits(),
            compute=epochs.Compute(device=options.pop("device")),
            **options,
        )

    def check(self, architectures: Sequence[str]) -> None:
        """Raises UserError for an unknown network, or weights that cannot be read or downloaded."""
        for architecture in architectures:
            self.create(architecture)

    def create(self, architecture: str) -> "Detector":
        """A detector as trainings start from it. Raises UserError as `check`."""
        from raydistal.detector import zoo

        detector = zoo.create(architecture, self.weights, input_px=self.input_px)
        if self.to_train("", "", architecture).full_recipe().greedy:
            detector.groups()
        return detector


def check_asked(split: str, architectures: Sequence[str], **others: Sequence[object]) -> None:
    """Raises UserError if no architecture is named, something is named twice, or detectors learn from `split`."""
    if not architectures:
        raise UserError("name at least one of --architectures")
    for name, values in {"architectures": architectures, **others}.items():
        if len(set(values)) < len(values):
            raise UserError(f"--{name} names something twice: {', '.join(map(str, values))}")
    if split in ("train", "val"):
        raise UserError(f"--split {split} is what detectors learn from; measure them on another, such as test")


def train_all(verb: str, configs: Sequence[train.Config], training: Training, budget: Budget = UNLIMITED) -> None:
    """Runs all of them, as many at once as the cluster has room for; `verb` is named in the progress.

    Every training gets `training.cpus` CPUs as threads and, where there are GPUs, one; its own `compute` is not looked
    at. Those that wait make a cluster grow, up to the nodes of the budget.

    Raises:
        UserError: as `train.fit`; the trainings that run are stopped, those that are finished stay.
    """
    connect()
    import ray
    from ray.exceptions import RayTaskError

    on_gpu = use_gpu(training.device)
    needed = {"CPU": float(training.cpus)} | ({"GPU": 1.0} if on_gpu else {})
    tell_wait(f"{verb}: a training", needed)
    task = ray.remote(num_cpus=training.cpus, num_gpus=int(on_gpu), max_retries=ATTEMPTS)(_train_one)
    growth, waiting = Growth(budget.max_nodes), list(reversed(configs))
    pending: dict[ray.ObjectRef[None], train.Config] = {}
    with Progress(f"{verb}: train", len(configs), unit="detectors") as progress:
        while pending or waiting:
            for _ in range(min(len(waiting), growth.tasks_for(needed) - len(pending))):
                one = waiting.pop()
                pending[task.remote(one, "cuda" if on_gpu else "cpu", training.cpus)] = one
            finished, _ = ray.wait(list(pending), timeout=LOOK_EVERY_S)
            if not finished:
                continue
            (done,) = finished
            try:
                ray.get(done)
            except RayTaskError as error:
                for other in pending:
                    ray.cancel(other, force=True)
                if not isinstance(error.cause, UserError):
                    raise
                raise UserError(f"{error.cause}\n(while training {pending[done].out})") from None
            progress.advance(1, "/".join(pending.pop(done).out.split("/")[-3:]))


def _train_one(config: train.Config, device: Literal["cpu", "cuda"], num_threads: int) -> None:
    import torch

    torch.set_num_threads(num_threads)  # trainings share the machine
    train.fit(dataclasses.replace(config, compute=epochs.Compute(device=device)))


def videos_to_test(videos: pa.Table, split: str, location: str) -> pa.Table:
    """The labelled videos of the split. What `evaluate` would refuse after all the training is refused here."""
    test = evaluate.videos_to_test(videos, split, location)
    learnt = videos.filter(pc.is_in(videos["split"], pa.array(["train", "val"])))
    shared = set(test["group_id"].to_pylist()) & set(learnt["group_id"].to_pylist())
    if shared:
        raise UserError(
            f"{len(shared)} groups are in {split} and in train or val, such as {min(shared)}: detectors would be "
            "measured on people they learnt from. Make the splits with raydistal index."
        )
    return test


def evaluate_all(
    configs: Sequence[train.Config], data: str, out: str, split: schemas.Split, remark: str, budget: Budget = UNLIMITED
) -> tuple["Evaluation", dict[str, Any]]:
    """Measures all trained detectors on one split of the run `data`, into the folder `out`.

    Returns:
        The evaluation, and what a `_table.json` says of it: test, protocol (with `remark`), synthetic.
    """
    from raydistal.detector import evaluated

    places = tuple(one.out for one in configs)
    device = configs[0].compute.device
    evaluate.run(evaluate.Config(detectors=places, data=(data,), out=out, split=split, device=device, budget=budget))
    found = evaluated.read(out)
    (about_data,) = found.info["data"]
    test = {"dataset": ", ".join(about_data["datasets"])}
    test |= {key: about_data[key] for key in ("name", "num_videos", "num_real", "num_fake")}
    protocol = found.info["protocol"] | {"text": f"{found.info['protocol']['text']} {remark}"}
    return found, {"test": test, "protocol": protocol, "synthetic": about_data["synthetic"]}
