"""detectors, a run -> OUT/heatmaps, OUT/report: which parts of the faces of a split make each detector call them fake.

    faces -> decode crops (CPU tasks) -> maps of every face by all detectors (actors, GPU if there is one)
          -> the mean map of the real faces and of each method; the maps of a few faces -> report

CKD (Li et al. 2022), figure 3. Nothing is kept of a run that is stopped; one that is finished is only drawn again.
"""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.pipelines.connection import connect
from raydistal.pipelines.scaling import Budget, Growth
from raydistal.pipelines.streaming import crops_of, look_at_faces, start_torch, use_gpu, with_parts
from raydistal.pipelines.telemetry import measured
from raydistal.progress import Progress

if TYPE_CHECKING:
    import ray

    from raydistal.detector.zoo import Detector

VIDEOS_PER_CALL = 8
FACE_PX = 192  # of the mean faces: as the thumbnails of the others
UNKNOWN = "unknown"  # method of a fake that has none, as in `metrics`

# What an actor gives: the sums over some faces of a slice, or the map of one face that is shown.
PARTIAL = pa.schema(
    [
        ("detector", pa.int64()),  # which
        ("slice", pa.string()),
        ("video_id", pa.string()),
        ("num_videos", pa.int64()),
        ("num_faces", pa.int64()),
        ("probability", pa.float64()),
        ("heat", pa.list_(pa.float64())),
        ("face", pa.binary()),  # of the first detector's sums: FACE_PX * FACE_PX * 3 float32
    ]
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Show which parts of a face make detectors call it fake."""

    detectors: tuple[str, ...]
    """Detector directories, local or s3://... An exported one is explained by the one that it was exported from."""
    data: str
    """Run folder with the tables videos and faces."""
    out: str
    """Folder to write: OUT/heatmaps, OUT/report."""
    split: schemas.Split = "test"
    """Split whose faces are analysed."""
    faces: int = 18
    """Faces shown one by one: as many real ones as of each method, from as many groups as possible. The mean maps are
    over all faces of the split."""
    seed: int = 0
    """Seed of the choice of these faces."""
    num_workers: int = 0
    """Processes that run the detectors. 0: one per GPU, or without GPUs one per node."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: GPUs if the cluster has any now; cuda: GPUs, even if their nodes have yet to start."""
    batch_size: int = 64
    """Faces per forward pass."""
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if not self.detectors:
            raise UserError("need at least one of --detectors")
        if not 1 <= self.faces <= 200:
            raise UserError(f"--faces must be from 1 to 200, not {self.faces}")
        if min(self.seed, self.num_workers) < 0 or self.batch_size < 1:
            raise UserError("need --seed and --num-workers of 0 or more, and --batch-size of 1 or more")


class Request(NamedTuple):
    """What is to be looked at."""

    detectors: list[dict[str, Any]]
    """What the page tells of each; `explained_by` is the location of the network."""
    videos: pa.Table
    """Labelled ones of the split: video_id, dataset, label, group_id, slice, part (of `faces`), sorted by video_id."""
    settings: dict[str, Any]


def run(config: Config) -> dict[str, Any]:
    """Makes the maps on Ray, unless they are there; writes the page, returns the summary.

    Raises:
        UserError: no such detector, one that gives no maps, no crops, unfinished faces, a split without labelled
            videos or faces, another writer.
    """
    from raydistal.report import heatmaps as report

    began = time.monotonic()
    request = _request(config)
    out = storage.absolute(config.out)
    with tables.sole_writer(out) as claim:
        if tables.read_info(storage.join(out, "heatmaps")).get("fingerprint") != tables.fingerprint(request.settings):
            shown = _choose(config, request.videos)
            rows = _look(config, request, shown)
            claim.check()
            place, table = storage.join(out, "heatmaps"), pa.Table.from_pylist(rows, schemas.HEATMAPS)
            tables.write_table(place, table, request.settings, detectors=request.detectors, data=_about(request))
        page = report.write(out)
    counts = {"detectors": len(request.detectors), "videos": len(request.videos)}
    return counts | {"seconds": round(time.monotonic() - began, 1), "report": page}


def _about(request: Request) -> dict[str, Any]:
    datasets = sorted(set(request.videos["dataset"].to_pylist()))
    about = {"datasets": datasets, "synthetic": schemas.SYNTHETIC in datasets}
    return about | {"location": request.settings["data"], "num_videos": len(request.videos)}


def _request(config: Config) -> Request:
    storage.refuse_input(config.out, (*config.detectors, config.data))
    columns = ["video_id", "dataset", "label", "method", "group_id", "split"]
    videos = tables.read_table(storage.join(config.data, "videos"), "index", columns)
    videos = videos.filter(pc.and_(pc.equal(videos["split"], config.split), pc.is_valid(videos["label"])))
    if not len(videos):
        raise UserError(f"split {config.split!r} of {config.data} has no labelled videos. See --split.")
    names = storage.distinct_names("--detectors", config.detectors)
    detectors = [_detector(location, name, videos) for location, name in zip(config.detectors, names, strict=True)]
    faces = tables.faces_info(config.data, with_crops=True)
    videos = with_parts(config.data, videos, f"split {config.split!r}")
    is_real = pc.equal(videos["label"], 0)
    slice_V = pc.if_else(is_real, "real", pc.fill_null(videos["method"], UNKNOWN))
    videos = videos.select(["video_id", "dataset", "label", "group_id", "part"])
    videos = videos.append_column("slice", slice_V).sort_by("video_id").combine_chunks()
    settings = {
        "detectors": [[one["name"], one["location"], one["model_id"]] for one in detectors],
        "data": storage.absolute(config.data),
        "faces_of_data": [faces["fingerprint"], faces["counts"]],
        "videos": tables.fingerprint({name: videos[name].to_pylist() for name in ("video_id", "slice", "group_id")}),
        "split": config.split,
        "faces": config.faces,
        "seed": config.seed,
    }
    return Request(detectors, videos, settings)


def _detector(location: str, name: str, videos: pa.Table) -> dict[str, Any]:
    """What the page tells of a detector. Raises UserError if it gives no maps."""
    from raydistal.detector import checkpoint, heatmaps

    about, explainer = checkpoint.read_about(location), heatmaps.explainer(location)
    place, num_known = storage.join(location, "trained_on"), None
    if tables.read_info(place):
        learnt = tables.read_table(place, "train", ["group_id"])["group_id"].combine_chunks()
        num_known = pc.sum(pc.is_in(videos["group_id"], value_set=learnt)).as_py()
    return {
        "name": name,
        "location": storage.absolute(location),
        "model_id": checkpoint.model_id(about),
        "architecture": about["architecture"],
        "input_px": about["input_px"],
        "cells": list(heatmaps.shape(about)),
        "explained_by": storage.absolute(explainer),
        "is_exported": explainer != location,
        "num_known": num_known,  # of the videos, those whose groups it learnt from; None: it does not tell
        "synthetic": bool(about.get("data", {}).get("synthetic")),
    }


def _choose(config: Config, videos: pa.Table) -> dict[str, int]:
    """The faces to show, frame_index by video_id: at most one of a video, those of other groups first.

    Raises:
        UserError: no video has a face.
    """
    frames: dict[str, list[int]] = {}
    for _, part in tables.scan(storage.join(config.data, "faces"), "extract", ["video_id", "frame_index"]):
        wanted = part.filter(pc.is_in(part["video_id"], value_set=videos["video_id"].combine_chunks()))
        frames |= {row["video_id"]: row["frame_index"] for row in wanted.to_pylist() if row["frame_index"]}
    if not frames:
        raise UserError(f"no video of split {config.split!r} of {config.data} has a face. See --split.")
    rng = np.random.default_rng(config.seed)
    turn_G: dict[tuple[str, str], int] = defaultdict(int)
    turns_S: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for row in rng.permutation(np.array(videos.select(["video_id", "slice", "group_id"]).to_pylist(), object)):
        if row["video_id"] in frames:
            group = row["slice"], row["group_id"]
            turns_S[row["slice"]].append((turn_G[group], row["video_id"]))
            turn_G[group] += 1
    shown = {}
    for number, slice_ in enumerate(slices(turns_S)):
        num = config.faces // len(turns_S) + (number < config.faces % len(turns_S))
        for _, video_id in sorted(turns_S[slice_], key=lambda turn: turn[0])[:num]:
            shown[video_id] = int(rng.choice(frames[video_id]))
    return shown


def slices(names: Iterable[str]) -> list[str]:
    """Sorted, real first."""
    return sorted(names, key=lambda name: (name != "real", name))


def _look(config: Config, request: Request, shown: dict[str, int]) -> list[dict[str, Any]]:
    """Rows of HEATMAPS: of each detector the mean and the faces of each slice, in the order in which they are shown."""
    sums: dict[tuple[int, str], Sum] = defaultdict(Sum)
    single: dict[tuple[int, str], dict[str, Any]] = {}
    connect()
    with Progress("heatmaps", len(request.videos), unit="videos") as progress:
        for batch in _stream(config, request, shown):
            rows = batch.to_pylist()
            for row in rows:
                if row["video_id"]:
                    single[row["detector"], row["video_id"]] = row
                else:
                    sums[row["detector"], row["slice"]].add(row)
            progress.advance(sum(row["num_videos"] for row in rows))
    slice_of = dict(zip(request.videos["video_id"].to_pylist(), request.videos["slice"].to_pylist(), strict=True))
    made = []
    for number, detector in enumerate(request.detectors):
        for slice_ in slices({slice_ for _, slice_ in sums}):
            fixed = {"detector": detector["name"], "slice": slice_, "label": int(slice_ != "real")}
            fixed["height"] = detector["cells"][0]
            made.append(fixed | sums[number, slice_].mean(sums[0, slice_]))
            for video_id, frame_index in shown.items():
                if slice_of[video_id] == slice_ and (number, video_id) in single:  # its crop was an image
                    row = single[number, video_id]
                    kept = {name: row[name] for name in ("video_id", "probability", "heat", "num_faces")}
                    made.append(fixed | kept | {"frame_index": frame_index})
    return made


class Sum:
    """What the faces of a slice add up to."""

    def __init__(self) -> None:
        self.num_faces, self.probability = 0, 0.0
        self.heat, self.face = np.zeros(1), np.zeros(1)  # take the shape of what is added

    def add(self, row: dict[str, Any]) -> None:
        """Those of a row of PARTIAL."""
        if row["num_faces"]:
            self.num_faces += row["num_faces"]
            self.probability += row["probability"]
            self.heat = self.heat + np.array(row["heat"])
            if row["face"]:
                self.face = self.face + np.frombuffer(row["face"], np.float32)

    def mean(self, first: "Sum") -> dict[str, Any]:
        """Columns of HEATMAPS; `first` is the same of the detector that the faces were added up for."""
        from raydistal.faces import crop

        if not self.num_faces:
            return {"num_faces": 0, "heat": []}
        face_HWC = (first.face / first.num_faces).reshape(FACE_PX, FACE_PX, 3)
        means = {"probability": self.probability / self.num_faces, "heat": list(self.heat / self.num_faces)}
        face = crop.encode(face_HWC.round().astype(np.uint8), "jpeg:90")
        return {"num_faces": self.num_faces, "face": face} | means


def _stream(config: Config, request: Request, shown: dict[str, int]) -> Iterator[pa.Table]:
    """Runs the stages; yields what `HeatStage` gives."""
    import ray

    from raydistal.detector import checkpoint

    detectors = [checkpoint.load(one["explained_by"])[0] for one in request.detectors]
    work = ray.put(detectors)  # read once, handed to every actor by the object store
    shown_V = pa.array([shown.get(video_id) for video_id in request.videos["video_id"].to_pylist()], pa.int32())
    return look_at_faces(
        request.videos.select(["video_id", "slice", "part"]).append_column("shown", shown_V),
        storage.join(storage.absolute(config.data), "faces"),
        sorted({detector.input_px for detector in detectors}),
        HeatStage,
        (work, config.batch_size),
        VIDEOS_PER_CALL,
        config.num_workers,
        Growth(config.budget.max_nodes, use_gpu(config.device)),
    )


@measured("heatmaps", "maps")
class HeatStage:
    """Actor: holds all detectors. Some videos in, PARTIAL out."""

    def __init__(self, work: "ray.ObjectRef[list[Detector]]", batch_size: int) -> None:
        import ray

        device = start_torch()
        from raydistal.detector.heatmaps import Heatmaps

        self.maps = [Heatmaps(detector, device, batch_size) for detector in ray.get(work)]

    def __call__(self, rows: pa.Table) -> pa.Table:
        video_N = np.repeat(np.arange(len(rows)), pc.list_value_length(rows["frame_index"]).to_numpy())
        slice_V, shown_V = rows["slice"].to_numpy(), rows["shown"].to_pylist()
        frame_N = pc.list_flatten(rows["frame_index"]).to_pylist()
        is_shown_N = np.array([shown_V[video] == frame for video, frame in zip(video_N, frame_N, strict=True)], bool)
        made = []
        for number, maps in enumerate(self.maps):
            crops_NHWC = crops_of(rows[f"pixels_{maps.input_px}"], maps.input_px)
            probability_N, heat_Nhw = maps.explain(crops_NHWC)
            heat_NP = heat_Nhw.reshape(len(heat_Nhw), -1).astype(np.float64)
            for slice_ in sorted(set(slice_V)):
                is_its_N = slice_V[video_N] == slice_
                row = {"detector": number, "slice": slice_, "num_videos": 0, "num_faces": int(is_its_N.sum())}
                row |= {"probability": float(probability_N[is_its_N].sum()), "heat": heat_NP[is_its_N].sum(axis=0)}
                if number == 0:
                    row["num_videos"] = int(np.sum(slice_V == slice_))
                    row["face"] = _sum_faces(crops_NHWC[is_its_N])
                made.append(row)
            for place in np.flatnonzero(is_shown_N):
                video = rows.slice(video_N[place], 1).select(["video_id", "slice"]).to_pylist()[0]
                row = {"detector": number, "num_videos": 0, "num_faces": 1, "heat": heat_NP[place]}
                made.append(video | row | {"probability": float(probability_N[place])})
        return pa.Table.from_pylist(made, PARTIAL)


def _sum_faces(crops_NHWC: npt.NDArray[np.uint8]) -> bytes:
    """The crops added up, as PARTIAL holds them."""
    import cv2

    total_HWC = crops_NHWC.sum(axis=0, dtype=np.float32)
    return bytes(np.float32(cv2.resize(total_HWC, (FACE_PX, FACE_PX), interpolation=cv2.INTER_AREA)).tobytes())
