"""videos -> a sample through the stages of extract -> plan: hours, nodes, space and money for all of them.

    some videos -> extract: the times of its parts separate start-up from work, and show what all stages take together
                -> look (on all CPUs, alone) -> features (in one actor, alone): what each stage takes

Run alone, the stages do not slow each other down, so their times can be added up for any other cluster.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.pipelines import extract, index
from raydistal.pipelines.connection import connect
from raydistal.pipelines.pricing import (
    Node,
    Offer,
    Prices,
    Sample,
    cpu_nodes_per_gpu_node,
    offers,
    read_prices,
    seconds,
)
from raydistal.pipelines.streaming import num_cpus, use_gpu

MIN_VIDEOS = 32  # four parts of extract
PER_CPU = 4  # videos for each CPU, so that all are busy at once, as in the job: they slow each other down
NUM_KEPT = 32  # videos whose decoded crops are kept for the network: 10 faces of 299 pixels are 2.7 MB
BUSY = 1.5  # ratio of wall to CPU time of looking, above which a warning is printed
STORE_SHARE = 4  # streaming lets decoded crops fill a quarter of the object store


@dataclass(frozen=True, kw_only=True)
class Config:
    """Run a sample of videos through extract; estimate time and cost for all of them."""

    out: str
    """Run folder, local or s3://...: reads OUT/videos, writes OUT/plan."""
    videos: str = ""
    """Folder or manifest to index into OUT/videos first; default: OUT/videos is there already."""
    total: int = 0
    """Number of videos to plan for. 0: those of OUT/videos."""
    num_videos: int = 0
    """Videos to measure. 0: one in a hundred, at least 32 and 4 per CPU."""
    seed: int = 0
    """Seed of the sample."""
    prices: str = ""
    """TOML file with node types and their prices, as cluster/prices.toml; default: nodes like this cluster's."""
    nodes: tuple[int, ...] = (1, 4, 16)
    """Cluster sizes to estimate: of CPU nodes alone, and of GPU nodes with the CPU nodes that keep them busy."""
    gpu_speedup: float = 0.0
    """For a cluster without GPUs: how many times faster than all CPUs of one node a GPU computes features. 0: not
    known; nothing is estimated for GPUs."""
    sample: str = "even:10"
    """Frames to sample, as for extract; the same for real and fake videos."""
    faces: extract.Faces = field(default_factory=extract.Faces)
    features: extract.Features = field(default_factory=extract.Features)

    def __post_init__(self) -> None:
        self.to_extract()
        if min(self.total, self.num_videos, self.seed, self.gpu_speedup) < 0 or min(self.nodes, default=0) < 1:
            raise UserError(
                "need --total, --num-videos, --seed and --gpu-speedup of 0 or more, and --nodes of 1 or more"
            )

    def to_extract(self) -> extract.Config:
        """The config of the job that is planned."""
        return extract.Config(out=self.out, sample=self.sample, faces=self.faces, features=self.features)


class Measured(NamedTuple):
    """Measurements of the sample."""

    looked: pa.Table
    """look_s, cpu_s, status and num_faces of each video."""
    face_s: float
    """Seconds of the actor for a face, writing included."""
    face_cpu_s: float
    video_bytes: float
    """Size of a row on disk."""
    pixels_bytes: float
    """Size of a row in the object store."""
    on_gpu: bool
    end_s: float
    """Seconds of an `extract` of the sample."""
    work_s: float | None
    """Seconds for each further video; None: too few videos to tell."""


def run(config: Config) -> dict[str, Any]:
    """Measures on the Ray cluster, writes OUT/plan, prints it, and returns the summary.

    Raises:
        UserError: no videos, bad weights, a price list that cannot be read, or another writer; before any work.
    """
    began = time.monotonic()
    given = read_prices(config.prices) if config.prices else None
    if config.videos:
        index.run(index.Config(videos=config.videos, out=config.out))
    videos = tables.read_table(storage.join(config.out, "videos"), "index")
    if not len(videos):
        raise UserError(f"{config.out} has no videos. Look at raydistal report --out {config.out}.")
    connect()
    prices = given or Prices((_node_here(),))
    place = storage.absolute(storage.join(config.out, "plan"))
    scratch = storage.join(place, "sample")  # in the store that the job itself will write to, as its speed matters
    some = choose(videos, config.num_videos or max(MIN_VIDEOS, len(videos) // 100, PER_CPU * num_cpus()), config.seed)
    with tables.sole_writer(place):
        storage.delete_folder(scratch)  # left by a killed run
        print(f"plan: trying {len(some)} of {len(videos)} videos", file=sys.stderr)
        try:
            measured = _measure(config, some, scratch)
        finally:
            storage.delete_folder(scratch)
        sample = _sample(config, measured)
        figures = _tell(prices, measured, sample, config.total or len(videos))
        found = offers(prices, sample, figures["videos"], config.nodes)
        table = schemas.conform(pa.Table.from_pylist([offer._asdict() for offer in found]), schemas.PLAN)
        tables.write_table(place, table, dataclasses.asdict(config), **figures)
    _print(figures, found, prices)
    offered = [{name: value for name, value in offer._asdict().items() if value is not None} for offer in found]
    return figures | {"offers": offered, "seconds": round(time.monotonic() - began, 1), "table": place}


def choose(videos: pa.Table, num: int, seed: int) -> pa.Table:
    """A random sample with as large a share of each label as `videos`; all of them if they are fewer."""
    num, labels = min(num, len(videos)), pc.fill_null(videos["label"], -1).to_numpy()
    order = np.lexsort((np.random.default_rng(seed).random(len(videos)), labels))
    return videos.take(np.sort(order[((np.arange(num) + 0.5) * len(videos) / max(1, num)).astype(np.int64)]))


# --- measuring


def _measure(config: Config, some: pa.Table, scratch: str) -> Measured:
    """Runs the sample through the stages, one after the other."""
    import ray

    from raydistal.features.backbones import feature_dim, load

    backbone = load(config.features.backbone, config.features.weights)
    schema = schemas.faces_schema(feature_dim(backbone, config.faces.size_px))
    end_s, work_s = _extract(config, some, scratch)  # first, on a cluster in the state in which the job will find it
    looked, rows = _look_all(config, some)
    on_gpu, faces = use_gpu("auto"), storage.join(scratch, "faces")
    with tables.sole_writer(storage.join(scratch, "timed")) as claim:
        arguments: Any = (ray.put(backbone), config.features.precision, schema, {}, claim)
        actor: Any = ray.remote(num_cpus=0 if on_gpu else 1, num_gpus=int(on_gpu))(_actor()).remote(arguments)
        size = extract.VIDEOS_PER_PART
        parts = [rows[start : start + size] for start in range(0, len(rows), size)]
        ray.get(actor.time.remote(parts[0]))  # the first call initialises libraries
        took = np.array([ray.get(actor.time.remote(part)) for part in parts])
        ray.kill(actor)
        face_s, face_cpu_s = took.sum(axis=0) / max(1, pc.sum(pc.list_value_length(rows["frame_index"])).as_py())
        return Measured(
            looked,
            face_s=float(face_s),
            face_cpu_s=float(face_cpu_s),
            video_bytes=sum(storage.sizes(faces, tables.part_names(faces))) / len(some),
            pixels_bytes=rows.nbytes / len(rows),
            on_gpu=on_gpu,
            end_s=end_s,
            work_s=work_s,
        )


def _extract(config: Config, some: pa.Table, scratch: str) -> tuple[float, float | None]:
    """Extracts the sample; returns its seconds, and those per video after the first part (None: one part only)."""
    tables.write_table(storage.join(scratch, "videos"), some, {})
    began, came_s, nums = time.monotonic(), [], []

    def on_part(num: int) -> None:
        came_s.append(time.monotonic() - began)
        nums.append(num)

    extract.run(dataclasses.replace(config.to_extract(), out=scratch), on_part)
    end_s = time.monotonic() - began
    return end_s, (came_s[-1] - came_s[0]) / sum(nums[1:]) if len(nums) > 1 else None


def _look_all(config: Config, some: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Runs `look` on all CPUs; returns its tables for all videos."""
    import ray

    num_tasks = min(num_cpus(), max(1, len(some) // PER_CPU))
    chunks = [some.take(np.arange(number, len(some), num_tasks)) for number in range(num_tasks)]
    task = ray.remote(num_cpus=1)(look)
    answers = ray.get([task.remote(chunk, config.to_extract(), -(-NUM_KEPT // num_tasks)) for chunk in chunks])
    looked, rows = (pa.concat_tables(found) for found in zip(*answers, strict=True))
    return looked, rows


def look(videos: pa.Table, config: extract.Config, num_kept: int) -> tuple[pa.Table, pa.Table]:
    """Ray task: looks at one video after the other; at the first one twice, as the first time starts the decoder.

    Returns:
        look_s, cpu_s, status and num_faces of each; the rows of the first `num_kept`.
    """
    list(extract.look_stage(videos[:1], config))
    looked: list[dict[str, Any]] = []
    kept: list[pa.Table] = []
    before_s = _cpu_s(config)
    for row in extract.look_stage(videos, config):
        cpu_s = max(0.0, _cpu_s(config) - before_s)  # the count of a child that died is lost
        num_faces = len(row["frame_index"][0])
        entry = {"look_s": row["look_s"][0].as_py(), "cpu_s": cpu_s, "status": row["status"][0].as_py()}
        looked.append(entry | {"num_faces": num_faces})
        kept += [row] if len(kept) < num_kept else []
        before_s = _cpu_s(config)
    return pa.Table.from_pylist(looked), pa.concat_tables(kept)


def _cpu_s(config: extract.Config) -> float:
    """CPU seconds of this process and of the one that decodes for it; without Linux, of this one alone."""
    pid = extract.sandbox(config).pid
    if pid is None or sys.platform != "linux":
        return time.process_time()
    return time.process_time() + time.clock_gettime((~pid << 3) | 2)  # as clock_getcpuclockid(3) says


def _actor() -> type:
    class Timed(extract.FeatureStage):
        """The stage, with a method that times a call."""

        def __init__(self, arguments: Sequence[Any]) -> None:  # in a tuple, else Ray would resolve the reference
            super().__init__(*arguments)

        def time(self, rows: pa.Table) -> tuple[float, float]:
            """Wall and CPU seconds of a call."""
            began, cpu_s = time.monotonic(), time.process_time()
            self(rows)
            return time.monotonic() - began, time.process_time() - cpu_s

    return Timed


def _node_here() -> Node:
    """The connected cluster as one node."""
    import ray

    return Node("as here", num_cpus(), int(ray.cluster_resources().get("GPU", 0)))


# --- telling


def _sample(config: Config, measured: Measured) -> Sample:
    num_faces_V = measured.looked["num_faces"].to_numpy()
    gpu_face_s = measured.face_s if measured.on_gpu else None
    if config.gpu_speedup and not measured.on_gpu:
        gpu_face_s = measured.face_s / config.gpu_speedup
    sample = Sample(
        look_s_V=measured.looked["look_s"].to_numpy(),
        # CPU time, not wall time: decoding uses the time in which the network leaves CPUs idle.
        cpu_feature_s_V=None if measured.on_gpu else num_faces_V * measured.face_cpu_s,
        gpu_feature_s_V=None if gpu_face_s is None else num_faces_V * gpu_face_s,
        startup_s=0.0,
    )
    here, num = _node_here(), len(measured.looked)
    alone_s = seconds(sample, 1, here.cpus, here.gpus)[0]
    # At least alone_s: if all faces are found before the network is loaded, the parts come in a burst.
    work_s = max(alone_s, measured.work_s or 0.0)
    return dataclasses.replace(sample, startup_s=max(0.0, measured.end_s - num * work_s), overhead=work_s / alone_s)


def _tell(prices: Prices, measured: Measured, sample: Sample, total: int) -> dict[str, Any]:
    """The figures that hold for any cluster, and the job's time on this one."""
    looked, here = measured.looked, _node_here()
    faces, look_s, look_cpu_s = (float(pc.mean(looked[name]).as_py()) for name in ("num_faces", "look_s", "cpu_s"))
    names = ("wall_s", "low_s", "high_s")
    on_this = dict(zip(names, seconds(sample, total, here.cpus, here.gpus), strict=True))
    figures: dict[str, Any] = {
        "videos": total,
        "tried": {"videos": len(looked), **tables.count_values(looked["status"])},
        "per_video": {"look_s": look_s, "look_cpu_s": look_cpu_s, "faces": faces, "bytes": measured.video_bytes},
        "per_face": {"feature_s": measured.face_s, "feature_cpu_s": measured.face_cpu_s, "on_gpu": measured.on_gpu},
        "startup_s": sample.startup_s,
        "overhead": sample.overhead,
        "here": {"cpus": here.cpus, "gpus": here.gpus, **on_this},
        "cpu_hours": {
            "look": total * look_s / 3600,
            "look_busy": total * look_cpu_s / 3600,
            "features": None if measured.on_gpu else total * faces * measured.face_cpu_s / 3600,
        },
        "gpu_hours": None,
        "output_gb": total * measured.video_bytes / 1e9,
        # Two rows per CPU and two parts per network must fit into the share of the store that streaming may fill.
        "object_store_mb": {
            "per_cpu": STORE_SHARE * 2 * measured.pixels_bytes / 1e6,
            "per_network": STORE_SHARE * 2 * extract.VIDEOS_PER_PART * measured.pixels_bytes / 1e6,
        },
    }
    if sample.gpu_feature_s_V is not None:
        figures["gpu_hours"] = total * float(sample.gpu_feature_s_V.mean()) / 3600
        figures["cpu_nodes_per_gpu_node"] = cpu_nodes_per_gpu_node(prices, sample)
    if prices.storage_price is not None:
        figures["storage_price_per_month"] = figures["output_gb"] * prices.storage_price
    return figures


def _print(figures: dict[str, Any], found: list[Offer], prices: Prices) -> None:
    """Prints the plan on stderr, for 80 columns."""
    from rich.console import Console
    from rich.table import Table

    console = Console(stderr=True, highlight=False)
    tried, video, face = figures["tried"], figures["per_video"], figures["per_face"]
    failed = tried["videos"] - tried.get("ok", 0)
    console.print(f"Tried {tried['videos']} videos, {failed} without faces; for {figures['videos']} videos:\n")
    hours, gpu_hours = figures["cpu_hours"], figures["gpu_hours"]
    lines = [("decode and find faces", f"{_short(hours['look'])} CPU hours", f"{video['look_s']:.2f} s per video")]
    if hours["features"] is not None:
        took = f"{1000 * face['feature_cpu_s']:.0f} ms per face, {video['faces']:.1f} faces per video"
        lines.append(("features on CPUs", f"{_short(hours['features'])} CPU hours", took))
    where = f"{1000 * face['feature_s']:.0f} ms per face" if face["on_gpu"] else "by --gpu-speedup, not measured"
    on_gpu = (
        ("not known", "no GPU here: --gpu-speedup") if gpu_hours is None else (f"{_short(gpu_hours)} GPU hours", where)
    )
    lines.append(("features on GPUs", *on_gpu))
    month = figures.get("storage_price_per_month")
    space = "" if month is None else f"{month:.2f} {prices.currency} per month"
    lines.append(("output", f"{_short(figures['output_gb'])} GB", space or f"{video['bytes'] / 1e3:.0f} kB per video"))
    store = figures["object_store_mb"]
    lines.append(
        ("object store", f"{store['per_cpu']:.0f} MB per CPU", f"and {store['per_network']:.0f} MB per network")
    )
    lines.append(("start-up", f"{figures['startup_s']:.0f} s", "without the boot of machines"))
    if "cpu_nodes_per_gpu_node" in figures:
        lines.append(("to keep a GPU node busy", f"{figures['cpu_nodes_per_gpu_node']:.1f} CPU nodes", ""))
    grid = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for line in lines:
        grid.add_row(*line)
    console.print(grid)
    table = Table(box=None, padding=(0, 2, 0, 0), title=" ", title_justify="left")
    headers = ("nodes", "CPUs", "GPUs", "hours", "95 %", prices.currency or "price", "95 %", "spot")
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left", no_wrap=bool(number))
    for one in found:
        row = [
            one.nodes,
            f"{one.cpus}",
            f"{one.gpus}",
            _short(one.hours),
            f"{_short(one.hours_low)}-{_short(one.hours_high)}",
        ]
        row += (
            ["-", "-"]
            if one.price is None
            else [_short(one.price), f"{_short(one.price_low)}-{_short(one.price_high)}"]
        )
        table.add_row(*row, "-" if one.spot_price is None else _short(one.spot_price))
    console.print(table)
    console.print(f"\nHours are {figures['overhead']:.2f} times what the stages take alone, as measured here.")
    if video["look_s"] > BUSY * video["look_cpu_s"]:
        share = video["look_cpu_s"] / video["look_s"]
        console.print(
            f"Decoding had a CPU for only {100 * share:.0f} % of its time: videos are read slowly, or other work "
            "is on these machines, which would not be on an empty cluster."
        )


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
