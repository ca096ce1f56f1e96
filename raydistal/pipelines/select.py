"""videos, faces -> uncertainty, representative, ranking, distilled, coverage: DeepDistAL's Algorithms 1 and 2.

    faces -> probe (driver, on a bounded sample) -> score (tasks over parts) -> uncertainty
          -> most uncertain frames per class (Algorithm 1) -> representative
          -> videos by their number of such frames (Algorithm 2) -> ranking -> the top r % -> distilled, coverage

Each table remembers the settings that made it: asking for another ratio rewrites only the last two.
"""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.pipelines.connection import connect
from raydistal.pipelines.streaming import ATTEMPTS, num_cpus
from raydistal.progress import Progress
from raydistal.selection.ranking import Arrange
from raydistal.selection.uncertainty import ProbeStrategy, Strategy

if TYPE_CHECKING:
    from raydistal.selection.probe import Probes

PROBE_BYTES = 512 << 20  # float32 features that a probe is trained on; a larger table is sampled
NUM_SHOWN = 24  # least uncertain frames kept for the report's contact sheet
NUM_BINS = 40
VIDEOS_PER_BATCH = 16
ROWS_AT_ONCE = 1 << 16  # as Python objects
PARTS_PER_TASK = 64  # so that a task that is lost with its node costs little


@dataclass(frozen=True, kw_only=True)
class Config:
    """Choose the videos that represent the dataset."""

    out: str
    """Run folder: reads OUT/videos and OUT/faces, writes the other tables beside them."""
    manifest: str = ""
    """Table of videos to choose from instead of OUT/videos."""
    ratio: float = 0.2
    """Share of the videos to keep (K_dist = r % of K)."""
    frames: int = 500
    """Representative frames to select, half of each class (E)."""
    strategy: Strategy = "entropy"
    """How frames are scored. random is the baseline to compare the others with."""
    arrange: Arrange = "frequency"
    """frequency: as in the paper; balanced: real and fake videos alternate; groups: a real video and its fakes stay
    together."""
    rounds: int = 1
    """Rounds of active learning. 1: as in the paper; more: retrain the probe on the frames selected so far, score the
    rest and select again."""
    split: str = "train"
    """Split to distil; the others are kept for evaluation."""
    folds: int = 5
    """Cross-validation folds: each probe scores the groups that it was not trained on."""
    seed: int = 0
    """Seed of all random choices."""

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise UserError(f"--ratio must be above 0 and at most 1, not {self.ratio}")
        if self.frames < 2 or self.folds < 2 or self.rounds < 1:
            raise UserError("need --frames of at least 2, --folds of at least 2 and --rounds of at least 1")
        if self.rounds > 1 and self.strategy not in get_args(ProbeStrategy):
            raise UserError(f"--rounds is for strategies with a probe, not for {self.strategy}")
        if self.split not in schemas.SPLITS:
            raise UserError(f"unknown --split {self.split!r}: use one of {', '.join(schemas.SPLITS)}")


def run(config: Config) -> dict[str, Any]:
    """Runs what is not up to date and returns the job's summary.

    Raises:
        UserError: no tables, an unfinished `faces` table, no faces of one class, too few groups for the probe.
    """
    from raydistal.selection.coverage import coverage
    from raydistal.selection.ranking import cut

    began = time.monotonic()
    videos = _videos(config)
    settings = _settings(config, videos)
    place = {name: storage.absolute(storage.join(config.out, name)) for name in settings}
    with tables.sole_writer(place["distilled"]):
        if not _is_current(place["ranking"], settings["ranking"]):
            _rank(config, videos, settings, place)
        distilled = cut(tables.read_table(place["ranking"], "select"), videos, config.ratio, config.arrange)
        tables.write_table(place["distilled"], distilled, settings["distilled"])
        covered = coverage(videos, _faces_summary(config), distilled["video_id"])
        tables.write_table(place["coverage"], covered, settings["coverage"])
    info = tables.read_info(place["representative"])
    num_real, num_fake = tables.count_classes(distilled["label"])
    return {
        "videos": len(videos),
        "distilled": len(distilled),
        "real": num_real,
        "fake": num_fake,
        "representative": info["num_rows"],
        "shortage": info["shortage"],
        "seconds": round(time.monotonic() - began, 1),
        "table": place["distilled"],
    }


def _videos(config: Config) -> pa.Table:
    videos = tables.read_table(config.manifest or storage.join(config.out, "videos"), "index")
    chosen = videos.filter(pc.and_(pc.equal(videos["split"], config.split), pc.is_valid(videos["label"])))
    if not len(chosen):
        counts = tables.count_values(videos["split"])
        raise UserError(f"no labelled videos in split {config.split!r}. Videos per split: {counts}. See --split.")
    return schemas.conform(chosen.sort_by("video_id"), schemas.VIDEOS)


def _settings(config: Config, videos: pa.Table) -> dict[str, dict[str, Any]]:
    """What each table depends on; a table made with the same settings is up to date."""
    faces = tables.faces_info(config.out)
    if faces["config"].get("backbone") == "none":
        raise UserError(
            f"the faces of {config.out} were materialized and have no features to select by. "
            f"Run: raydistal extract --manifest {storage.join(config.out, 'videos')} --out ANOTHER_RUN"
        )
    digest = hashlib.blake2b(digest_size=8)
    for name in ("video_id", "label", "group_id"):
        for start in range(0, len(videos), ROWS_AT_ONCE):
            rows = videos[name][start : start + ROWS_AT_ONCE].to_pylist()
            digest.update(("\n" * bool(start) + "\n".join(map(str, rows))).encode())
    uncertainty = {
        "faces": faces["fingerprint"],
        "faces_counts": faces["counts"],
        "videos": digest.hexdigest(),
        "strategy": config.strategy,
        "folds": config.folds,
        "seed": config.seed,
        "rounds": config.rounds,
    }
    if config.rounds > 1 or config.strategy == "k_center":
        uncertainty["frames"] = config.frames
    representative = uncertainty | {"frames": config.frames}
    ranking = representative | {"arrange": config.arrange}
    distilled = ranking | {"ratio": config.ratio}
    return {
        "uncertainty": uncertainty,
        "representative": representative,
        "ranking": ranking,
        "distilled": distilled,
        "coverage": distilled,
    }


def _is_current(location: str, settings: tables.Config) -> bool:
    return tables.read_info(location).get("fingerprint") == tables.fingerprint(settings)


def _rank(config: Config, videos: pa.Table, settings: dict[str, dict[str, Any]], place: dict[str, str]) -> None:
    """Writes uncertainty, representative and ranking, as far as they are not up to date."""
    from raydistal.selection.ranking import mean_uncertainty, rank_videos
    from raydistal.selection.representative import MostUncertain, shortage

    num_per_class = config.frames // 2
    in_rounds = config.rounds > 1
    scored_before = _is_current(place["uncertainty"], settings["uncertainty"])
    if in_rounds and _is_current(place["representative"], settings["representative"]) and scored_before:
        selected = tables.read_table(place["representative"], "select")
    elif in_rounds or not scored_before:
        selected = _score(config, videos, settings["uncertainty"], place["uncertainty"])

    most, least = MostUncertain(num_per_class), MostUncertain(NUM_SHOWN // 2)
    means, edges = [], _bin_edges(place["uncertainty"])
    histogram = np.zeros((2, NUM_BINS), np.int64)
    for batch in tables.open_table(place["uncertainty"], "select").to_batches():
        scored = pa.Table.from_batches([batch])
        frames = tables.explode_faces(scored)
        uncertainty = frames["uncertainty"]
        most.add(frames)
        least.add(frames.set_column(frames.column_names.index("uncertainty"), "uncertainty", pc.negate(uncertainty)))
        means.append(mean_uncertainty(scored))
        for label in (0, 1):
            histogram[label] += np.histogram(uncertainty.filter(pc.equal(frames["label"], label)), edges)[0]
    representative = selected if in_rounds else most.table()
    missing = shortage(representative, num_per_class)
    tables.write_table(
        place["representative"],
        representative,
        settings["representative"],
        num_per_class=num_per_class,
        shortage={"real": missing[0], "fake": missing[1]},
        histogram={"edges": edges.tolist(), "real": histogram[0].tolist(), "fake": histogram[1].tolist()},
        least_uncertain=least.table().select(["video_id", "frame_index"]).to_pylist(),
    )
    ranking = rank_videos(videos, representative, pa.concat_tables(means), config.arrange)
    tables.write_table(place["ranking"], ranking, settings["ranking"])


def _score(config: Config, videos: pa.Table, settings: tables.Config, out: str) -> pa.Table:
    """Writes the uncertainty of every face; returns the frames selected in rounds (config.rounds > 1)."""
    from raydistal.selection.probe import assign_folds
    from raydistal.selection.representative import MostUncertain, numbered, round_sizes, without

    if config.strategy == "random":
        _score_parts(config, videos, settings, out, None)
    elif config.strategy == "k_center":
        _spread(config, videos, settings, out)
    else:
        fold_V = assign_folds(videos["group_id"], videos["label"].to_numpy(), config.folds)
        videos = videos.append_column("fold", pa.array(fold_V))
        if config.rounds == 1:
            _score_parts(config, videos, settings, out, _fit(config, _sample(config, videos)))
    rounds = [schemas.REPRESENTATIVE.empty_table()]
    for number, num_new in enumerate(round_sizes(config.frames // 2, config.rounds) if config.rounds > 1 else []):
        if number == 0:  # no probe yet: a random sample, as active learning begins everywhere
            _score_parts(dataclasses.replace(config, strategy="random", rounds=1), videos, settings, out, None)
        else:
            _score_parts(config, videos, settings, out, _fit(config, _sample(config, videos, numbered(rounds))))
        most = MostUncertain(num_new)
        for batch in tables.open_table(out, "select").to_batches():
            most.add(without(tables.explode_faces(pa.Table.from_batches([batch])), numbered(rounds)))
        rounds.append(most.table())
    return numbered(rounds)


def _fit(config: Config, sample: pa.Table) -> "Probes":
    from raydistal.selection.probe import fit_probes, group_weights
    from raydistal.selection.uncertainty import COMMITTEE_SIZE

    weight_MN = None
    if config.strategy == "committee":
        weight_MN = group_weights(sample["group_id"], COMMITTEE_SIZE, config.seed)
    feature_ND = _matrix(sample["feature"]).astype(np.float32)
    return fit_probes(feature_ND, sample["label"].to_numpy(), sample["fold"].to_numpy(), config.folds, weight_MN)


def _sample(config: Config, videos: pa.Table, only: pa.Table | None = None) -> pa.Table:
    """Faces to train a probe on, with label, group_id and fold: all, if they fit PROBE_BYTES, or a sample; or `only`.

    Sorted by video and frame: the probe does not depend on the order in which parts are read.
    """
    faces = tables.open_table(storage.join(config.out, "faces"), "extract")
    num_dims = faces.schema.field("feature").type.value_type.list_size
    num_faces = sum(
        pc.sum(pc.list_value_length(rows["frame_index"])).as_py() or 0
        for _, rows in tables.scan(storage.join(config.out, "faces"), "extract", ["frame_index"])
    )
    share = min(1.0, PROBE_BYTES / max(1, num_faces * num_dims * 4))
    found = pa.concat_tables(_over_parts(config, "probe", _sample_part, (videos, only, share, config.seed)))
    return found.take(pc.sort_indices(found, [("video_id", "ascending"), ("frame_index", "ascending")]))


def _sample_part(faces: pa.Table, videos: pa.Table, only: pa.Table | None, share: float, seed: int) -> pa.Table:
    """One row per wanted face."""
    from raydistal.selection.draws import sample_key, uniform

    frames = tables.explode_faces(_join(faces, videos.select(["video_id", "label", "group_id", "fold"])))
    if only is not None:
        return frames.filter(pc.is_in(_frame_name(frames), _frame_name(only)))
    key_N = sample_key(frames["video_id"], frames["frame_index"].to_numpy(), seed + 1)  # not those of "random"
    return frames.filter(pa.array(uniform(key_N) < share))


def _score_parts(config: Config, videos: pa.Table, settings: tables.Config, out: str, probes: "Probes | None") -> None:
    """Writes the uncertainty table anew, each task its own part."""
    for name in (tables.INFO, *tables.part_names(out)):
        storage.delete(storage.join(out, name))
    columns = ["video_id", "label"] if probes is None else ["video_id", "label", "fold"]
    arguments = (videos.select(columns), config.strategy, config.seed, probes)
    parts = _over_parts(config, "score", _score_part, arguments, (out, settings), with_features=probes is not None)
    tables.write_info(out, settings, num_rows=sum(part.num_rows for part in parts))


def _score_part(faces: pa.Table, videos: pa.Table, strategy: Strategy, seed: int, probes: "Probes | None") -> pa.Table:
    """Rows of the uncertainty table."""
    from raydistal.selection.draws import sample_key, uniform
    from raydistal.selection.uncertainty import score

    faces = _join(faces, videos)
    num_faces = pc.list_value_length(faces["frame_index"]).to_numpy()
    if probes is None:
        frame_index_N = pc.list_flatten(faces["frame_index"]).to_numpy()
        video_id_N = pc.take(faces["video_id"], np.repeat(np.arange(len(faces)), num_faces))
        uncertainty_N = uniform(sample_key(video_id_N, frame_index_N, seed))
        probability_N = np.full(len(uncertainty_N), np.nan)
    else:
        fold_N = np.repeat(faces["fold"].to_numpy(), num_faces)
        feature_ND = _matrix(pc.list_flatten(faces["feature"]))
        probability_N, uncertainty_N = score(strategy, probes, feature_ND, fold_N)  # type: ignore[arg-type]
    faces = faces.select(["video_id", "label", "frame_index"])
    faces = faces.append_column("probability", schemas.list_column(probability_N.astype(np.float32), num_faces))
    faces = faces.append_column("uncertainty", schemas.list_column(uncertainty_N, num_faces))
    return schemas.conform(faces, schemas.UNCERTAINTY)


def _spread(config: Config, videos: pa.Table, settings: tables.Config, out: str) -> None:
    """k-center greedy over all faces of a class, on the driver, on projected features; writes the uncertainty table.

    As its "uncertainty", a face has its distance to the nearest centre: at its selection, or in the end.
    """
    from raydistal.selection.diversity import k_center_greedy

    videos = videos.select(["video_id", "label"])
    found = pa.concat_tables(_over_parts(config, "project", _project_part, (videos, config.seed)))
    frames = found.take(pc.sort_indices(found, [("video_id", "ascending"), ("frame_index", "ascending")]))
    distance_N = np.empty(len(frames))
    for label in (0, 1):
        of_class_N = frames["label"].to_numpy() == label
        feature_ND = _matrix(frames["feature"].filter(pa.array(of_class_N))).astype(np.float32)
        distance_N[of_class_N] = k_center_greedy(feature_ND, config.frames // 2)[1]
    distance_N[np.isinf(distance_N)] = 1.001 * np.max(distance_N, where=np.isfinite(distance_N), initial=1.0)
    video_V, first_V, num_V = np.unique(frames["video_id"].to_numpy(), return_index=True, return_counts=True)
    table = {
        "video_id": video_V,
        "label": frames["label"].take(first_V),
        "frame_index": schemas.list_column(frames["frame_index"].to_numpy(), num_V),
        "probability": schemas.list_column(np.full(len(frames), np.nan, np.float32), num_V),
        "uncertainty": schemas.list_column(distance_N, num_V),
    }
    for name in tables.part_names(out):
        storage.delete(storage.join(out, name))
    tables.write_table(out, schemas.conform(pa.table(table), schemas.UNCERTAINTY), settings)


def _project_part(faces: pa.Table, videos: pa.Table, seed: int) -> pa.Table:
    from raydistal.selection.diversity import random_projection

    frames = tables.explode_faces(_join(faces, videos))
    feature_ND = random_projection(_matrix(frames["feature"]), seed=seed).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(feature_ND.reshape(-1)), feature_ND.shape[1])
    return frames.set_column(frames.column_names.index("feature"), "feature", column)


def _over_parts(
    config: Config,
    title: str,
    function: Callable[..., pa.Table],
    arguments: tuple[Any, ...],
    write_to: tuple[str, tables.Config] | None = None,
    with_features: bool = True,
) -> Iterator[pa.Table]:
    """function(faces, *arguments) for every batch of the faces table, on all nodes; a table per task as they come.

    The first of the arguments is a table of videos; the function gets only those that its task reads.
    With `write_to` (a table and its config) the rows become a part of that table, and only video_id comes back.
    """
    connect()
    import ray

    location = storage.absolute(storage.join(config.out, "faces"))
    names = tables.part_names(location)
    num_tasks = min(len(names), max(4 * num_cpus(), len(names) // PARTS_PER_TASK))
    columns = ["video_id", "frame_index", *(["feature"] if with_features else [])]
    task = ray.remote(num_cpus=1, max_retries=ATTEMPTS)(_over_some_parts)
    shared = ray.put((function, arguments, write_to))  # once, not with every task
    waiting = [task.remote(location, names[n::num_tasks], columns, shared) for n in range(num_tasks)]
    with Progress(f"select: {title}", len(names), unit="parts") as progress:
        while waiting:
            (done,), waiting = ray.wait(waiting)
            num_parts, result = ray.get(done)
            progress.advance(num_parts)
            yield result


def _over_some_parts(
    location: str,
    names: list[str],
    columns: list[str],
    shared: tuple[Callable[..., pa.Table], tuple[Any, ...], tuple[str, tables.Config] | None],
) -> tuple[int, pa.Table]:
    function, (videos, *arguments), write_to = shared
    there = pa.concat_tables(tables.read_parts(location, names, ["video_id"]))["video_id"]
    # Once per task: to look for the 16 of each batch among a million takes longer than all else.
    videos = videos.filter(pc.is_in(videos["video_id"], there))
    results = []
    for name in names:
        filesystem, path = storage.resolve(storage.join(location, name))
        with pq.ParquetFile(path, filesystem=filesystem) as part:
            for batch in part.iter_batches(VIDEOS_PER_BATCH, columns=columns):
                results.append(function(pa.Table.from_batches([batch]), videos, *arguments))
    result = pa.concat_tables(results)
    if write_to and len(result):
        tables.write_part(write_to[0], result, write_to[1])
    return len(names), result.select(["video_id"]) if write_to else result


def _join(faces: pa.Table, videos: pa.Table) -> pa.Table:
    """The faces of those videos, with the other columns of `videos` beside them."""
    row_V = pc.index_in(faces["video_id"], value_set=videos["video_id"])
    faces = faces.filter(row_V.is_valid())
    rows = videos.take(row_V.drop_null())
    for name in videos.column_names:
        if name != "video_id":
            faces = faces.append_column(name, rows[name])
    return faces


def _frame_name(frames: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(frames["video_id"], frames["frame_index"].cast(pa.string()), "#")


def _matrix(features: pa.ChunkedArray) -> npt.NDArray[np.float16]:
    """(N, D) of a column of fixed-size lists."""
    lists = features.combine_chunks()
    return np.asarray(lists.flatten().to_numpy().reshape(-1, lists.type.list_size))


def _bin_edges(location: str) -> npt.NDArray[np.float64]:
    limits = [np.inf, -np.inf]
    for batch in tables.open_table(location, "select").to_batches(columns=["uncertainty"]):
        values = pc.list_flatten(batch["uncertainty"]).to_numpy()
        limits = [np.min(values, initial=limits[0]), np.max(values, initial=limits[1])]
    low, high = limits if np.isfinite(limits).all() else (0.0, 1.0)
    return np.linspace(low, high if high > low else low + 1, NUM_BINS + 1)


def _faces_summary(config: Config) -> pa.Table:
    from raydistal.selection.coverage import summarize_faces

    columns = ["video_id", "status", "box_xyxy_px"]
    parts = tables.scan(storage.join(config.out, "faces"), "extract", columns)
    return pa.concat_tables([summarize_faces(rows) for _, rows in parts])
