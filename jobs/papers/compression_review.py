"""The grid of the compression and transfer review (arXiv 2504.21066): seven recipes, on known and unknown generators.

    ray job submit --working-dir . -- python jobs/papers/compression_review.py --source RUN --target RUN --out OUT

A source run and a target run with other generators, both extracted (images: --equalize). On the source are made:

    BL         the baseline, a network trained as a whole
    CPF        BL pruned, all layers fine-tuned
    KD-small   a small network, taught by BL, not fine-tuned (the review calls this CKD; it is not contrastive)
    CQ         BL with weights of 8 bits

and from BL, with the faces of the target:

    TL+FT      its last layers fine-tuned
    TL+FT+Q    the same with weights of 8 bits
    TL+adapter small adapters trained, all else frozen

Only the review's abstract was at hand: which layers, which student and how long are ours. By summaries of it, CQ is of
the linear layers; here it is of convolutions too, as nearly all weights are in those. A stopped job goes on where it
was.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from rich.console import Console
from rich.table import Table

from raydistal import cli, storage, tables
from raydistal.compression.teaching import Teaching
from raydistal.errors import UserError
from raydistal.pipelines import epochs, evaluate, export, prune, train
from raydistal.pipelines.streaming import as_raised, use_gpu
from raydistal.pipelines.trainings import Training, train_all, videos_to_test

RECIPES = ("BL", "CPF", "KD-small", "CQ", "TL+FT", "TL+FT+Q", "TL+adapter")
GROUPS = ("same", "earlier", "unseen")
NOTE = (
    "Of every generator: its fakes against all real videos of its run; accuracy is the mean of those of both classes. "
    "same: the recipe learnt from it; earlier: only what it started from did; unseen: neither. Means over generators; "
    "seeds: {seeds}. The paper's numbers are of Synthbuster, RAISE and ForenSynths; ours are of {datasets}."
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The review's grid on any two runs."""

    source: str
    """Run folder with the tables videos and faces."""
    target: str
    """Another one, with other generators."""
    others: tuple[str, ...] = ()
    """More run folders, with generators that nothing learns from: only measured on."""
    out: str
    """Folder for the detectors and their evaluation."""
    architecture: str = "efficientnet_b0"
    """Of BL."""
    student: str = "mobilenetv3_small"
    """Of KD-small."""
    ratio: float = 0.9
    """Share of the parameters that CPF takes away."""
    steps: int = 5
    """In which CPF does so."""
    last: int = 2
    """Layer groups that TL+FT trains, beside the classifier."""
    bottleneck: int = 16
    """Channels of the adapters of TL+adapter."""
    alpha: float = 0.5
    """Of KD-small: weight of what BL says beside the labels."""
    seeds: int = 1
    """How often all is made."""
    training: Training = field(default_factory=lambda: Training(recipe="finetune"))

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.last < 1 or self.bottleneck < 1:
            raise UserError("need --seeds, --last and --bottleneck of at least 1")
        if len(set(map(storage.absolute, self.runs))) < len(self.runs):
            raise UserError("--source, --target and --others name a run twice")
        for seed in range(self.seeds):  # what the stages would refuse after the work of those before them
            self.trainings(seed)
            self.to_prune(seed)

    @property
    def runs(self) -> tuple[str, ...]:
        """All that is measured on."""
        return self.source, self.target, *self.others

    def place(self, recipe: str, seed: int) -> str:
        """Of a detector."""
        return storage.join(storage.absolute(self.out), "detectors", recipe, f"seed-{seed}")

    def trainings(self, seed: int) -> dict[str, train.Config]:
        """Those of the recipes that are trainings."""
        baseline = self.place("BL", seed)

        def on(data: str, recipe: str, architecture: str, **changes: Any) -> train.Config:
            asked = self.training.to_train(data, self.place(recipe, seed), architecture, seed)
            return dataclasses.replace(asked, **changes)

        teaching = Teaching(teachers=(baseline,), alpha=self.alpha)
        transfer = {"TL+FT": f"last:{self.last}", "TL+adapter": f"bottleneck:{self.bottleneck}"}
        return {
            "BL": on(self.source, "BL", self.architecture),
            "KD-small": on(self.source, "KD-small", self.student, teaching=teaching),
        } | {
            recipe: on(self.target, recipe, self.architecture, weights=baseline, trainable=trainable)
            for recipe, trainable in transfer.items()
        }

    def to_prune(self, seed: int) -> prune.Config:
        """CPF."""
        names = ("recipe", "epochs", "batch_size", "learning_rate")
        return prune.Config(
            detector=self.place("BL", seed),
            data=storage.absolute(self.source),
            out=self.place("CPF", seed),
            ratio=self.ratio,
            steps=self.steps,
            seed=seed,
            compute=epochs.Compute(device=self.training.device),
            **{name: getattr(self.training, name) for name in names},
        )

    def to_export(self, recipe: str, seed: int, data: str) -> export.Config:
        """The recipe with weights of 8 bits."""
        name = {"BL": "CQ", "TL+FT": "TL+FT+Q"}[recipe]
        return export.Config(
            detector=self.place(recipe, seed),
            out=self.place(name, seed),
            data=storage.absolute(data),
            precision="int8-dynamic",
        )


def run(config: Config) -> dict[str, Any]:
    """Makes and measures what is missing; returns the grid. Raises UserError as the stages do."""
    for run_ in config.runs:
        videos = tables.read_table(storage.join(run_, "videos"), "index")
        videos_to_test(videos, "test", run_)
        tables.faces_info(run_, with_crops=True)
    training, seeds = config.training, range(config.seeds)
    training.check((config.architecture, config.student))
    made = [config.trainings(seed) for seed in seeds]
    train_all("review BL", [one.pop("BL") for one in made], training)
    rest = [one for by_recipe in made for one in by_recipe.values()]
    train_all("review KD, TL", rest, training)
    for seed in seeds:
        _on_cluster(prune.run, config.to_prune(seed), training.device)
        for recipe, data in (("BL", config.source), ("TL+FT", config.target)):
            _on_cluster(export.run, config.to_export(recipe, seed, data), "cpu")
    places = {config.place(recipe, seed): recipe for recipe in RECIPES for seed in seeds}
    out = storage.join(storage.absolute(config.out), "evaluation")
    asked = evaluate.Config(detectors=tuple(places), data=config.runs, out=out)
    report = evaluate.run(asked)["report"]
    rows, info = grid(out, places), tables.read_info(storage.join(out, "metrics"))
    datasets = ", ".join(sorted({name for data in info["data"] for name in data["datasets"]}))
    show(rows, NOTE.format(seeds=config.seeds, datasets=datasets))
    return {"recipes": rows, "report": report}


def _on_cluster(work: Callable[[Any], dict[str, Any]], config: object, device: str) -> None:
    """In a task, as the driver may have no GPU."""
    import ray

    try:
        ray.get(ray.remote(num_cpus=1, num_gpus=int(use_gpu(device)))(work).remote(config))
    except UserError as error:
        raise as_raised(error) from None


def grid(evaluation: str, places: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row per recipe: parameters, size, and accuracy and AUC by what was learnt from."""
    from raydistal.compression.cost import describe

    costs = [{"recipe": recipe, **describe(location)} for location, recipe in places.items()]
    measured = list(_by_generator(evaluation, places))
    rows = []
    for recipe in RECIPES:
        row: dict[str, Any] = {"recipe": recipe}
        for key in ("num_params", "size_mb"):
            row[key] = _mean([cost[key] for cost in costs if cost["recipe"] == recipe])
        for group in GROUPS:
            some = [one for one in measured if (one["recipe"], one["group"]) == (recipe, group)]
            row |= {f"{group}_{metric}": _mean([one[metric] for one in some]) for metric in ("accuracy", "auc")}
        rows.append(row)
    return rows


def _by_generator(evaluation: str, places: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Each detector on each generator of each run."""
    from raydistal.detector import checkpoint
    from raydistal.detector.lineage import learnt_from

    place = storage.join(evaluation, "metrics")
    info, rows = tables.read_info(place), tables.read_table(place, "evaluate").to_pylist()
    names = ("detector", "dataset", "slice", "metric")
    value = {tuple(row[name] for name in names): row["value"] for row in rows if row["level"] == "video"}
    for detector in info["detectors"]:
        name, about = detector["name"], checkpoint.read_about(detector["location"])
        own, ever = learnt_from(about | {"parent": None, "teaching": None}), learnt_from(about)
        for data in info["data"]:
            of_data = [key for key in value if key[:2] == (name, data["name"]) and key[3] == "auc"]
            for method in (slice_ for _, _, slice_, _ in of_data if slice_ != "all"):
                is_own, is_known = (learnt.has_seen(data["datasets"], method) for learnt in (own, ever))
                right = [value[name, data["name"], slice_, "accuracy"] for slice_ in (method, "real")]
                yield {
                    "recipe": places[detector["location"]],
                    "group": "same" if is_own else "earlier" if is_known else "unseen",
                    "accuracy": sum(right) / 2,
                    "auc": value[name, data["name"], method, "auc"],
                }


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def show(rows: list[dict[str, Any]], note: str) -> None:
    """The grid, on stderr, for 80 columns."""
    table = Table(
        "recipe", title="Accuracy in % / AUC by generator", title_justify="left", box=None, padding=(0, 1, 0, 0)
    )
    for column in ("params M", "MB", *GROUPS):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        cells = []
        for group in GROUPS:
            accuracy, auc = row[f"{group}_accuracy"], row[f"{group}_auc"]
            cells.append("-" if accuracy is None else f"{100 * accuracy:.1f} / {auc:.3f}")
        table.add_row(row["recipe"], f"{row['num_params'] / 1e6:.3f}", f"{row['size_mb']:.2f}", *cells)
    console = Console(stderr=True, highlight=False)
    console.print(table)
    console.print(note, markup=False)


if __name__ == "__main__":
    cli.run_script(Config, run, __doc__)
