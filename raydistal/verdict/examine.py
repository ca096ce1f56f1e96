"""Examines one video or picture: faces, tracks, verdicts, files. For `raydistal detect` and the web app."""

import base64
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from raydistal.errors import OverLimitError, UserError, VideoError
from raydistal.faces import crop
from raydistal.faces.overlay import overlay
from raydistal.verdict import result
from raydistal.verdict.tracks import Linker, look_of
from raydistal.video.sampling import Sampling
from raydistal.video.sandbox import Sandbox, kept

Crops = npt.NDArray[np.uint8]
Heat = npt.NDArray[np.uint8]  # from 0 to 255

THUMBNAIL_PX, HEATMAP_PX = 160, 320
VERDICT = "verdict.json"
OF_VIDEO = ("width_px", "height_px", "num_frames", "duration_s", "is_picture")
OF_LOOK = ("detector", "scale_factor", "min_neighbors", "min_face", "margin", "size_px", "crops", "equalize")


class Progress(NamedTuple):
    """How far the work is."""

    stage: str  # faces | drawing
    done: int
    total: int


class Judge(NamedTuple):
    """The detector."""

    name: str
    about: Mapping[str, Any]
    """The content of its detector.json."""
    score: Callable[[Crops], npt.NDArray[np.float32]]
    """(N, S, S, 3) crops, S = about["input_px"], to (N,) probabilities of fake."""
    heat: Callable[[Crops], npt.NDArray[np.float32]] | None = None
    """The same crops to (N, h, w) maps from 0 to 1, of low resolution: the evidence for fake."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a video is examined."""

    sample: str = ""
    """Frames that the probability of the video is computed from; default: as in the detector's training."""
    timeline: str = "fps:4"
    """Further frames, to follow each person over time; at most 1000."""
    band: float = 0.1
    """A probability closer than this to the threshold is unsure."""
    draw: bool = True
    """Also write an annotated copy of the video, with a box around each face."""
    draw_heat: bool = True
    """Draw heatmaps into it as well; they cover much of a face."""
    timeout_s: float = 300
    """Time limit in seconds for finding the faces, and for drawing."""
    memory_mib: int = 2048
    """Memory limit in MiB of the process that decodes or draws."""
    max_seconds: float = 0
    """Refuse videos longer than this; 0: no limit."""
    max_pixels: int = 0
    """Refuse videos and pictures with more pixels per frame; 0: no limit."""

    def __post_init__(self) -> None:
        Sampling.parse(self.sample or self.timeline)
        Sampling.parse(self.timeline)
        if not 0 <= self.band < 0.5:
            raise UserError(f"--band must be from 0 to below 0.5, not {self.band:g}")
        if self.timeout_s <= 0 or self.memory_mib < 64:
            raise UserError("need --timeout-s above 0 and --memory-mib of at least 64")


def check(about: Mapping[str, Any], location: str) -> None:
    """Raises UserError if this detector.json, of the detector at `location`, does not say what a verdict needs."""
    faces = about.get("data", {}).get("faces")
    if not faces or "threshold" not in about:
        raise UserError(
            f"{location} does not say how its training faces were cropped, or above which probability it calls a video "
            "fake: train it again with this version: raydistal train"
        )
    if faces["detector"] not in ("haar", "none") and not Path(faces["detector"]).is_file():
        raise UserError(f"{location} learnt from faces found by {faces['detector']}: put that YuNet model there")


def describe(name: str, about: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The part of every result that is not about the video: detector, protocol and raydistal (the version)."""
    band, data = _band(about, settings), about["data"]
    # Not by checkpoint.model_id, which loads PyTorch: the detector may run in another process.
    detector = {"name": name, "model_id": about["digest"][:12]} | {
        "architecture": about["architecture"],
        "technique": about.get("technique"),
        "runtime": about["runtime"],
        "precision": about.get("precision", "float32"),
        "trained_on": list(data.get("dataset", [])),
        "synthetic": bool(data.get("synthetic")),
        **band._asdict(),
    }
    protocol: dict[str, Any] = {"sample": _sample(about, settings), "timeline": settings.timeline, "aggregate": "mean"}
    protocol["faces"] = {key: data["faces"][key] for key in OF_LOOK if key in data["faces"]}
    return {"detector": detector, "protocol": protocol, "raydistal": metadata.version("raydistal")}


def examine(
    path: str, name: str, folder: str, judge: Judge, settings: Settings | None = None, video_id: str = ""
) -> Generator[Progress, None, dict[str, Any]]:
    """Examines one local file: yields its progress, writes `folder`, returns the result (PEP 380).

    Times of the result are those of the annotated video: the source's, see `watch.start_of`. Memory does not grow with
    the crops: they come from the child in small tables, and only the best one of each track is kept.

    Args:
        path: a local file, of any kind.
        name: what it is called in the result; no path.
        folder: local, made if it is not there. Gets verdict.json (written last), timeline.csv, face-N.jpg,
            heatmap-N.jpg (with judge.heat), annotated.mp4 or annotated.jpg (with settings.draw).
        judge: the detector; `check` has passed its `about`.
        settings: default: Settings().
        video_id: what random:N depends on; default: the name.

    Iterate over it in one thread: its two child processes belong to that thread.

    Raises:
        VideoError: the file cannot be examined; nothing is written. If it is only the drawing that fails, the result's
            `annotated` is null, and its `error` says why.
    """
    settings = settings or Settings()
    watched, band = Watched(judge, settings), _band(judge.about, settings)
    yield from watched.watch(path, video_id or name)
    _clear(folder)
    numbers = result.number_tracks(watched.faces)
    faces = [face._replace(track=numbers[face.track]) for face in watched.faces]
    tracks = result.judge_tracks(faces, watched.num_seen, band)
    found: dict[str, Any] = {"video": {"name": name} | watched.video}
    found |= result.judge_video(faces, tracks, watched.num_seen, band)
    found |= {"tracks": tracks, "timeline": result.timeline(faces), "annotated": None}
    found |= describe(judge.name, judge.about, settings)
    for raw, number in numbers.items():
        _write_pictures(folder, tracks[number - 1], watched.best[raw])
    if settings.draw and faces:
        yield from _draw(path, folder, found, watched, faces)
    Path(folder, "timeline.csv").write_bytes(result.to_csv(found["timeline"]))
    part = Path(folder, f".{VERDICT}")
    part.write_bytes(result.to_json(found))
    part.replace(Path(folder, VERDICT))
    return found


class Best(NamedTuple):
    """The picture that represents a track."""

    merit: float
    jpeg: bytes
    heat_hw: Heat


class Watched:
    """What was seen in one video."""

    def __init__(self, judge: Judge, settings: Settings) -> None:
        self.judge, self.settings = judge, settings
        self.faces: list[result.Face] = []  # of tracks as the linker has them
        self.heat: list[Heat] = []  # (h, w) of each face; (0, 0) without judge.heat
        self.best: dict[int, Best] = {}  # of each track
        self.video: dict[str, Any] = {}
        self.num_seen, self.start_s = 0, 0.0
        self._linker = Linker(0)

    def watch(self, path: str, video_id: str) -> Iterator[Progress]:
        """Looks at the file at `path` and fills this object; yields its progress. Raises VideoError."""
        of_faces = self.judge.about["data"]["faces"]
        arguments = {key: of_faces[key] for key in OF_LOOK if key in of_faces} | {"path": path, "video_id": video_id}
        arguments |= {"sample": _sample(self.judge.about, self.settings), "timeline": self.settings.timeline}
        for rows in _sandbox("watch", self.settings).stream(**arguments):
            frames = rows.drop_columns(["pixels"]).to_pylist()
            if not self.video:
                self._begin(frames[0])
            crops_NHWC = crop.crops_of(rows)
            end_N = np.cumsum([len(frame["detection_score"]) for frame in frames])[:-1]
            parts = (np.split(array, end_N) for array in (crops_NHWC, *self._ask(crops_NHWC)))
            for frame, *of_frame in zip(frames, *parts, strict=True):
                self._add(frame, *of_frame)
            yield Progress("faces", self.num_seen, frames[0]["num_wanted"])

    def _begin(self, frame: dict[str, Any]) -> None:
        settings, (width_px, height_px) = self.settings, (frame["width_px"], frame["height_px"])
        if frame["duration_s"] > settings.max_seconds > 0:
            raise OverLimitError(
                f"the video is {frame['duration_s']:.1f} s long; at most {settings.max_seconds:g} s are examined"
            )
        if width_px * height_px > settings.max_pixels > 0:
            raise OverLimitError(
                f"frames of {width_px} x {height_px} pixels; at most {settings.max_pixels} pixels are examined"
            )
        self.video = {key: frame[key] for key in OF_VIDEO if key in frame} | {"is_picture": frame["num_frames"] == 1}
        self.start_s = frame["start_s"]
        self._linker = Linker(frame["duration_s"] / frame["num_wanted"])

    def _ask(self, crops_NHWC: Crops) -> tuple[npt.NDArray[np.float32], Heat]:
        """The detector's probabilities (N,), and its heat (N, h, w) if it is asked for."""
        num, input_px = len(crops_NHWC), self.judge.about["input_px"]
        if not num:
            return np.empty(0, np.float32), np.empty((0, 0, 0), np.uint8)
        if crops_NHWC.shape[1] != input_px:
            crops_NHWC = np.stack([crop.resize(crop_HWC, input_px) for crop_HWC in crops_NHWC])
        heat_Nhw = self.judge.heat(crops_NHWC) if self.judge.heat else np.empty((num, 0, 0), np.float32)
        return self.judge.score(crops_NHWC), (255 * heat_Nhw).round().astype(np.uint8)

    def _add(
        self, frame: dict[str, Any], crops_NHWC: Crops, probability_N: npt.NDArray[np.float32], heat_Nhw: Heat
    ) -> None:
        self.num_seen += 1
        boxes_N4 = np.array(frame["box_xyxy_px"], np.float32).reshape(-1, 4)
        track_N = [0] * len(boxes_N4)
        if self.judge.about["data"]["faces"]["detector"] != "none":  # else the one face is the whole frame
            scene_C = np.frombuffer(frame["scene"], np.uint8)
            look_NP = np.array([look_of(crop_HWC) for crop_HWC in crops_NHWC])
            track_N = self._linker.add(frame["pts_s"], scene_C, boxes_N4, look_NP)
        for number, track in enumerate(track_N):
            box, is_sampled = tuple(boxes_N4[number].tolist()), number == frame["largest"]
            when = frame["frame_index"], frame["pts_s"] - self.start_s
            self.faces.append(result.Face(track, *when, box, is_sampled, float(probability_N[number])))
            self.heat.append(heat_Nhw[number])
            merit = frame["detection_score"][number] * (box[2] - box[0])
            if track not in self.best or merit > self.best[track].merit:
                self.best[track] = Best(merit, crop.encode(crops_NHWC[number], "jpeg:92"), heat_Nhw[number])


def _sandbox(name: str, settings: Settings) -> Sandbox:
    memory_bytes = settings.memory_mib << 20
    return kept(f"raydistal.verdict.{name}:{name}", memory_bytes=memory_bytes, timeout_s=settings.timeout_s)


def _sample(about: Mapping[str, Any], settings: Settings) -> str:
    return str(settings.sample or about["data"]["faces"]["sample"])


def _band(about: Mapping[str, Any], settings: Settings) -> result.Band:
    return result.Band.around(float(about["threshold"]["video"]), settings.band)


def _clear(folder: str) -> None:
    """Makes the folder, and removes what an earlier call wrote there, its verdict first."""
    os.makedirs(folder, exist_ok=True)
    for pattern in (VERDICT, "timeline.csv", "face-*.jpg", "heatmap-*.jpg", "annotated.*"):
        for file in Path(folder).glob(pattern):
            file.unlink()


def _write_pictures(folder: str, track: dict[str, Any], best: Best) -> None:
    """Writes face-N.jpg and, with heat, heatmap-N.jpg, which is noted in the track."""
    Path(folder, track["thumbnail"]).write_bytes(crop.encode(crop.decode(best.jpeg, THUMBNAIL_PX), "jpeg:90"))
    if best.heat_hw.size:
        track["heatmap"] = f"heatmap-{track['track']}.jpg"
        hot_HWC = overlay(crop.decode(best.jpeg, HEATMAP_PX), (best.heat_hw / 255).astype(np.float32))
        Path(folder, track["heatmap"]).write_bytes(crop.encode(hot_HWC, "jpeg:90"))


def _draw(
    path: str, folder: str, found: dict[str, Any], watched: Watched, faces: list[result.Face]
) -> Iterator[Progress]:
    """Writes the annotated file; notes its name in `found` or, if that fails, the reason."""
    name = "annotated.jpg" if found["video"]["is_picture"] else "annotated.mp4"
    out, sandbox = os.path.join(folder, name), _sandbox("annotate", watched.settings)
    try:
        for progress in sandbox.stream(path=path, out=out, tracks=_to_draw(found["tracks"], watched, faces)):
            yield Progress("drawing", progress["frames_done"][-1].as_py(), progress["total"][-1].as_py())
        found["annotated"] = name
    except VideoError as failure:
        found["error"] = f"the video could be examined, but not drawn on: {failure}"
        Path(f"{out}.part").unlink(missing_ok=True)  # a child that was killed leaves it


def _to_draw(tracks: list[dict[str, Any]], watched: Watched, faces: list[result.Face]) -> list[dict[str, Any]]:
    """The tracks as `annotate` takes them."""
    drawn = {track["track"]: {key: track[key] for key in ("track", "verdict", "probability")} for track in tracks}
    of_faces = watched.judge.about["data"]["faces"]
    margin = None if of_faces["detector"] == "none" else of_faces["margin"]  # None: the crop was the box
    is_hot = watched.judge.heat and watched.settings.draw_heat
    for one in drawn.values():
        one |= {"pts_s": [], "box_xyxy_px": [], "heat": [] if is_hot else None}
        one |= {"heat_shape": watched.heat[0].shape, "margin": margin}
    for face, heat_hw in zip(faces, watched.heat, strict=True):
        one = drawn[face.track]
        one["pts_s"].append(face.pts_s + watched.start_s)
        one["box_xyxy_px"].append(face.box_xyxy_px)
        if is_hot:
            one["heat"].append(base64.b64encode(heat_hw.tobytes()).decode())
    return list(drawn.values())
