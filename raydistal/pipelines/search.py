"""videos, faces, ranking -> trials: trains many small detectors to find the best one.

    space -> strategy (grid, Optuna, bisection) -> points x seeds -> trials, as many at once as the cluster has room for
    a trial: train (on a share of the ranking, with teachers) -> prune -> export as int8 -> measure on val -> a row

A row is written when its trial ends. A rerun of the same command runs the trials without a row, and resumes those that
had begun; a wider space, more seeds or another strategy reuse the rows.
"""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydistal import schemas, storage, tables
from raydistal.compression.teaching import Teaching
from raydistal.errors import UserError
from raydistal.pipelines import teach
from raydistal.pipelines.connection import connect
from raydistal.pipelines.live import Live, grid
from raydistal.pipelines.scaling import Budget, Growth, tell_wait
from raydistal.pipelines.streaming import ATTEMPTS, use_gpu
from raydistal.pipelines.trainings import Training
from raydistal.pipelines.trial import REACHED, Job, Pruning, attempt, failed
from raydistal.search import space as spaces
from raydistal.search.agenda import Agenda, Row, Trial
from raydistal.search.space import Point

if TYPE_CHECKING:
    from raydistal.search.findings import Criteria
    from raydistal.search.strategies import Bisection, Strategy

TUNE_FOLDER = "ray-tune"
STEPS = 16  # that a bisection divides a range into
TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # with verbose=0: Tune prints nothing
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # nor does it write results: they are our rows
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # the last report of a trial holds its row, not the metric
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the search, as it ends every other verb
}
REDUCTION = 3  # of every three trials that reach a rung, early stopping lets the best one on


@dataclass(frozen=True, kw_only=True)
class Config:
    """Train, distil, prune and quantize many small detectors; find the best ones."""

    data: str
    """Run folder with the tables videos and faces, for shares of the data also ranking; local or s3://..."""
    out: str
    """Folder for the trials, their detectors and the report."""
    architecture: str
    """Network, such as efficientnet_lite0, mobilenetv3_small, or timm:NAME."""
    space: tuple[str, ...]
    """What to vary: data, prune, alpha, temperature, kd_weight, tau, negatives or bits, each as NAME=VALUE,VALUE...,
    NAME=LOW..HIGH or NAME=LOW..HIGH:STEP, such as alpha=0,0.25,0.5,0.75,1 prune=0.2..0.6 bits=32,8."""
    strategy: Literal["grid", "tpe", "pareto", "bisect"] = "grid"
    """grid: every point; tpe: Bayesian optimization of the metric; pareto: the metric against --cost and share of data;
    bisect: the largest prune ratio that keeps --floor, or the smallest share of data that is as good as all of it."""
    num_trials: int = 30
    """Points that tpe and pareto try."""
    seeds: int = 1
    """Trainings of each point."""
    metric: Literal["accuracy", "auc"] = "accuracy"
    """Metric to maximize, on the faces of val; for a bisection over data, on its videos."""
    cost: Literal["size_mb", "macs", "num_params"] = "size_mb"
    """Cost to minimize."""
    floor: float = 0.0
    """For a bisection over prune: the lowest metric allowed; 0.9 is 90 points."""
    margin: float = 0.02
    """For a bisection over data: non-inferiority margin against all of the data; 0.02 is 2 points."""
    stop_early: bool = False
    """For grid and tpe: stop trainings that fall behind others (ASHA)."""
    gpus: float = 1.0
    """Share of a GPU of each trial, if the cluster has any: with 0.25, four trials use one."""
    training: Training = field(default_factory=Training)
    teaching: Teaching = field(default_factory=Teaching)
    pruning: Pruning = field(default_factory=Pruning)
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        for dimension in self.parsed():
            if dimension.name not in self.defaults():
                teachers = f"--kd {self.teaching.kd}" if self.teaching.teachers else "without --teachers"
                raise UserError(f"{dimension.name} has no part in a training {teachers}: leave it out of --space")
            if dimension.name == "negatives":
                dataclasses.replace(self.teaching, negatives=int(dimension.high))  # refuses more than the bank holds
        if min(self.num_trials, self.seeds) < 1 or self.gpus <= 0 or not 0 < self.margin < 1:
            raise UserError("need --num-trials and --seeds of at least 1, --gpus above 0, --margin between 0 and 1")
        if self.stop_early and self.strategy not in ("grid", "tpe"):
            raise UserError(
                f"--stop-early is for --strategy grid and tpe: {self.strategy} needs trials that ran to the end"
            )
        if self.strategy == "bisect":
            self._check_bisection()
        if self.strategy == "grid":
            spaces.points(self.parsed(), self.defaults())  # refuses ranges
        if self.strategy in ("tpe", "pareto") and not any(len(one.values) != 1 for one in self.parsed()):
            raise UserError(f"--strategy {self.strategy} needs something to choose from: --space alpha=0..1")
        self.training.to_train("", "", self.architecture)  # refuses a bad recipe

    def _check_bisection(self) -> None:
        name = self.bisected()
        if name not in ("prune", "data"):
            raise UserError(f"--strategy bisect looks for a prune ratio or a share of the data, not for {name}")
        if name == "prune" and not 0 < self.floor < 1:
            raise UserError(f"--strategy bisect needs the {self.metric} that must be held: --floor 0.9")

    def parsed(self) -> spaces.Space:
        """The space."""
        return spaces.parse(self.space)

    def bisected(self) -> str:
        """The only dimension with more than one value. Raises UserError if there is none, or another."""
        names = [dimension.name for dimension in self.parsed() if len(dimension.values) != 1]
        if len(names) != 1:
            raise UserError(f"--strategy bisect varies one quantity, not {len(names)}; give others one value")
        return names[0]

    def defaults(self) -> Point:
        """The point of a trial for which the space says nothing."""
        point: Point = {"set": "ranking", "data": 1.0, "prune": 0.0, "bits": 32}
        if not self.teaching.teachers:
            return point
        values: Point = {name: float(getattr(self.teaching, name)) for name in ("alpha", "temperature", "tau")}
        values |= {"kd_weight": float(self.teaching.weight), "negatives": self.teaching.negatives}
        return point | {name: values[name] for name in schemas.KD_SETTINGS[self.teaching.kd] if name in values}

    def objectives(self) -> dict[str, bool]:
        """The columns of a trial to optimise, and whether more is better."""
        names = {self.metric: True, self.cost: False}
        return names | {one.name: False for one in self.parsed() if one.name == "data" and len(one.values) != 1}


def run(config: Config) -> dict[str, Any]:
    """Runs the trials that are missing, writes OUT/trials and OUT/report, and returns the job's summary.

    A trial that fails is a row; the others go on, and a rerun tries it again.

    Raises:
        UserError: before any trial: no tables, crops or ranking, no val faces of both classes, an unknown architecture
            or weights, an unsuitable teacher, rows made with other settings. At the end: all trials failed.
    """
    from raydistal.report import search as report
    from raydistal.search.findings import answer, summarize

    began = time.monotonic()
    config = _absolute(config)
    place = storage.join(config.out, "trials")
    videos = tables.read_table(storage.join(config.data, "videos"), "index")
    videos = videos.filter(pc.is_valid(videos["label"]))
    settings = _settings(config, videos)
    with tables.sole_writer(place) as claim:
        known = _read_rows(place, settings)
        connect()
        _keep_ranking(config, videos)
        _teach(config)
        job = _job(config, videos.filter(pc.equal(videos["split"], "val")))
        agenda, bisection, criteria = _agenda(config, job, known)
        storage.delete(storage.join(place, tables.INFO))
        if not agenda.is_finished:
            _sweep(config, job, agenda, lambda row: _write_row(place, row, settings, claim))
        rows = list(agenda.rows.values())
        if not any(row["status"] == "ok" for row in rows):
            raise UserError(
                f"none of {len(rows)} trials came to an end. The first one: {rows[0]['error'] or 'stopped'}"
            )
        info = summarize(rows, config.metric, config.objectives())
        info["bisect"] = answer(bisection, criteria, config.bisected()) if bisection else None
        tables.write_info(
            place, settings, num_rows=len(tables.part_names(place)), **_about(config, videos, rows), **info
        )
        page = report.write(config.out)
    _print(config, info)
    found = {name: info[name] for name in ("best", "front", "bisect")}
    seconds = round(time.monotonic() - began, 1)
    return {"trials": len(rows), **info["counts"], **found, "seconds": seconds, "report": page}


# --- before the trials


def _absolute(config: Config) -> Config:
    """The config with absolute paths, for processes in other folders."""
    training = config.training
    if training.weights not in ("imagenet", "random"):
        training = dataclasses.replace(training, weights=storage.absolute(training.weights))
    teachers = tuple(map(storage.absolute, config.teaching.teachers))
    teaching = dataclasses.replace(config.teaching, teachers=teachers)
    data, out = storage.absolute(config.data), storage.absolute(config.out)
    return dataclasses.replace(config, data=data, out=out, training=training, teaching=teaching)


def _job(config: Config, val: pa.Table) -> Job:
    names = ("data", "out", "architecture", "training", "teaching", "pruning", "metric", "gpus")
    return Job(
        device="cuda" if use_gpu(config.training.device) else "cpu",
        val=val.select(["video_id", "label", "method", "group_id"]).combine_chunks(),
        **{name: getattr(config, name) for name in names},
    )


def _settings(config: Config, videos: pa.Table) -> dict[str, Any]:
    """The settings common to all trials: rows are comparable exactly if these are equal."""
    from raydistal.compression.teaching import find_teachers
    from raydistal.detector.comparison import MIN_GROUPS
    from raydistal.detector.examples import fingerprint, list_faces
    from raydistal.features.backbones import state_digest

    detector = config.training.create(config.architecture)
    train, val = (videos.filter(pc.equal(videos["split"], split)) for split in ("train", "val"))
    train_faces, val_faces = (list_faces(config.data, some) for some in (train, val))
    if 0 in tables.count_classes(val_faces["label"]):
        raise UserError(
            "trials are measured on val, which has no real or no fake faces. Make the splits with raydistal index."
        )
    num_groups = len(set(val["group_id"].to_pylist()))
    if config.strategy == "bisect" and config.bisected() == "data" and num_groups < MIN_GROUPS:
        raise UserError(f"val has {num_groups} groups; to tell shares of data apart, at least {MIN_GROUPS} are needed")
    teaching = dataclasses.asdict(config.teaching) if config.teaching.teachers else {}
    return {
        "architecture": config.architecture,
        "input_px": detector.input_px,
        "weights_digest": state_digest(detector.state_dict()),
        "recipe": config.training.to_train(config.data, "", config.architecture).full_recipe().settings(),
        "teachers": sorted(teacher.model_id for teacher in find_teachers(config.teaching.teachers)),
        "teaching": {name: value for name, value in teaching.items() if name not in {*spaces.QUANTITIES, "teachers"}},
        "pruning": dataclasses.asdict(config.pruning),
        "train_faces": fingerprint(train_faces),
        "val_faces": fingerprint(val_faces),
    }


def _read_rows(place: str, settings: dict[str, Any]) -> list[Row]:
    """Rows of earlier runs. Raises UserError if they were made with other settings."""
    rows: list[Row] = []
    names = tables.part_names(place)
    for name, table in zip(names, tables.read_parts(place, names), strict=True):
        tables.refuse_other_config(place, name, tables.made_with(place, name, table.schema), settings)
        rows += table.to_pylist()
    return rows


def _write_row(place: str, row: Row, settings: dict[str, Any], claim: tables.Claim) -> None:
    claim.check()
    table = schemas.conform(pa.Table.from_pylist([dict(row)]), schemas.TRIALS)
    storage.write_bytes(storage.join(place, f"part-{row['trial']}.parquet"), tables.to_parquet(table, settings))


def _teach(config: Config) -> None:
    """Caches the teachers' outputs, if all trials and epochs show them the same faces."""
    teaching, student = config.teaching, config.training.to_train(config.data, "", config.architecture)
    is_cached = teaching.outputs == "cached" or (teaching.outputs == "auto" and not student.augments)
    if teaching.teachers and is_cached:
        device, budget = config.training.device, config.budget
        teach.run(teach.Config(teachers=teaching.teachers, data=config.data, device=device, budget=budget))


def _keep_ranking(config: Config, videos: pa.Table) -> None:
    """Copies the ranking that every trial cuts its set from, if the space varies the share of the data.

    Raises:
        UserError: there is no ranking, it is not of this run, or it changed since an earlier run.
    """
    if all(one.name != "data" or one.values == (1.0,) for one in config.parsed()):
        return
    location = storage.join(config.data, "ranking")
    ranking = tables.read_table(location, "select").sort_by("rank")
    train_videos = videos.filter(pc.equal(videos["split"], "train"))
    if set(ranking["video_id"].to_pylist()) != set(train_videos["video_id"].to_pylist()):
        raise UserError(
            f"the ranking of {config.data} is not that of its labelled training videos. Distil its split train: "
            "raydistal select"
        )
    arrange = tables.read_info(location)["config"]["arrange"]
    about = {"arrange": arrange, "order": spaces.key(ranking["video_id"].to_pylist())}
    kept = storage.join(config.out, "sets", "ranking")
    if old := tables.read_info(kept):
        tables.refuse_other_config(kept, tables.INFO, old["config"], about)
    else:
        tables.write_table(kept, ranking, about)


# --- which trials


def _agenda(config: Config, job: Job, known: list[Row]) -> "tuple[Agenda, Bisection | None, Criteria]":
    """What to run, given the rows of earlier runs; failed trials, and some that were stopped early, are run again."""
    from raydistal.detector import checkpoint
    from raydistal.search.findings import Criteria
    from raydistal.search.strategies import Bisection, Sampled

    ours = [row for row in known if row["seed"] < config.seeds and _is_of(config, Trial.of(row).point)]
    is_final = {"ok": True, "stopped": config.stop_early, "failed": False}
    rows = {row["trial"]: row for row in ours if is_final[row["status"]]}
    names = ("out", "architecture", "metric", "floor", "margin")
    options = {name: getattr(config, name) for name in names}
    criteria = Criteria(rows=rows, num_seeds=config.seeds, val=job.val, **options)
    strategy = _strategy(config, criteria, seed=len(ours))
    agenda = Agenda(
        strategy,
        config.seeds,
        rows,
        partial(_values, config),
        lambda stage: checkpoint.exists(job.place(stage)),
        first=[Trial.of(row).point for row in ours] if isinstance(strategy, Sampled) else (),
    )
    return agenda, strategy if isinstance(strategy, Bisection) else None, criteria


def _is_of(config: Config, point: Point) -> bool:
    """True if the point belongs to this search."""
    if config.strategy != "bisect" or config.bisected() != "data":
        return spaces.contains(config.parsed(), config.defaults(), point)
    space = tuple(one for one in config.parsed() if one.name != "data")  # with the references, outside of it
    return spaces.contains(space, config.defaults() | {name: point[name] for name in ("data", "set")}, point)


def _strategy(config: Config, criteria: "Criteria", seed: int) -> "Strategy":
    from raydistal.search.strategies import Bisection, Grid, Sampled

    space, fixed = config.parsed(), config.defaults()
    if config.strategy == "grid":
        return Grid(spaces.points(space, fixed))
    if config.strategy != "bisect":
        are_more = list(config.objectives().values())[: None if config.strategy == "pareto" else 1]
        return Sampled(space, fixed, are_more, config.num_trials, _num_at_once(config), seed)
    (varied,) = (one for one in space if one.name == config.bisected())
    fixed |= {one.name: one.low for one in space if one is not varied}
    points: list[Point] = [fixed | {varied.name: value} for value in varied.steps(STEPS)]
    if varied.name == "prune":
        return Bisection(points, lambda point: criteria.by_floor(point)["holds"])
    full = fixed | {"data": 1.0}
    return Bisection(
        [point for point in reversed(points) if point != full],
        lambda point: criteria.by_test(point, full, "full")["holds"],
        references=[full],
        controls=lambda point: [point | {"set": "random"}],
    )


def _values(config: Config, rows: Sequence[Row]) -> list[float] | None:
    """The values that a strategy is told: means over seeds; None if a trial failed."""
    if any(row["status"] == "failed" for row in rows):
        return None
    names = config.objectives() if config.strategy == "pareto" else [config.metric]
    return [float(np.mean([row[name] for row in rows])) for name in names]


# --- on the cluster


def _num_at_once(config: Config) -> int:
    """Trials that the cluster has room for now."""
    import ray

    resources, needed = ray.cluster_resources(), _resources(config)
    return max(1, int(min(resources.get(name.upper(), 0) // num for name, num in needed.items() if num)))


def _resources(config: Config) -> dict[str, float]:
    return {"cpu": config.training.cpus, "gpu": config.gpus if use_gpu(config.training.device) else 0}


def _sweep(config: Config, job: Job, agenda: Agenda, write: Callable[[Row], None]) -> None:
    """Runs the agenda with Ray Tune; each result is written as it comes."""
    os.environ |= TUNE_SETTINGS
    from ray import tune

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # errors of a trial are in its row
    resources = _resources(config)
    tell_wait("search: a trial", needed := {name.upper(): num for name, num in resources.items()})
    room = partial(Growth(config.budget.max_nodes).tasks_for, needed)
    filesystem, path = storage.resolve(job.out)
    storage.delete_folder(storage.join(job.out, TUNE_FOLDER))  # left by a killed run
    trouble: list[Exception] = []
    with Live([one.name for one in config.parsed()], config.metric, _num_trials(config)) as live:
        tune.Tuner(
            tune.with_resources(tune.with_parameters(_run_trial, job=job), resources),
            tune_config=tune.TuneConfig(
                search_alg=_searcher(agenda, live, write, trouble, room),
                scheduler=_scheduler(config),
                num_samples=-1,  # until the agenda is finished
                reuse_actors=False,  # an early-stopped trial leaves a thread behind that goes on training
            ),
            run_config=tune.RunConfig(
                name=TUNE_FOLDER,
                storage_path=path,
                storage_filesystem=filesystem,
                verbose=0,
                # For lost processes and nodes only: errors of the trial itself end up in its row.
                failure_config=tune.FailureConfig(max_failures=ATTEMPTS - 1),
            ),
        ).fit()
    if trouble:
        raise trouble[0]
    storage.delete_folder(storage.join(job.out, TUNE_FOLDER))


def _num_trials(config: Config) -> int:
    """Number of trials; 0: not known in advance."""
    if config.strategy == "grid":
        return len(spaces.points(config.parsed(), config.defaults())) * config.seeds
    return 0 if config.strategy == "bisect" else config.num_trials * config.seeds


def _scheduler(config: Config) -> Any:
    from ray.tune.schedulers import ASHAScheduler, FIFOScheduler

    if not config.stop_early:
        return FIFOScheduler()
    epochs = config.training.to_train(config.data, "", config.architecture).full_recipe().epochs
    return ASHAScheduler(
        time_attr="epoch",
        metric="score",
        mode="max",
        max_t=epochs + 1,  # ASHA stops every trial at max_t; pruning has to follow, so it is never reached
        reduction_factor=REDUCTION,
        stop_last_trials=False,
    )


def _searcher(
    agenda: Agenda, live: Live, write: Callable[[Row], None], trouble: list[Exception], room: Callable[[], int]
) -> Any:
    """The Searcher that gives Tune trials, up to `room()` at once, and takes their results.

    Exceptions in it are added to `trouble`, and end the search.
    """
    from ray.tune.search import Searcher

    class Asked(Searcher):
        def __init__(self) -> None:
            super().__init__(metric="score", mode="max")
            self.trials: dict[str, Trial] = {}

        def suggest(self, trial_id: str) -> Any:  # a config; None: ask again later; or FINISHED
            is_over = trouble or agenda.is_finished
            trial = None if is_over or len(agenda.running) >= room() else agenda.next()
            if trial is None:
                return Searcher.FINISHED if trouble or agenda.is_finished else None
            self.trials[trial_id] = trial
            live.show(agenda)
            return {"point": trial.point, "seed": trial.seed}

        def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
            live.tell(agenda, self.trials[trial_id], result)

        def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
            trial = self.trials[trial_id]
            try:  # Tune would take an exception here for one of the trial
                row = _row(trial, result, error)
                write(row)
                agenda.finish(trial, row)
                live.finish(agenda, trial, row)
            except Exception as raised:
                trouble.append(raised)

        def __reduce__(self) -> Any:
            """Nothing: Tune pickles it in order to resume, but a rerun resumes from the rows."""
            return dict, ()

        def save(self, checkpoint_path: str) -> None:
            """Nothing, for the same reason."""

        def restore(self, checkpoint_path: str) -> None:
            """Nothing, for the same reason."""

    return Asked()


def _run_trial(given: dict[str, Any], job: Job) -> None:
    """Runs one trial, in a process of its own."""
    import torch
    from ray import tune

    torch.set_num_threads(job.training.cpus)  # trials share the machine
    row = attempt(job, Trial(given["point"], given["seed"]), tune.report)
    tune.report({"row": json.dumps(row)})  # as text: Tune takes nested values apart


def _row(trial: Trial, result: dict[str, Any] | None, is_error: bool) -> Row:
    """The row of a trial that ended."""
    if result and "row" in result and not is_error:
        return dict(json.loads(result["row"]))
    row = {"trial": trial.id, "seed": trial.seed, **trial.point}
    if is_error or not result:
        return row | failed(
            f"its process died {ATTEMPTS} times: see Ray's logs. More --cpus per trial take less memory."
        )
    return row | {"status": "stopped", "epochs": result["epoch"]} | {name: result[name] for name in REACHED}


# --- after the trials


def _about(config: Config, videos: pa.Table, rows: list[Row]) -> dict[str, Any]:
    """What `trials/_table.json` says about the search, besides its results."""
    used = videos.filter(pc.is_in(videos["split"], pa.array(["train", "val"])))
    datasets = sorted(set(used["dataset"].to_pylist()))
    num = tables.count_classes(used.filter(pc.equal(used["split"], "val"))["label"])
    return {
        "search": json.loads(json.dumps(dataclasses.asdict(config))),
        "varied": [one.name for one in config.parsed()],
        "trials": [row["trial"] for row in rows],
        "dataset": datasets,
        "synthetic": schemas.SYNTHETIC in datasets,
        "val": dict(zip(("num_real", "num_fake"), num, strict=True)),
        "cost": {name: sum(row[name] for row in rows) for name in ("seconds", "cpu_seconds", "gpu_seconds")},
    }


def _print(config: Config, info: dict[str, Any]) -> None:
    """Prints the Pareto front and the answer of a bisection on stderr, for 80 columns."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False)
    front = [point for point in info["points"] if point["id"] in info["front"]]
    front.sort(key=lambda point: -float(point[config.metric]))
    console.print(f"search: on the Pareto front of {', '.join(config.objectives())}:")
    console.print(grid([one.name for one in config.parsed()], front, config.metric), "")
    if info["bisect"]:
        console.print(escape(info["bisect"]["text"]))
