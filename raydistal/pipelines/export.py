"""detector -> one file that runs without PyTorch, with its model card and an example. Needs no Ray.

float32   detector -> ONNX or ExecuTorch -> the same logits?
int8 ...  detector -> 8 bits, ranges from faces of train -> what changed on faces of val?
"""

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydistal import storage, tables
from raydistal.detector.examples import Limits
from raydistal.errors import UserError
from raydistal.progress import Progress

if TYPE_CHECKING:
    from raydistal.detector.examples import Batch, Source
    from raydistal.detector.runtime import Crops, Exported
    from raydistal.detector.zoo import Detector

BATCH_SIZE = 32
MAX_HELD_OUT = 1000  # faces on which float and 8 bits are compared
OF_WEIGHTS = ("shapes", "adapter")  # keys of detector.json about weights, which an exported detector no longer has


@dataclass(frozen=True, kw_only=True)
class Config:
    """Turn a detector into one file that runs without PyTorch."""

    detector: str
    """Detector directory, local or s3://..."""
    out: str
    """Directory to write: the model, detector.json, MODEL_CARD.md, example.py."""
    runtime: Literal["onnx", "executorch"] = "onnx"
    """executorch: for mobile devices, by XNNPACK, one face at a time."""
    precision: Literal["float32", "int8", "int8-dynamic", "int8-qat"] = "float32"
    """int8: static; int8-qat: quantization-aware training, where int8 loses accuracy; int8-dynamic: small, but slower
    than float32."""
    data: str = ""
    """For 8 bits: run folder with faces to calibrate on (train) and compare on (val). Default: that of the training."""
    calibration: int = 256
    """Faces to calibrate on, half of each class."""
    steps: int = 200
    """For int8-qat: training steps, each of 32 faces."""
    learning_rate: float = 1e-4
    """For int8-qat: learning rate."""
    evaluation: str = ""
    """Folder of raydistal evaluate whose results for this detector, exported or not, go into the model card."""
    seed: int = 0
    """Seed of the choice of faces and their order."""

    def __post_init__(self) -> None:
        if self.calibration < 2 or self.steps < 1 or self.seed < 0 or not 0 < self.learning_rate < 1:
            raise UserError(
                "need --calibration of at least 2, --steps of at least 1, --seed of 0 or more, and a --learning-rate "
                "above 0 and below 1"
            )
        if (self.runtime, self.precision) == ("executorch", "int8-dynamic"):
            raise UserError("--precision int8-dynamic is for --runtime onnx; for executorch use int8 or int8-qat")
        if storage.absolute(self.detector) == storage.absolute(self.out):
            raise UserError(f"--out {self.out} is the detector itself: give another folder")


class Faces(NamedTuple):
    """The faces that a conversion to 8 bits needs, as rows of `EXAMPLES`."""

    source: "Source"
    calibration: pa.Table
    training: pa.Table
    held_out: pa.Table
    """Neither calibrated with nor trained on."""


def run(config: Config) -> dict[str, Any]:
    """Exports the detector, unless that is done; writes its model card; returns a summary.

    Raises:
        UserError: no such detector, one that is exported already, no faces, a runtime that is not installed, a folder
            made with other settings, or a model whose logits are not those of the detector.
    """
    from raydistal.compression import card
    from raydistal.detector import checkpoint

    began = time.monotonic()
    out = storage.absolute(config.out)
    if config.evaluation:
        tables.open_table(storage.join(config.evaluation, "metrics"), "evaluate")  # refused before any work
    detector, parent = checkpoint.load(config.detector)
    faces = None if config.precision == "float32" else _faces(config, parent, detector.input_px)
    settings = _settings(config, checkpoint.model_id(parent), faces)
    with tables.sole_writer(out):
        if checkpoint.exists(out):
            about = checkpoint.read_about(out)
            tables.refuse_other_config(out, checkpoint.INFO, about.get("settings", {}), settings)
        else:
            about = _export(config, detector, parent, faces, settings)
        card.write(out, about, config.evaluation)
    summary = {"detector": out, **{name: about[name] for name in ("size_mb", "num_params", "macs")}}
    checked = {"parity": about["parity"]} if about["parity"] else {"drift": about["quantization"]["drift"]}
    return summary | checked | {"seconds": round(time.monotonic() - began, 1), "card": storage.join(out, card.MARKDOWN)}


def _settings(config: Config, model_id: str, faces: Faces | None) -> dict[str, Any]:
    """The settings that decide the content of the file."""
    from raydistal.compression.export import OPSET
    from raydistal.detector.examples import fingerprint

    settings: dict[str, Any] = {"detector": model_id, "runtime": config.runtime, "precision": config.precision}
    if config.runtime == "onnx":
        settings["opset"] = OPSET
    if faces:
        settings |= {f"{name}_faces": fingerprint(getattr(faces, name)) for name in ("calibration", "held_out")}
    if faces and config.precision == "int8-qat":
        settings |= {"train_faces": fingerprint(faces.training), "batch_size": BATCH_SIZE}
        settings |= {name: getattr(config, name) for name in ("steps", "learning_rate", "seed")}
    return settings


def _faces(config: Config, parent: dict[str, Any], size_px: int) -> Faces:
    from raydistal.detector.examples import choose, list_faces, plain_source

    run = config.data or parent.get("data", {}).get("location", "")
    if not run:
        raise UserError(f"{config.detector} does not record what it learnt from: give a run folder as --data")
    columns = ["video_id", "label", "method", "split"]
    videos = tables.read_table(storage.join(run, "videos"), "index", columns)
    videos = videos.filter(pc.is_valid(videos["label"])).combine_chunks()
    found = list_faces(run, videos)
    split = pc.take(videos["split"], pc.index_in(found["video_id"], value_set=videos["video_id"]))
    train, val = (found.filter(pc.equal(split, name)) for name in ("train", "val"))
    calibration = choose(train, Limits(max_faces=config.calibration), config.seed)
    others = val if len(set(val["label"].to_pylist())) == 2 else _without(train, calibration)
    held_out = choose(others, Limits(max_faces=MAX_HELD_OUT), config.seed)
    if not len(calibration) or len(held_out) < 2:
        raise UserError(
            f"{run} has {len(train)} faces in split train to calibrate with, and {len(held_out)} others to compare "
            "float and 8 bits on: use another --data, or fewer --calibration faces."
        )
    return Faces(plain_source(run, size_px), calibration, _without(train, held_out), held_out)


def _without(examples: pa.Table, others: pa.Table) -> pa.Table:
    from raydistal.selection.draws import sample_key

    key_N, key_M = (sample_key(one["video_id"], one["frame_index"].to_numpy(), 0) for one in (examples, others))
    return examples.filter(pa.array(~np.isin(key_N, key_M)))


def _batches(faces: Faces, examples: pa.Table) -> Iterator["Batch"]:
    """Every face once, in order."""
    from raydistal.detector.examples import every_face, rebatch

    yield from rebatch(every_face(faces.source, examples), BATCH_SIZE)


def _training(config: Config, faces: Faces) -> Iterator["Crops"]:
    """Batches in random order, epoch by epoch, until there are enough."""
    from raydistal.detector.examples import load_window, rebatch, shuffled_shares

    def all_batches() -> Iterator["Batch"]:
        for epoch in itertools.count():
            (windows,) = shuffled_shares(faces.training["part"].to_numpy(), 1, config.seed, epoch)
            chunks = (load_window(faces.source, faces.training, window, None) for window in windows)
            yield from rebatch(itertools.chain.from_iterable(chunks), BATCH_SIZE)

    with Progress("export", config.steps, unit="batches") as progress:
        for batch in itertools.islice(all_batches(), config.steps):
            yield batch.crops_NHWC
            progress.advance(1)


def _export(
    config: Config, detector: "Detector", parent: dict[str, Any], faces: Faces | None, settings: dict[str, Any]
) -> dict[str, Any]:
    """Writes the directory but for the card; returns the content of detector.json."""
    from raydistal.compression.cost import versions
    from raydistal.compression.counting import count_macs
    from raydistal.compression.export import check_parity, export
    from raydistal.detector import lineage, runtime

    out = storage.absolute(config.out)
    macs, num_crops = count_macs(detector), "N" if config.runtime == "onnx" else "1"
    if faces:
        model, quantization = _quantize(config, detector, parent, faces)
        parity = None
    else:
        model, quantization = export(detector, config.runtime), None
        parity = check_parity(detector, model, config.seed)
    about = {name: value for name, value in parent.items() if name not in OF_WEIGHTS}
    about |= {
        "technique": "export",
        "parent": lineage.ancestor(config.detector, parent),
        "precision": config.precision,
        "input": {"name": runtime.INPUT, "type": "uint8", "layout": f"{num_crops}, S, S, 3", "colours": "RGB"},
        "output": {"name": runtime.OUTPUT, "type": "float32", "layout": num_crops, "meaning": "logit of fake"},
        "macs": macs,
        "size_mb": len(model.content) / 1e6,
        "parity": parity,
        "quantization": quantization,
        "settings": settings,
        "versions": tables.versions() | versions(),
    }
    for name in storage.list_files(trained_on := storage.join(config.detector, "trained_on")):
        content = storage.read_bytes(storage.join(trained_on, name))
        storage.write_bytes(storage.join(out, "trained_on", name), content)  # evaluate looks there for leaks
    return runtime.save(out, model, about)


def _quantize(
    config: Config, detector: "Detector", parent: dict[str, Any], faces: Faces
) -> tuple["Exported", dict[str, Any]]:
    """The model in 8 bits, and how it differs from the detector."""
    from raydistal.compression import quantization
    from raydistal.detector import runtime

    began = time.monotonic()
    calibration = (batch.crops_NHWC for batch in _batches(faces, faces.calibration))
    training = _training(config, faces)
    model = quantization.quantize(
        detector, config.runtime, config.precision, calibration, training, config.learning_rate
    )
    float_logits, int8_logits = runtime.start(detector), runtime.start(model)
    found = [
        (batch.label_N, float_logits(batch.crops_NHWC), int8_logits(batch.crops_NHWC))
        for batch in _batches(faces, faces.held_out)
    ]
    label_N, float_N, int8_N = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    threshold = parent.get("threshold", {}).get("frame", 0.5)
    num = dict(zip(("real", "fake"), tables.count_classes(faces.calibration["label"]), strict=True))
    is_trained = config.precision == "int8-qat"
    return model, {
        "calibration_faces": None if config.precision == "int8-dynamic" else num,
        "images": config.steps * BATCH_SIZE if is_trained else 0,
        "seconds": time.monotonic() - began,
        "float_layers": quantization.find_float_layers(model.content) if config.runtime == "onnx" else None,
        "drift": quantization.drift(float_N.astype(np.float64), int8_N.astype(np.float64), label_N, threshold),
    }
