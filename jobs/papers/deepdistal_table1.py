"""DeepDistAL, Table 1 and figure 6, from a folder of videos: distil, train Xception and DenseNet, compare.

    ray job submit --working-dir . -- python jobs/papers/deepdistal_table1.py --videos DIR --out RUN

As the paper where it says how: whole frames (faces: --faces.detector haar), resized to 299 pixels; E = 1000 of them for
50 %, 500 for 20 %; ImageNet weights; its recipe. Beyond it: groups never cross splits; thresholds are chosen on val;
three seeds; beside each distilled set a random one and the videos with most faces; and the 5 % and 2 % of its future
work. A stopped job goes on where it was.
"""

import os
import sys
from dataclasses import dataclass, field
from typing import Any

sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from rich.console import Console
from rich.table import Table

from raydistal import cli, storage, tables
from raydistal.errors import UserError
from raydistal.pipelines import compare, extract, index, select, trainings
from raydistal.selection.ranking import Arrange

METRICS = ("precision", "recall", "f1", "accuracy_mean")
# Precision, recall, F1, accuracy in percent, as printed (not every F1 follows from its precision and recall).
PAPER = {
    ("full", "xception"): (99.30, 99.80, 99.55, 99.55),
    ("full", "densenet121"): (89.17, 99.59, 93.10, 93.75),
    ("distill-50", "xception"): (99.05, 96.06, 97.53, 97.57),
    ("distill-50", "densenet121"): (86.49, 99.86, 92.91, 91.65),
    ("distill-20", "xception"): (97.60, 99.94, 98.75, 98.74),
    ("distill-20", "densenet121"): (86.93, 99.26, 92.08, 92.10),
}
NOTE = (
    "The paper's numbers are of 200 real and 200 fake videos of VDFD, without a random baseline, without seeds, and "
    "without a word on how test videos were kept apart. Only the same data would make them comparable; ours are of "
    "{dataset}."
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """DeepDistAL's Table 1 on any videos."""

    videos: str
    """Folder or manifest of labelled videos, local or s3://..."""
    out: str
    """Run folder, where everything goes."""
    ratios: tuple[float, ...] = (0.5, 0.2, 0.05, 0.02)
    """Shares of the training videos to keep."""
    frames: tuple[int, ...] = (1000, 500, 500, 500)
    """Representative frames to find for each of them (E)."""
    arrange: Arrange = "frequency"
    """Order of the ranking. frequency: the paper's; balanced, where small shares would hold one class only."""
    sample: str = "even:10"
    """Frames looked at: even:N, every:N, random:N or fps:R."""
    architectures: tuple[str, ...] = ("xception", "densenet121")
    """Detectors to train."""
    seeds: int = 3
    """Trainings of each detector on each set."""
    margin: float = 0.02
    """What a distilled set may lose in accuracy to count as non-inferior."""
    faces: extract.Faces = field(default_factory=lambda: extract.Faces(detector="none"))
    features: extract.Features = field(default_factory=extract.Features)
    training: trainings.Training = field(default_factory=lambda: trainings.Training(recipe="deepdistal", input_px=299))

    def __post_init__(self) -> None:
        if len(self.ratios) != len(self.frames) or not self.ratios:
            raise UserError(f"need as many --frames as --ratios, not {len(self.frames)} and {len(self.ratios)}")
        # What the stages would refuse after the work of those before them is refused here.
        self.to_extract()
        self.to_select()
        self.to_compare([])

    def to_extract(self) -> extract.Config:
        """The config of that stage."""
        return extract.Config(out=self.out, sample=self.sample, faces=self.faces, features=self.features)

    def to_select(self) -> list[select.Config]:
        """For each ratio."""
        return [
            select.Config(out=self.out, ratio=ratio, frames=frames, arrange=self.arrange)
            for ratio, frames in zip(self.ratios, self.frames, strict=True)
        ]

    def to_compare(self, sets: list[str]) -> compare.Config:
        """The config of that stage for the distilled sets at these places."""
        return compare.Config(
            data=self.out,
            out=storage.join(self.out, "table1"),
            architectures=self.architectures,
            sets=tuple(sets),
            seeds=self.seeds,
            margin=self.margin,
            training=self.training,
        )


def run(config: Config) -> dict[str, Any]:
    """Runs all stages and returns the summary of the comparison. Raises UserError as they do."""
    index.run(index.Config(videos=config.videos, out=config.out))
    extract.run(config.to_extract())
    places = []
    for one in config.to_select():
        select.run(one)
        places.append(storage.join(config.out, "sets", f"distill-{100 * one.ratio:g}"))
        distilled = storage.join(config.out, "distilled")  # the next selection replaces it
        tables.write_table(places[-1], tables.read_table(distilled, "select"), tables.read_info(distilled)["config"])
    asked = config.to_compare(places)
    summary = compare.run(asked)
    show(tables.read_info(storage.join(asked.out, "comparison")))
    return summary


def show(info: dict[str, Any]) -> None:
    """The paper's table and ours, on stderr."""
    table = Table("set", "model", "", title="Table 1, in %", title_justify="left", box=None, padding=(0, 1, 0, 0))
    for column in ("prec.", "recall", "F1", "acc.", "95 %"):
        table.add_column(column, justify="right")
    for row in info["summary"]:
        if row["kind"] in ("full", "distilled"):
            name = (row["set"], row["architecture"])
            if name in PAPER:
                table.add_row(*name, "paper", *(f"{value:.2f}" for value in PAPER[name]))
            ours = ("-" if row[metric] is None else f"{100 * row[metric]:.2f}" for metric in METRICS)
            table.add_row(*name, "ours", *ours, f"{100 * row['accuracy_low']:.1f}-{100 * row['accuracy_high']:.1f}")
    console = Console(stderr=True, highlight=False)
    console.print(table)
    console.print(NOTE.format(dataset=info["test"]["dataset"]), markup=False)


if __name__ == "__main__":
    cli.run_script(Config, run, __doc__)
