"""videos -> faces: decode, find and crop faces, compute features, write Parquet. One row per video, failures included.

    videos -> look (CPU tasks; each video in a killable child) -> features (actors, GPU if there is one), which write

Ray Data streams rows through these stages. The `faces` table is the ledger: a rerun does what is missing.
"""

import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydistal import storage, tables
from raydistal.errors import DecodeError, UserError, VideoError
from raydistal.faces import crop, look
from raydistal.faces.equalize import Equalizer
from raydistal.pipelines.connection import connect
from raydistal.pipelines.scaling import Budget, Growth
from raydistal.pipelines.streaming import in_blocks, start_torch, through_actors, use_gpu
from raydistal.pipelines.telemetry import add_seconds, log_failure, measured
from raydistal.progress import Progress
from raydistal.schemas import conform, faces_schema, list_column
from raydistal.video.sampling import Sampling
from raydistal.video.sandbox import Sandbox, kept

if TYPE_CHECKING:
    import ray

    from raydistal.features.backbones import Backbone

VIDEOS_PER_PART = 8  # the most an actor loses in a crash; some 80 faces fill a GPU, 8 MB with PNG crops
COUNTED = ("num_frames_seen", "num_faces", "look_s", "feature_s")  # summed up over all rows


@dataclass(frozen=True, kw_only=True)
class Faces:
    """How faces are found and cropped."""

    detector: str = "haar"
    """haar, none (the whole frame is the face), or the path of a YuNet ONNX model."""
    scale_factor: float = 1.2
    """Haar: factor between the face sizes searched. Larger is faster and misses more faces."""
    min_neighbors: int = 5
    """Haar: overlapping detections that make a face. Larger gives fewer false positives."""
    min_face: float = 0.1
    """Smallest face, as a fraction of the frame's height."""
    margin: float = 0.3
    """Added on each side of the face, as a fraction of its size."""
    size_px: int = 299
    """Side of the square crop."""
    crops: str = "png"
    """Format of the crops in the table: png (lossless), jpeg:QUALITY, or none."""
    equalize: str = ""
    """SIZE:QUALITY, such as 512:90: first resize every frame to a square of SIZE pixels and compress it as JPEG. For
    datasets whose real and fake files differ in size or format, which a detector would learn to tell apart."""

    def __post_init__(self) -> None:
        crop.check_format(self.crops)
        if self.equalize:
            Equalizer.parse(self.equalize)
        if not (self.scale_factor > 1 and self.min_neighbors >= 1 and 0 < self.min_face < 1 and self.margin >= 0):
            raise UserError("need --scale-factor > 1, --min-neighbors >= 1, 0 < --min-face < 1 and --margin >= 0")
        if not 32 <= self.size_px <= 1024:
            raise UserError(f"--size-px must be from 32 to 1024, not {self.size_px}")


@dataclass(frozen=True, kw_only=True)
class Features:
    """How crops become feature vectors."""

    backbone: str = "vgg16"
    """vgg16 (512 numbers), vgg16-fc (4096), resnet50 (2048) or timm:NAME."""
    weights: str = "imagenet"
    """imagenet, random, or the path or URI of a state dict."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the device supports it natively."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Decode every video of a run, crop its faces and compute their features."""

    out: str
    """Run folder, local or s3://...: reads OUT/videos, writes OUT/faces."""
    manifest: str = ""
    """Table of videos to read instead of OUT/videos, such as the distilled set of another run."""
    sample: str = "even:10"
    """Frames to sample: even:N, every:N, random:N or fps:R; at most 1000 per video."""
    sample_fake: str = ""
    """Frames to sample from videos labelled fake; default: as --sample."""
    faces: Faces = field(default_factory=Faces)
    features: Features = field(default_factory=Features)
    feature_workers: int = 0
    """Processes that run the backbone. 0: one per GPU, or without GPUs one per node."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs if the cluster has any now; cuda: GPUs, even if their nodes have yet to start."""
    timeout_s: float = 300
    """Time limit per video, in seconds."""
    memory_mib: int = 2048
    """Memory limit for decoding one video, in MiB."""
    retry_failed: bool = False
    """Process videos again that failed (decode_error, crashed, timeout) in an earlier run."""
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        Sampling.parse(self.sample)
        Sampling.parse(self.sample_fake or self.sample)
        if self.timeout_s <= 0 or self.memory_mib < 64 or self.feature_workers < 0:
            raise UserError("need --timeout-s above 0, --memory-mib of at least 64, --feature-workers of 0 or more")


def run(config: Config, on_part: Callable[[int], None] | None = None) -> dict[str, Any]:
    """Runs the pipeline on Ray, if anything is missing, and returns the job's summary.

    Args:
        config: what to do.
        on_part: called after each part, with the number of its videos.

    Raises:
        UserError: bad weights, no manifest, other settings than those of the rows already there, another writer.
    """
    from raydistal.features.backbones import feature_dim, load, state_digest

    began = time.monotonic()
    videos = tables.read_table(config.manifest or storage.join(config.out, "videos"), "index")
    backbone = load(config.features.backbone, config.features.weights)
    schema = faces_schema(feature_dim(backbone, config.faces.size_px))
    settings = result_settings(config) | {"weights_digest": state_digest(backbone.network.state_dict())}
    out = storage.absolute(storage.join(config.out, "faces"))

    with tables.sole_writer(out) as claim:
        ledger = tables.read_ledger(out, settings)
        if config.retry_failed:
            storage.delete(storage.join(out, tables.INFO))
            print(f"dropped {tables.drop_failed(out, settings)} failed rows to do them again", file=sys.stderr)
            ledger = ledger.filter(pc.is_in(ledger["status"], pa.array(tables.FINAL)))
        pending = videos.filter(pc.invert(pc.is_in(videos["video_id"], ledger["video_id"])))
        if not len(pending) and tables.read_info(out):
            return _summary(out, Counter(tables.count_values(ledger["status"])), len(ledger), 0, began)
        connect()
        storage.delete(storage.join(out, tables.INFO))
        totals = dict.fromkeys(COUNTED, 0.0)
        statuses = Counter(tables.count_values(ledger["status"]))
        with Progress("extract", len(pending), unit="videos") as progress:
            for batch in _stream(config, pending, backbone, schema, settings, claim) if len(pending) else ():
                for name in totals:
                    totals[name] += pc.sum(batch[name]).as_py() or 0
                statuses.update(batch["status"].to_pylist())
                failed = statuses.total() - statuses["ok"]
                progress.advance(len(batch), f"{failed} without faces" if failed else "")
                if on_part:
                    on_part(len(batch))
        claim.check()
        info = {"counts": dict(statuses.most_common()), "seconds": time.monotonic() - began}
        tables.write_info(out, settings, num_rows=statuses.total(), num_new=len(pending), stages=totals, **info)
    return _summary(out, statuses, len(ledger), int(totals["num_faces"]), began)


def _summary(out: str, statuses: Counter[str], num_before: int, num_faces: int, began: float) -> dict[str, Any]:
    counts = {"videos": statuses.total(), **statuses, "done_before": num_before, "new_faces": num_faces}
    return counts | {"seconds": round(time.monotonic() - began, 1), "table": out}


def result_settings(config: Config) -> dict[str, Any]:
    """The settings that decide the content of a row: rows made with other ones are not mixed with these."""
    faces, features = dataclasses.asdict(config.faces), dataclasses.asdict(config.features)
    if not faces["equalize"]:
        del faces["equalize"]  # as in tables made before this setting existed
    return {"sample": config.sample, "sample_fake": config.sample_fake or config.sample} | faces | features


def _stream(
    config: Config,
    pending: pa.Table,
    backbone: "Backbone",
    schema: pa.Schema,
    settings: dict[str, Any],
    claim: tables.Claim,
) -> Iterator[pa.Table]:
    """Runs the stages; yields, for each part written, its columns status and COUNTED."""
    import ray

    growth = Growth(config.budget.max_nodes, use_gpu(config.device))
    network = ray.put(backbone)  # one copy in the object store for all actors
    return through_actors(
        in_blocks(pending.select(["video_id", "uri", "label"]), growth.cpus_for(len(pending))),
        partial(look_stage, config=config),
        FeatureStage,  # it also writes: a separate stage would start more processes on each node
        (network, config.features.precision, schema, settings, claim),
        VIDEOS_PER_PART,
        config.feature_workers,
        growth,
    )


def look_stage(videos: pa.Table, config: Config) -> Iterator[pa.Table]:
    """Rows of `videos` -> rows of `faces` with `pixels` instead of `feature`, and with `look_s`."""
    for video in videos.to_pylist():
        began = time.monotonic()
        try:
            found = _look(video, config)
        except VideoError as failure:
            log_failure("extract", video["video_id"], failure.status, str(failure))
            faces = config.faces
            found = look.row(video["video_id"], failure.status, str(failure), faces.size_px, faces.crops)
        look_s = time.monotonic() - began
        add_seconds("extract", "look", look_s)
        yield found.append_column("look_s", pa.array([look_s]))


def sandbox(config: Config) -> Sandbox:
    """The sandbox in which this process decodes."""
    return kept("raydistal.faces.look:look", memory_bytes=config.memory_mib << 20, timeout_s=config.timeout_s)


def _look(video: dict[str, Any], config: Config) -> pa.Table:
    sample = (video["label"] == 1 and config.sample_fake) or config.sample
    arguments = {"video_id": video["video_id"], "sample": sample, **dataclasses.asdict(config.faces)}
    try:
        return storage.with_copy(video["uri"], lambda path: sandbox(config).call(path=path, **arguments))
    except (OSError, UserError) as error:
        raise DecodeError(f"cannot be read: {error}") from error


@measured("extract", "features")
class FeatureStage:
    """Actor: holds the network, turns the column `pixels` into `feature`, and writes the rows as one part of the table.

    Returns the columns that the driver counts: status and COUNTED.
    """

    def __init__(
        self,
        backbone: "ray.ObjectRef[Backbone]",
        precision: str,
        schema: pa.Schema,
        settings: dict[str, Any],
        claim: tables.Claim,
    ) -> None:
        import ray

        device = start_torch()
        from raydistal.features.backbones import FeatureExtractor

        self.extract = FeatureExtractor(ray.get(backbone), precision, device)
        self.schema, self.settings, self.claim = schema, settings, claim
        self.no_feature = np.empty((0, schema.field("feature").type.value_type.list_size), np.float16)

    def __call__(self, rows: pa.Table) -> pa.Table:
        began = time.monotonic()
        num_faces = pc.list_value_length(rows["pixels"]).to_numpy()
        crops_NHWC = crop.crops_of(rows)
        feature_ND = self.extract(crops_NHWC) if len(crops_NHWC) else self.no_feature
        seconds = np.full(rows.num_rows, (time.monotonic() - began) / rows.num_rows)
        rows = rows.append_column("feature", list_column(feature_ND, num_faces))
        self.claim.check()  # here, as workers of a paused or killed job may still be running
        tables.write_part(self.claim.location, conform(rows, self.schema), self.settings)
        rows = rows.append_column("num_faces", pa.array(num_faces)).append_column("feature_s", pa.array(seconds))
        return rows.select(["status", *COUNTED])
