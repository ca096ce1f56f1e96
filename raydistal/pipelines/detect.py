"""videos, a detector -> verdicts: every face of each video, tracked and judged, and the video again with boxes.

    files and folders -> each one: frames -> faces -> probabilities -> tracks -> verdicts -> annotated video
                                   (`verdict.examine`; the media in killable children) -> its folder, then its row

A few videos are examined by this process, more by Ray Data: an actor per CPU, or several per GPU, each with the
detector. The `verdicts` table is the ledger: a rerun examines what is missing, what failed, and changed files.
"""

import os
import posixpath
import re
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import tyro
from pyarrow import csv, fs

from raydistal import schemas, storage, tables
from raydistal.datasets import layout
from raydistal.errors import DecodeError, UserError, VideoError
from raydistal.pipelines.connection import connect
from raydistal.pipelines.scaling import Budget, Growth, demand
from raydistal.pipelines.streaming import as_raised, bound_queues, in_blocks, network_actors, use_gpu
from raydistal.pipelines.telemetry import add_seconds, log_failure
from raydistal.progress import Progress
from raydistal.verdict import examine
from raydistal.verdict.result import Band

if TYPE_CHECKING:
    import ray
    from rich.table import Table

    from raydistal.detector.runtime import Exported
    from raydistal.detector.zoo import Detector

FEW = 2  # videos, which take less time than the start of a cluster
ACTORS_PER_GPU = 8  # each decodes on its own CPU, to keep the GPU busy; each has its own copy of the network
NUM_SHOWN = 40  # rows on the terminal; all are in the table
NUM_EXPLAINED = 8
RESULT = "verdict.json"
# tyro itself would show them as optional
ONE_OR_MORE = tyro.conf.arg(metavar="VIDEO ...", help_behavior_hint="(required)")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Tell whether the faces in videos and pictures are fake."""

    videos: Annotated[tuple[str, ...], tyro.conf.Positional, ONE_OR_MORE]
    """Videos, pictures and folders of them, local or s3://..."""
    detector: str
    """Directory of a detector, trained or exported, local or s3://..."""
    out: str = "detected"
    """Folder to write: OUT/verdicts, OUT/verdicts.csv, and a folder of results per video in OUT/results."""
    examination: examine.Settings = field(default_factory=examine.Settings)
    heatmaps: bool = False
    """Also draw which parts of a face make the detector call it fake. An exported detector needs the one that it was
    exported from."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs if there are any now; cuda: GPUs, even if their nodes have yet to start."""
    num_workers: int = 0
    """Videos examined at once on a cluster. 0: one per CPU, or 8 per GPU. One or two videos need no cluster."""
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if not self.videos or not all(self.videos):  # as "$VIDEO" is if it is not set, and would be this folder
            raise UserError("name at least one video, picture or folder: raydistal detect VIDEO --detector DIR")
        if not self.detector:
            raise UserError("need --detector DIR: a detector that raydistal train, prune or export wrote")
        if self.num_workers < 0:
            raise UserError("--num-workers must be 0 or more")
        for given in self.videos:
            storage.refuse_credentials("a URI", given)


class Job(NamedTuple):
    """What is the same for all videos of a job."""

    config: Config
    name: str
    """Name of the detector."""
    about: dict[str, Any]
    """The content of its detector.json."""
    claim: tables.Claim
    """On OUT/verdicts."""
    made_with: dict[str, Any]
    """The settings that decide the content of a row."""


class Networks(NamedTuple):
    """The networks, loaded once and sent to every worker."""

    judge: "Detector | Exported"
    heat: "Detector | None"


def run(config: Config) -> dict[str, Any]:
    """Examines what is not done yet, prints a table of verdicts on stderr, and returns the job's summary.

    Raises:
        UserError: no such file or folder, a folder without media, no such detector or one that does not record how its
            faces were made, no heatmaps for it, verdicts made with other settings, another writer.
    """
    began = time.monotonic()
    about, videos = _inputs(config)
    out = storage.absolute(config.out)
    place = storage.join(out, "verdicts")
    made_with = _made_with(config, about)
    with tables.sole_writer(place) as claim:
        tables.read_ledger(place, made_with)  # removes what was cut off
        pending = _pending(videos, place)
        if len(pending) or not tables.read_info(place):
            (name,) = storage.distinct_names("--detector", [config.detector])
            networks = _load(config, is_here=_is_few(pending))
            storage.delete(storage.join(place, tables.INFO))
            _drop(place, made_with, pending["video_id"].combine_chunks())
            _remove_unfinished(out)
            _examine_all(Job(config, name, about, claim, made_with), networks, pending)
            claim.check()
            _finish(out, place, made_with)
    rows = tables.read_table(place, "detect")
    rows = rows.filter(pc.is_in(rows["video_id"], videos["video_id"]))
    _print(config, about, rows)
    counts = {"videos": len(rows), **_counts(rows), "done_before": len(videos) - len(pending)}
    places = {"table": place, "csv": storage.join(out, "verdicts.csv"), "files": storage.join(out, "results")}
    return counts | {"seconds": round(time.monotonic() - began, 1)} | places


def _is_few(pending: pa.Table) -> bool:
    """True if this process examines them without a cluster."""
    return len(pending) <= FEW and (not len(pending) or not os.environ.get("RAY_ADDRESS"))


def _made_with(config: Config, about: dict[str, Any]) -> dict[str, Any]:
    from raydistal.detector import checkpoint

    examination, faces = config.examination, about["data"]["faces"]
    return {
        "model_id": checkpoint.model_id(about),
        "threshold": about["threshold"]["video"],
        "faces": faces,
        "sample": examination.sample or faces["sample"],
        "timeline": examination.timeline,
        "band": examination.band,
        "draw": examination.draw,
        "heatmaps": config.heatmaps,
        "draw_heat": examination.draw_heat,
    }


def _load(config: Config, is_here: bool) -> Networks:
    import torch

    from raydistal.detector import checkpoint, heatmaps, runtime
    from raydistal.detector.zoo import Detector

    if is_here and config.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here. Use --device cpu.")
    judge, _ = runtime.load(config.detector)
    if not isinstance(judge, Detector):
        runtime.start(judge)  # so that a missing runtime is refused here, not by each worker
    if not config.heatmaps:
        return Networks(judge, None)
    heat = judge if isinstance(judge, Detector) else checkpoint.load(heatmaps.explainer(config.detector))[0]
    heatmaps.Heatmaps(heat)  # likewise a network without maps
    return Networks(judge, heat)


# --- which videos


def _inputs(config: Config) -> tuple[dict[str, Any], pa.Table]:
    """detector.json; and video_id, uri, num_bytes and modified_ns of each file, each once, in the order given."""
    found: dict[str, fs.FileInfo] = {}
    for given in config.videos:  # before the detector is read, as it is quick
        for uri, info in _files(given).items():
            found.setdefault(uri, info)
    from raydistal.detector import checkpoint

    about = checkpoint.read_about(config.detector)
    examine.check(about, config.detector)
    columns = {
        "video_id": [layout.video_id("", uri) for uri in found],
        "uri": list(found),
        "num_bytes": pa.array([info.size for info in found.values()], pa.int64()),
        "modified_ns": pa.array([info.mtime_ns for info in found.values()], pa.int64()),
    }
    return about, pa.table(columns)


def _files(given: str) -> dict[str, fs.FileInfo]:
    """The file `given`, or all files below it that are videos or pictures by name and not made by us."""
    place = storage.absolute(given)
    if not storage.is_uri(place):
        place = os.path.normpath(place)  # one path, from whichever folder it is given
    filesystem, path = storage.resolve(place)
    try:
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.File:
            return {place: info}
        if info.type != fs.FileType.Directory:
            raise UserError(f"no such file or folder: {given}")
    except UnicodeEncodeError as error:
        raise UserError(f"a file name is not UTF-8: {given!r}. Rename it (convmv -t utf8).") from error
    except OSError as error:
        raise UserError(f"cannot read {given}: {error}. Check that it exists and that you may read it.") from error
    infos = storage.list_infos(place)
    ours = {posixpath.dirname(name) for name in infos if posixpath.basename(name) == RESULT}
    media = [name for name in infos if layout.is_media(name) and posixpath.dirname(name) not in ours]
    if not media:
        raise UserError(f"no video and no picture in {given}: it has {len(infos)} files. A file named itself is tried.")
    return {storage.join(place, name): infos[name] for name in media}


def _pending(videos: pa.Table, place: str) -> pa.Table:
    """Those without a row, or whose row is of a failure or of an earlier version of the file."""
    columns = ["video_id", "num_bytes", "modified_ns"]
    parts = tables.read_parts(place, tables.part_names(place), [*columns, "status"])
    nothing = schemas.VERDICTS.empty_table()
    rows = pa.concat_tables([part.select([*columns, "status"]) for part in [nothing, *parts]])
    rows = rows.filter(pc.is_in(rows["status"], pa.array(tables.FINAL))).select(columns)
    return videos.join(rows, columns, join_type="left anti").sort_by("uri") if len(videos) else videos


def _drop(place: str, made_with: dict[str, Any], video_id_V: pa.Array) -> None:
    """Removes the rows of these videos. After compacting, a part holds rows of other videos too."""
    names = tables.part_names(place)
    for name, ids in zip(names, tables.read_parts(place, names, ["video_id"]), strict=True):
        if pc.any(pc.is_in(ids["video_id"], video_id_V)).as_py():
            part = tables.read_part(place, name)
            keep = part.filter(pc.invert(pc.is_in(part["video_id"], video_id_V)))
            if len(keep):
                storage.write_bytes(storage.join(place, name), tables.to_parquet(keep, made_with))
            else:
                storage.delete(storage.join(place, name))


# --- one video


class Examiner:
    """Holds the detector; examines one video after another, and writes the results.

    Args:
        job: what is the same for all videos.
        networks: the detector, and the one that explains it.
        device: "cpu" or "cuda".
    """

    def __init__(self, job: Job, networks: Networks, device: str) -> None:
        from raydistal.detector.heatmaps import Heatmaps
        from raydistal.detector.scoring import Scorer

        heat = Heatmaps(networks.heat, device) if networks.heat else None
        self.job, self.judge = job, examine.Judge(job.name, job.about, Scorer(networks.judge, device), heat)

    def __call__(self, video: dict[str, Any], title: str = "") -> dict[str, Any]:
        """Writes the folder and the row of a video, and returns the row; with a `title`, shows progress under it."""
        began = time.monotonic()
        out, claim = storage.absolute(self.job.config.out), self.job.claim
        folder = f"results/{_safe_name(video['uri'])}-{video['video_id'][:8]}"
        row = dict.fromkeys(schemas.VERDICTS.names) | video | {"model_id": self.job.made_with["model_id"]}
        try:
            with _publishing(storage.join(out, *folder.split("/")), claim) as made:
                row |= _row(self._examine(video, made, title)) | {"folder": folder}
        except VideoError as failure:
            row |= {"status": failure.status, "error": str(failure)}
        row["seconds"] = time.monotonic() - began
        tables.write_part(claim.location, pa.Table.from_pylist([row], schemas.VERDICTS), self.job.made_with)
        return row

    def _examine(self, video: dict[str, Any], folder: Path, title: str) -> dict[str, Any]:
        name = posixpath.basename(storage.resolve(video["uri"])[1])

        def look(path: str) -> dict[str, Any]:
            steps = examine.examine(path, name, str(folder), self.judge, self.job.config.examination, video["video_id"])
            try:
                return _follow(steps, title)
            except OSError as error:  # from writing: the file is read by child processes
                raise UserError(f"cannot write {folder}: {error}. Make room, or give another --out.") from error

        try:
            return storage.with_copy(video["uri"], look)
        except OSError as error:
            raise DecodeError(f"cannot be read: {error}") from error


def _follow(steps: Generator[examine.Progress, None, dict[str, Any]], title: str) -> dict[str, Any]:
    """The return value of the steps; with a title, each stage shows a progress bar."""
    stage, bar, came = "", None, time.monotonic()
    with closing(steps), ExitStack() as shown:
        while True:
            try:
                step = next(steps)
            except StopIteration as end:
                return dict(end.value)
            if title and step.stage != stage:
                stage = step.stage
                shown.close()  # the bar of the stage before
                bar = shown.enter_context(Progress(f"{title}: {stage}", step.total, unit="frames"))
                bar.began = came  # for its rate: it began before its first step came
            if bar:
                bar.advance(step.done - bar.num_done)
            came = time.monotonic()


@contextmanager
def _publishing(place: str, claim: tables.Claim) -> Iterator[Path]:
    """A local folder that becomes `place` at the end: by renaming, or uploaded with its verdict last."""
    claim.check()  # here and below, as workers of a paused or killed job may still be running
    storage.delete_folder(place)  # from an earlier version of the file
    is_local = not storage.is_uri(place)
    parent = Path(place).parent if is_local else Path(tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".tmp-", dir=parent))
    try:
        yield made
        claim.check()
        if is_local:
            made.chmod(0o755)
            made.replace(place)
            return
        for path in sorted(made.iterdir(), key=lambda path: path.name == RESULT):
            with pa.memory_map(str(path)) as content:  # a long video may be larger than memory
                storage.write_bytes(storage.join(place, path.name), content.read_buffer())
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _remove_unfinished(out: str) -> None:
    """Removes what killed workers left."""
    if not storage.is_uri(out):
        for folder in Path(out, "results").glob(".tmp-*"):
            shutil.rmtree(folder, ignore_errors=True)


def _safe_name(uri: str) -> str:
    """The name of a file, reduced to characters that are safe in file systems, shells and pages."""
    stem = posixpath.splitext(posixpath.basename(storage.resolve(uri)[1]))[0]
    return re.sub(r"[^\w.-]+", "_", stem)[:40].strip("._-") or "video"


def _row(result: dict[str, Any]) -> dict[str, Any]:
    """The table row for a result."""
    video, tracks = result["video"], result["tracks"]
    judged = [track for track in tracks if track["is_judged"]]
    verdicts = Counter(track["verdict"] for track in judged)
    row = {name: video[name] for name in ("width_px", "height_px", "num_frames", "duration_s", "is_picture")}
    row |= {name: result[name] for name in ("status", "error", "verdict", "probability", "reason")}
    row |= {"num_tracks": len(tracks), "num_judged_tracks": len(judged), "num_faces": len(result["timeline"])}
    row |= {"num_fake_tracks": verdicts["fake"], "num_unsure_tracks": verdicts["unsure"]}
    return row | {"max_track_probability": max((track["probability"] for track in judged), default=None)}


# --- all videos


def _examine_all(job: Job, networks: Networks, pending: pa.Table) -> None:
    if _is_few(pending):
        _here(job, networks, pending)
        return
    connect()
    counts: Counter[str] = Counter()
    with Progress("detect", len(pending), unit="videos") as progress:
        for rows in _on_cluster(job, networks, pending):
            counts.update(_counts(rows))
            note = ", ".join(f"{counts[name]} {name}" for name in ("fake", "unsure", "failed") if counts[name])
            progress.advance(len(rows), note)


def _here(job: Job, networks: Networks, pending: pa.Table) -> None:
    import torch

    on_gpu = job.config.device != "cpu" and torch.cuda.is_available()
    examiner = Examiner(job, networks, "cuda" if on_gpu else "cpu")
    for number, video in enumerate(pending.to_pylist(), 1):
        examiner(video, "detect" if len(pending) == 1 else f"detect {number} of {len(pending)}")


def _on_cluster(job: Job, networks: Networks, pending: pa.Table) -> Iterator[pa.Table]:
    """Runs the stage; yields status and verdict of finished videos."""
    import ray
    import ray.data

    growth = Growth(job.config.budget.max_nodes, use_gpu(job.config.device))
    bound_queues(growth)
    low, high = _num_actors(growth, len(pending), job.config.num_workers)
    options = network_actors(low, len(pending), growth) | {
        "compute": ray.data.ActorPoolStrategy(min_size=low, max_size=high),
        "num_cpus": 1,
        "num_gpus": growth.on_gpu / ACTORS_PER_GPU,
    }
    dataset = ray.data.from_blocks(in_blocks(pending, high)).map_batches(
        DetectStage,
        fn_constructor_args=(job, ray.put(networks)),  # one copy in the object store for all actors
        batch_format="pyarrow",
        batch_size=None,  # the block: rows leave one by one as they are done
        **options,
    )
    try:
        with demand(growth, len(pending)):
            yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow")
    except UserError as error:
        raise as_raised(error) from None


def _num_actors(growth: Growth, num_videos: int, num_workers: int) -> tuple[int, int]:
    """Number of actors at the start, and at most; `num_workers` as in the config."""
    low, high = growth.cpus, growth.cpus_for(num_videos)
    if growth.on_gpu:
        low, high = (ACTORS_PER_GPU * num for num in growth.actors_for(num_videos))
    return num_workers or max(1, min(low, num_videos)), num_workers or max(1, min(high, num_videos))


class DetectStage:
    """Actor: an `Examiner` on one CPU. Yields status and verdict of each video when it is done."""

    def __init__(self, job: Job, networks: "ray.ObjectRef[Networks]") -> None:
        import ray
        import torch

        torch.set_num_threads(1)  # there is an actor for each CPU
        self.examiner = Examiner(job, ray.get(networks), "cuda" if ray.get_gpu_ids() else "cpu")

    def __call__(self, videos: pa.Table) -> Iterator[pa.Table]:
        for video in videos.to_pylist():
            row = self.examiner(video)
            add_seconds("detect", "examine", row["seconds"])
            if row["status"] not in tables.FINAL:
                log_failure("detect", row["video_id"], row["status"], row["error"])
            yield pa.Table.from_pylist([row], schemas.VERDICTS).select(["status", "verdict"])


def _finish(out: str, place: str, made_with: dict[str, Any]) -> None:
    """Writes `_table.json`, and the table as a CSV for spreadsheets, the most alarming videos first."""
    rows = _by_alarm(tables.read_table(place, "detect"))
    sink = pa.BufferOutputStream()
    csv.write_csv(rows.drop_columns(["modified_ns"]), sink)
    storage.write_bytes(storage.join(out, "verdicts.csv"), sink.getvalue())
    tables.write_info(place, made_with, num_rows=len(rows), counts=_counts(rows))


# --- what is told

KINDS = ("fake", "unsure", "real", "no_face", "failed")
SIGNS = {"fake": "▲ FAKE", "unsure": "? unsure", "real": "● real", "no_face": "- no face", "failed": "✕ failed"}
STYLES = {"fake": "bold red", "unsure": "yellow", "real": "green", "no_face": "dim", "failed": "magenta"}


def _kinds(rows: pa.Table) -> pa.ChunkedArray:
    """One of KINDS for each row: the verdict, or why there is none."""
    is_final = pc.is_in(rows["status"], pa.array(tables.FINAL))
    return pc.if_else(is_final, pc.coalesce(rows["verdict"], rows["status"]), "failed")


def _counts(rows: pa.Table) -> dict[str, int]:
    return tables.count_values(_kinds(rows)) if len(rows) else {}


def _by_alarm(rows: pa.Table) -> pa.Table:
    """Rows sorted: fake, unsure, real, the others; within each by the most suspicious track."""
    order = pc.index_in(_kinds(rows), pa.array(KINDS))
    keys = [("order", "ascending"), ("max_track_probability", "descending"), ("uri", "ascending")]
    return rows.append_column("order", order).sort_by(keys).drop_columns(["order"])


def _print(config: Config, about: dict[str, Any], rows: pa.Table) -> None:
    """Prints verdicts on stderr, for 80 columns."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False, markup=False)
    console.print(_table(_by_alarm(rows)[:NUM_SHOWN], with_reasons=len(rows) <= NUM_EXPLAINED))
    if len(rows) > NUM_SHOWN:
        console.print(f"... and {len(rows) - NUM_SHOWN} more, less alarming, in {config.out}/verdicts.csv")
    counts = _counts(rows)
    if "unsure" in counts:
        band = Band.around(about["threshold"]["video"], config.examination.band)
        between = f"between {band.low:.2f} and {band.high:.2f}, or too few frames of a face"
        console.print(f"unsure: {between}. The detector cannot tell: look for yourself.")
    if about["data"].get("synthetic"):
        console.print("This detector learnt from synthetic videos: its verdicts on others mean nothing.")
    folders = pc.drop_null(rows["folder"]).to_pylist()
    if folders:
        place = folders[0] if len(folders) == 1 else "results"
        console.print("Annotated videos, faces and timelines are in")
        console.print(storage.join(config.out, *place.split("/")), soft_wrap=True)  # one line, to be copied


def _table(rows: pa.Table, with_reasons: bool) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("verdict", no_wrap=True)
    table.add_column("P(fake)", justify="right", no_wrap=True)
    table.add_column("people", justify="right", no_wrap=True)
    table.add_column("video", overflow="fold")
    common = os.path.commonprefix(rows["uri"].to_pylist())  # noqa: RUF071 -- of paths and URIs
    common = common[: common.rfind("/") + 1]
    for kind, row in zip(_kinds(rows).to_pylist(), rows.to_pylist(), strict=True):
        probability = "" if row["probability"] is None else f"{row['probability']:.2f}"
        num = "" if row["num_judged_tracks"] is None else f"{row['num_judged_tracks']}"
        name = Text(_printable(_shortened(row["uri"][len(common) :])))
        if why := _printable(row["error"] or (with_reasons and row["reason"]) or ""):
            name.append(f"\n{why}", "dim")
        table.add_row(Text(SIGNS[kind], STYLES[kind]), probability, num, name)
    return table


def _shortened(name: str, length: int = 48) -> str:
    return name if len(name) <= length else f"{name[: length // 2]}...{name[-length // 2 + 3 :]}"


def _printable(text: str) -> str:
    """`text` without characters that move the cursor, change colours or reverse the direction of writing."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
