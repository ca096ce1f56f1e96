"""CKD, tables I to III and figures 2 and 4, from extracted runs of FaceForensics++ and Celeb-DF.

    ray job submit --working-dir . -- python jobs/papers/ckd_tables.py --faceforensics RUN --celebdf RUN --out OUT

    1         of each manipulation: students of few faces, alone (VT) and taught: KD, RKD, CKD
    2         the same of Celeb-DF
    3         one teacher and two, of Celeb-DF
    figure-2  VT by number of faces; of FaceForensics++ the mean of its manipulations
    figure-4  CKD by K, its number of negatives, of Celeb-DF

As the paper where it says how: teachers learn from all faces, students, from random weights, from 10, 100 or 1000 of
them; as many real as fake ones; crops of 299 pixels; tau 0.05, lambda 0.1, batches of 24 or of all 10 faces, K = 32;
accuracy on faces, the mean of both classes, at 0.5. Ours: what teachers, and so "full", start from; how long is learnt;
the settings of KD and RKD; seeds and intervals; the dataset of figure 4 and its K but for 32 and 128, where K is never
above the number of faces. A stopped job goes on where it was.

A small form, in minutes, with one run of synthetic videos for both. After one epoch all is near chance; with
--training.epochs 12 --training.learning-rate 1e-3 --student-epochs 30 detectors learn something, in an hour or more:

    python jobs/papers/ckd_tables.py --faceforensics RUN --celebdf RUN --out OUT --methods hard_swap mouth_retexture
        --networks timm:test_resnet timm:test_efficientnet timm:test_byobnet --faces 10 100 --seeds 1
        --training.weights random --training.input-px 64 --training.epochs 1
"""

import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

sys.path[0] = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from raydistal import cli, storage, tables
from raydistal.compression.teaching import KD, Teaching
from raydistal.detector.examples import Limits
from raydistal.errors import UserError
from raydistal.pipelines import train
from raydistal.pipelines.trainings import Training, evaluate_all, train_all, videos_to_test

if TYPE_CHECKING:
    from raydistal.detector.comparison import Draws
    from raydistal.detector.evaluated import Evaluation

TableName = Literal["1", "2", "3", "figure-2", "figure-4"]
TITLES: dict[TableName, str] = {
    "1": "Table I",
    "2": "Table II",
    "3": "Table III",
    "figure-2": "Figure 2",
    "figure-4": "Figure 4",
}
How = Literal["VT", "KD", "RKD", "CKD"]
HOWS: dict[How, KD | None] = {"VT": None, "KD": "soft", "RKD": "rkd", "CKD": "contrastive"}
FORENSICS, CELEB = "FaceForensics++", "Celeb-DF"
PAIRS = ((0, 0), (0, 1), (1, 2))  # teacher and student among the networks; the students are each of them once
NEGATIVES = 32
THRESHOLD = 0.5
COUNTED = ["video_id", "frame_index"]
VT: tuple[How, ...] = ("VT",)
FEW = 10  # faces, of which table III and figure 4 have nothing
# Accuracy in percent as printed, by pair: of VT, KD, RKD, CKD; of all faces (0) of the students' networks alone.
PAPER: dict[tuple[str, int], tuple[tuple[float, float, float], ...]] = {
    ("FaceSwap", 0): ((98.7, 99.1, 98.6),),
    ("Face2Face", 0): ((97.6, 97.6, 97.2),),
    ("Deepfakes", 0): ((98.5, 97.9, 98.5),),
    ("NeuralTextures", 0): ((96.6, 97.0, 95.6),),
    ("FaceSwap", 1000): ((96.1, 96.3, 95.0), (96.4, 96.4, 95.3), (95.9, 94.4, 95.2), (97.9, 97.1, 95.1)),
    ("Face2Face", 1000): ((94.3, 95.6, 94.7), (95.2, 96.2, 94.8), (92.3, 91.0, 92.1), (96.4, 94.9, 96.8)),
    ("Deepfakes", 1000): ((95.6, 96.7, 93.9), (96.3, 96.7, 94.2), (95.7, 95.2, 93.0), (96.6, 97.0, 95.6)),
    ("NeuralTextures", 1000): ((83.5, 85.6, 83.4), (87.0, 86.2, 84.9), (85.0, 83.4, 83.9), (86.9, 87.5, 85.9)),
    ("FaceSwap", 100): ((84.6, 79.9, 86.7), (87.2, 86.8, 87.5), (85.0, 82.8, 84.9), (85.1, 87.4, 89.0)),
    ("Face2Face", 100): ((82.1, 74.8, 76.3), (82.8, 85.0, 78.4), (82.0, 70.5, 77.0), (83.9, 74.0, 78.5)),
    ("Deepfakes", 100): ((85.3, 83.2, 85.2), (85.9, 86.5, 83.9), (83.4, 82.5, 79.4), (87.9, 88.0, 85.9)),
    ("NeuralTextures", 100): ((63.4, 67.0, 63.9), (64.4, 62.5, 63.1), (64.4, 62.8, 62.5), (67.8, 63.6, 66.5)),
    ("FaceSwap", 10): ((42.4, 66.5, 66.8), (66.7, 66.7, 72.5), (66.7, 45.0, 66.7), (66.7, 62.5, 68.0)),
    ("Face2Face", 10): ((56.3, 50.5, 55.3), (54.0, 52.2, 55.9), (62.5, 43.8, 49.5), (60.4, 62.5, 53.0)),
    ("Deepfakes", 10): ((53.6, 51.2, 51.3), (66.7, 56.5, 58.8), (56.9, 56.3, 51.0), (54.0, 53.5, 51.2)),
    ("NeuralTextures", 10): ((50.0, 55.8, 56.4), (51.7, 57.6, 54.4), (55.4, 50.5, 56.6), (58.7, 51.0, 56.8)),
    (CELEB, 0): ((97.0, 97.2, 96.2),),
    (CELEB, 1000): ((82.5, 84.3, 82.0), (83.0, 84.3, 84.0), (82.5, 85.7, 82.8), (86.6, 90.2, 85.2)),
    (CELEB, 100): ((70.2, 74.8, 74.0), (71.3, 75.6, 77.5), (73.5, 80.4, 75.1), (76.0, 79.8, 77.5)),
    (CELEB, 10): ((49.0, 54.0, 51.2), (55.8, 57.8, 53.6), (57.3, 56.2, 60.1), (64.8, 61.2, 64.0)),
}
TWO_TEACHERS = {1000: 86.5, 100: 79.4}
NOTE = (
    "Accuracy in %, its 95 % interval, and the paper's in brackets: of figure 2 the mean of what table I has, of "
    "figure 4 what table II has. Only the same data and networks would make them comparable. Seeds: {seeds}."
)
REMARK = "Epochs were chosen on all of val, thresholds were not: a face is called fake above 0.5."


class Part(NamedTuple):
    """What some detectors learn from and are measured on."""

    name: str
    data: str
    """Run folder."""
    method: str | None = None
    """The only one of its fakes; None: of all."""
    leave_out: tuple[str, ...] = ()
    """All others."""
    num_faces: int = 0
    """To learn from, half of each class."""

    @property
    def folder(self) -> str:
        """For what is of it."""
        return storage.join("faceforensics", re.sub(r"[^\w.+-]", "-", self.name)) if self.method else "celebdf"


class Cell(NamedTuple):
    """A detector, but for its seed."""

    part: Part
    faces: int
    """0: all."""
    how: How
    student: str
    teachers: tuple[str, ...] = ()
    negatives: int = 0

    @property
    def name(self) -> str:
        """Of its folder."""
        how = f"{self.how}-{self.negatives}" if self.negatives else self.how
        words = (str(self.faces or "full"), how, "-and-".join(self.teachers), self.student)
        return "-".join(word.replace(":", "-") for word in words if word)


class Entry(NamedTuple):
    """A number of a table."""

    table: TableName
    data: str
    row: str
    column: str
    cells: tuple[Cell, ...]
    """Of which it is the mean."""
    paper: float | None


@dataclass(frozen=True, kw_only=True)
class Config:
    """CKD's tables on any runs."""

    faceforensics: str = ""
    """Run folder with the tables videos and faces, of fakes of several methods: table 1."""
    celebdf: str = ""
    """Another one, or the same: tables 2, 3, figure-4."""
    out: str
    """Folder for the detectors, their evaluations and the results."""
    tables: tuple[TableName, ...] = tuple(TITLES)
    """Which of them; what they need is trained in any case."""
    methods: tuple[str, ...] = ()
    """Of table 1, such as FaceSwap Face2Face Deepfakes NeuralTextures. None: all that are there."""
    networks: tuple[str, ...] = ("xception", "efficientnet_b0", "mobilenetv2")
    """Xception, EfficientNet and MobileNet, or what stands for them."""
    faces: tuple[int, ...] = (1000, 100, 10)
    """That students learn from."""
    negatives: tuple[int, ...] = (8, 16, 32, 64, 128)
    """K of figure 4."""
    seeds: int = 3
    """Of each, with teachers, faces and start of its own."""
    student_epochs: int = 0
    """Epochs of those that learn from few faces, and so in few steps. 0: as many as the others."""
    training: Training = field(default_factory=lambda: Training(recipe="ckd-vanilla", input_px=299))

    def __post_init__(self) -> None:
        if len(self.networks) != 3:
            raise UserError("need three --networks, for Xception, EfficientNet and MobileNet")
        for name in ("tables", "methods", "networks", "faces", "negatives"):
            if len(set(values := getattr(self, name))) < len(values):
                raise UserError(f"--{name} names something twice: {' '.join(map(str, values))}")
        if any(num < 2 or num % 2 for num in self.faces) or min(self.negatives, default=1) < 1:
            raise UserError("need --faces that are even and above 0, as half are fakes, and --negatives of at least 1")
        if self.seeds < 1 or self.student_epochs < 0 or not self.tables:
            raise UserError("need --seeds of at least 1, --student-epochs of 0 or more, and one of --tables")
        if "1" in self.tables and not self.faceforensics:
            raise UserError("table 1 needs --faceforensics; to do without, name other --tables")
        if set(self.tables) & {"2", "3", "figure-4"} and not self.celebdf:
            raise UserError("tables 2, 3 and figure-4 need --celebdf; to do without, name other --tables")
        if not (self.faceforensics or self.celebdf):
            raise UserError("need --faceforensics, --celebdf or both")
        self.to_train(Cell(Part("", ""), 0, "VT", self.networks[0]), 0)  # refuses a bad recipe

    @property
    def descending(self) -> list[int]:
        """--faces as the paper has them."""
        return sorted(self.faces, reverse=True)

    def place(self, cell: Cell, seed: int) -> str:
        """Of a detector. The last folder tells it from all others of its part: evaluations keep it by that name."""
        out = storage.absolute(self.out)
        return storage.join(out, "detectors", cell.part.folder, f"{cell.name}-seed-{seed}")

    def to_train(self, cell: Cell, seed: int) -> train.Config:
        """How it is made."""
        limits = Limits(max_faces=cell.faces or cell.part.num_faces, leave_out=cell.part.leave_out)
        place = self.place(cell, seed)
        asked = self.training.to_train(cell.part.data, place, cell.student, seed, limits=limits)
        if not cell.faces:
            return asked
        kd, teaching = HOWS[cell.how], Teaching()
        if kd:
            teachers = tuple(self.place(Cell(cell.part, 0, "VT", name), seed) for name in cell.teachers)
            teaching = Teaching(teachers=teachers, kd=kd, negatives=cell.negatives or teaching.negatives)
        return dataclasses.replace(
            asked,
            weights="random",
            epochs=self.student_epochs or asked.epochs,
            batch_size=min(cell.faces, asked.full_recipe().batch_size),
            teaching=teaching,
        )


def entries(config: Config, parts: list[Part]) -> Iterator[Entry]:
    """Of all tables that are asked for, as the paper has them."""
    forensics, celeb = ([part for part in parts if bool(part.method) == is_first] for is_first in (True, False))
    for table in config.tables:
        if table in ("1", "2"):
            for part in forensics if table == "1" else celeb:
                yield from _by_how(config, table, part)
        elif table == "3":
            yield from _by_teachers(config, celeb[0])
        elif table == "figure-2":
            yield from _by_faces(config, FORENSICS, forensics)
            yield from _by_faces(config, CELEB, celeb)
        else:
            yield from _by_negatives(config, celeb[0])


def _cell(part: Part, num: int, how: How, student: str, teachers: tuple[str, ...], negatives: int = NEGATIVES) -> Cell:
    if how == "VT":
        return Cell(part, num, how, student)
    return Cell(part, num, how, student, teachers, min(negatives, num) if how == "CKD" else 0)


def _pairs(config: Config) -> Iterator[tuple[int, str, str, str]]:
    """Number, teacher and student of each, and how it is called."""
    for number, (teacher, student) in enumerate(PAIRS):
        names = config.networks[teacher], config.networks[student]
        yield number, *names, " > ".join(names)


def _paper(part: str, num: int, how: How, pair: int) -> float | None:
    found = PAPER.get((part, num))
    return found[list(HOWS).index(how)][pair] if found else None


def _by_how(config: Config, table: TableName, part: Part) -> Iterator[Entry]:
    for num in (0, *config.descending):
        for how in HOWS if num else VT:
            for number, teacher, student, column in _pairs(config):
                cell = _cell(part, num, how, student, (teacher,))
                paper = _paper(part.name, num, how, number)
                yield Entry(table, part.name, f"{num or 'full'} {how}", column, (cell,), paper)


def _by_teachers(config: Config, part: Part) -> Iterator[Entry]:
    *two, student = config.networks
    for num in config.descending:
        if num > FEW:
            for teachers, paper in (((two[1],), _paper(part.name, num, "CKD", 2)), (tuple(two), TWO_TEACHERS.get(num))):
                cell = _cell(part, num, "CKD", student, teachers)
                yield Entry("3", part.name, str(num), f"{' + '.join(teachers)} > {student}", (cell,), paper)


def _by_faces(config: Config, data: str, parts: list[Part]) -> Iterator[Entry]:
    for num in (0, *config.descending) if parts else ():
        for number, network in enumerate(config.networks):
            told = [_paper(part.name, num, "VT", number) for part in parts]
            known = [value for value in told if value is not None]
            paper = sum(known) / len(known) if len(known) == len(told) else None
            cells = tuple(Cell(part, num, "VT", network) for part in parts)
            yield Entry("figure-2", data, str(num or "full"), network, cells, paper)


def _by_negatives(config: Config, part: Part) -> Iterator[Entry]:
    for num in config.descending:
        for negatives in sorted(config.negatives):
            if num > FEW and negatives <= num:
                for number, teacher, student, column in _pairs(config):
                    cell = _cell(part, num, "CKD", student, (teacher,), negatives)
                    paper = _paper(part.name, num, "CKD", number) if negatives == NEGATIVES else None
                    yield Entry("figure-4", part.name, f"{num} K={negatives}", column, (cell,), paper)


def run(config: Config) -> dict[str, Any]:
    """Trains and measures what is missing, writes OUT/ckd, shows the tables, and returns their numbers.

    Raises:
        UserError: no tables, a method that is not there, fakes without one, too few faces, a test split that is empty,
            shares people with training or lacks a method, a table without a number, an unknown network; before any
            work. Later as `train_all`.
    """
    asked = list(entries(config, find_parts(config)))
    if lacking := set(config.tables) - {entry.table for entry in asked}:
        raise UserError(
            f"nothing to show in {' and '.join(sorted(lacking))} with these --faces and --negatives: table 3 and "
            f"figure-4 are of more than {FEW} faces, and no K is above their number"
        )
    config.training.check(config.networks)
    cells = list(dict.fromkeys(cell for entry in asked for cell in entry.cells))
    teachers = [Cell(cell.part, 0, "VT", name) for cell in cells for name in cell.teachers]
    place = storage.join(storage.absolute(config.out), "ckd")
    with tables.sole_writer(place):
        whole = dict.fromkeys([*teachers, *(cell for cell in cells if not cell.faces)])
        for what, some in (("all faces", whole), ("few faces", [cell for cell in cells if cell.faces])):
            configs = [config.to_train(cell, seed) for seed in range(config.seeds) for cell in some]
            train_all(f"ckd, {what}", configs, config.training)
        draws: dict[Cell, Draws] = {}
        dataset, is_synthetic = {}, False
        for part, num in dict.fromkeys((cell.part, cell.faces) for cell in cells):
            some = [cell for cell in cells if (cell.part, cell.faces) == (part, num)]
            configs = [config.to_train(cell, seed) for cell in some for seed in range(config.seeds)]
            out = storage.join(storage.absolute(config.out), "evaluations", part.folder, str(num or "full"))
            evaluation, told = evaluate_all(configs, part.data, out, "test", REMARK)
            draws |= {cell: measure(config, evaluation, cell, told["test"]["name"]) for cell in some}
            dataset[part.data] = told["test"]["dataset"]
            is_synthetic |= told["synthetic"]
        rows = [to_row(entry, draws) | {"dataset": dataset[entry.cells[0].part.data]} for entry in asked]
        about = {"synthetic": is_synthetic, "remark": REMARK}
        tables.write_table(place, pa.Table.from_pylist(rows), dataclasses.asdict(config), **about)
    show(rows)
    return {"results": place, "synthetic": is_synthetic, "rows": rows}


class Learnt(NamedTuple):
    """What there is to learn from in a run, by videos of train."""

    data: str
    label_V: npt.NDArray[np.int8]
    method_V: npt.NDArray[np.object_]
    num_faces_V: npt.NDArray[np.integer]
    methods: set[str]
    """Of all splits."""
    measurable: set[str]
    """Those in train and in test."""

    def part(self, name: str, method: str | None, largest: int) -> Part:
        """All fakes, or those of a method. Raises UserError if there are too few faces for the `largest` number."""
        is_fake_V = self.label_V == 1
        learnt_V = is_fake_V if method is None else is_fake_V & (self.method_V == method)
        num_real, num_fake = (int(self.num_faces_V[some_V].sum()) for some_V in (~is_fake_V, learnt_V))
        if largest // 2 > min(num_real, num_fake):
            raise UserError(
                f"--faces {largest} needs {largest // 2} of each class; {self.data} has {num_real} real ones to learn "
                f"from, and {num_fake} fakes{f' of {method}' if method else ''}"
            )
        others = self.methods - {method} if method else ()
        return Part(name, self.data, method, tuple(sorted(others)), 2 * min(num_real, num_fake))


def find_parts(config: Config) -> list[Part]:
    """Those that the tables need. Raises UserError as `run` says."""
    parts, largest = [], max(config.faces, default=2)
    if config.faceforensics and set(config.tables) & {"1", "figure-2"}:
        learnt = _learnt(config.faceforensics)
        if None in learnt.methods:
            raise UserError(f"{config.faceforensics} has fakes without a method: name it in a manifest")
        methods = config.methods or sorted(learnt.methods)
        if unknown := sorted(set(methods) - learnt.measurable):
            known = ", ".join(sorted(learnt.measurable)) or "none"
            raise UserError(f"no fakes of {unknown[0]!r} in train and in test. Choose of --methods: {known}")
        parts += [learnt.part(name, name, largest) for name in methods]
    if config.celebdf and set(config.tables) - {"1"}:
        parts.append(_learnt(config.celebdf).part(CELEB, None, largest))
    return parts


def _learnt(data: str) -> Learnt:
    from raydistal.detector.subsets import count_faces

    videos = tables.read_table(storage.join(data, "videos"), "index")
    videos = videos.filter(pc.is_valid(videos["label"]))
    videos_to_test(videos, "test", data)
    tables.faces_info(data, with_crops=True)
    fakes = videos.filter(pc.equal(videos["label"], 1))
    methods, learnt, tested = (
        set(some["method"].to_pylist())
        for some in (fakes, *(fakes.filter(pc.equal(fakes["split"], split)) for split in ("train", "test")))
    )
    videos = videos.filter(pc.equal(videos["split"], "train"))
    num_faces_V = count_faces(videos, tables.read_table(storage.join(data, "faces"), "extract", COUNTED))
    return Learnt(data, videos["label"].to_numpy(), videos["method"].to_numpy(), num_faces_V, methods, learnt & tested)


def measure(config: Config, evaluation: "Evaluation", cell: Cell, data: str) -> "Draws":
    """Accuracy on the faces of a part: mean of that on real ones and that on fakes, over seeds."""
    from raydistal.detector.comparison import count_groups, mean_over_seeds, resampled_weights
    from raydistal.detector.metrics import weighted_accuracy
    from raydistal.detector.outcome import outcome_of

    value_SB = []
    for seed in range(config.seeds):
        name = evaluation.names[config.place(cell, seed)]
        place = storage.join(evaluation.location, "scores", f"{name}--{data}")
        scores = tables.read_table(place, "evaluate").sort_by("video_id").combine_chunks()
        thresholds = dict.fromkeys(("video", "frame"), THRESHOLD)
        frames = outcome_of(scores, scores, "mean", thresholds, skips_no_face=False).levels["frame"]
        weight_BN = resampled_weights(scores["group_id"].to_numpy())[:, frames.video_N]
        is_fake_N = frames.label_N == 1
        if cell.part.method:
            is_fake_N &= frames.method_N == cell.part.method
        value_2B = [
            weighted_accuracy(frames.label_N[some_N], frames.probability_N[some_N], THRESHOLD, weight_BN[:, some_N])
            for some_N in (frames.label_N == 0, is_fake_N)
        ]
        value_SB.append(np.mean(value_2B, axis=0))
    is_in_N = is_fake_N | (frames.label_N == 0)
    group_N = scores["group_id"].to_numpy()[frames.video_N[is_in_N]]
    num_groups = count_groups("auc", frames.label_N[is_in_N], group_N)  # as AUC, this needs both classes
    return mean_over_seeds(np.stack(value_SB), num_groups, f"{cell.part.name}/{cell.name}")


def to_row(entry: Entry, draws: Mapping[Cell, "Draws"]) -> dict[str, Any]:
    """A row of the table `ckd`, accuracies from 0 to 1."""
    from raydistal.detector.comparison import Draws

    first, mean = entry.cells[0], Draws.mean([draws[cell] for cell in entry.cells])
    low, high = mean.interval(0.0, 1.0)
    return {
        "table": entry.table,
        "data": entry.data,
        "row": entry.row,
        "column": entry.column,
        "num_faces": first.faces or sum(cell.part.num_faces for cell in entry.cells) // len(entry.cells),
        "how": first.how,
        "teachers": list(first.teachers),
        "student": first.student,
        "negatives": first.negatives or None,
        "num_seeds": mean.num_seeds,
        "accuracy": mean.value,
        "low": low,
        "high": high,
        "paper": None if entry.paper is None else round(entry.paper / 100, 4),
    }


def show(rows: list[dict[str, Any]]) -> None:
    """All tables, on stderr, for 80 columns."""
    console = Console(stderr=True, highlight=False)
    for name, data in dict.fromkeys((row["table"], row["data"]) for row in rows):
        some = [row for row in rows if (row["table"], row["data"]) == (name, data)]
        told = escape(f"{TITLES[name]}, {data} (ours: {some[0]['dataset']})")  # synthetic is the name of a dataset
        table = Table("", title=told, title_justify="left", box=None, padding=(0, 1, 0, 0))
        columns = list(dict.fromkeys(row["column"] for row in some))
        for column in columns:
            table.add_column(escape(column.replace(" > ", "\n> ").replace(" + ", "\n+ ")), overflow="fold")
        for label in dict.fromkeys(row["row"] for row in some):
            found = {row["column"]: row for row in some if row["row"] == label}
            table.add_row(label, *(_shown(found[column]) for column in columns))
        console.print(table, "")
    console.print(NOTE.format(seeds=rows[0]["num_seeds"]), markup=False)


def _shown(row: dict[str, Any]) -> str:
    paper = "" if row["paper"] is None else f" ({100 * row['paper']:.1f})"
    return f"{100 * row['accuracy']:.1f} {100 * row['low']:.0f}-{100 * row['high']:.0f}{paper}"


if __name__ == "__main__":
    cli.run_script(Config, run, __doc__)
