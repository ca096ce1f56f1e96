"""From videos to a report without a local folder: everything lies in a bucket, for the driver and for its workers."""

import os
from pathlib import Path

import boto3
import pytest

from raydistal import storage, tables
from raydistal.pipelines import difference, evaluate, export, extract, index, report, select, train

pytestmark = pytest.mark.ray

NETWORK = extract.Features(backbone="timm:mobilenetv3_small_050", weights="random", precision="float32")
WHOLE = extract.Faces(detector="none", size_px=64)
REWRITTEN = (
    "report/",
    "distilled/",
    "coverage/",
    "metrics/",
    "difference/",
    "MODEL_CARD.md",
    "card.json",
    "example.py",
)


@pytest.fixture
def at(s3, clip_writer, tmp_path):
    """at(path): the URI of a path in the bucket, as every process can open it; the videos are in data/."""
    server = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")

    def place(path: str) -> str:
        return f"{s3}/{path}?endpoint_override={server}&scheme=http&region=us-east-1"  # workers started before it was

    lines = ["path,label,method,original,split"]
    for number, split in enumerate(("train", "train", "train", "val", "test", "test")):
        for label in ("real", "fake"):
            clip = clip_writer(tmp_path / "clip.mp4", num_frames=6, seed=number + 100 * (label == "fake"))
            storage.write_bytes(place(f"data/{label}/{number}.mp4"), clip.read_bytes())
            of_fake = f"swap,real/{number}.mp4" if label == "fake" else ","
            lines.append(f"{label}/{number}.mp4,{label},{of_fake},{split}")
            clip.unlink()
    storage.write_bytes(place("data/manifest.csv"), "\n".join(lines).encode())
    return place


def objects(s3: str) -> dict[str, tuple[object, ...]]:
    """What lies in the bucket and is written once; a key that ends in a slash stands for a folder."""
    pages = boto3.client("s3").get_paginator("list_objects_v2").paginate(Bucket=s3.removeprefix("s3://"))
    found = [one for page in pages for one in page.get("Contents", []) if not one["Key"].endswith("/")]
    return {
        one["Key"]: (one["ETag"], one["LastModified"])
        for one in found
        if not any(name in one["Key"] for name in REWRITTEN)
    }


def visible(folder: Path) -> set[str]:
    """Without what the test runner writes meanwhile."""
    return {name for name in os.listdir(folder) if not name.startswith(".")}


def test_everything_in_a_bucket_and_a_rerun_does_nothing(cluster, s3, at, tmp_path, monkeypatch):
    here, before = Path.cwd(), visible(Path.cwd())
    monkeypatch.chdir(tmp_path)
    to_train = train.Config(
        data=at("run"), out=at("big"), manifest=at("run/distilled"), architecture="timm:test_resnet",
        weights="random", recipe="finetune", input_px=32, epochs=1, batch_size=4,
    )  # fmt: skip
    to_export = export.Config(detector=at("big"), out=at("small"), precision="int8", calibration=4)
    to_evaluate = evaluate.Config(detectors=(at("big"), at("small")), data=(at("run"),), out=at("eval"), bootstrap=20)

    def run_all() -> list[dict[str, object]]:
        return [
            index.run(index.Config(videos=at("data"), out=at("run"))),
            extract.run(extract.Config(out=at("run"), sample="even:2", faces=WHOLE, features=NETWORK)),
            select.run(select.Config(out=at("run"), ratio=0.7, frames=4, folds=2)),
            train.run(to_train),
            export.run(to_export),
            evaluate.run(to_evaluate),
        ]

    summaries = run_all()
    difference.run(difference.Config(evaluation=at("eval"), before="big", after="small"))
    report.run(report.Config(out=at("run")))
    assert summaries[1]["ok"] == 12
    assert summaries[2]["distilled"] == 4
    assert tables.read_table(at("run/distilled"), "select").num_rows == 4
    assert tables.read_info(at("run/faces"))["table"] == "faces/1"
    written = objects(s3)
    parts = [key for key in written if "/part-" in key]
    assert {key.rsplit("/", 1)[0] for key in parts} == {
        "run/videos", "run/faces", "run/uncertainty", "run/representative", "run/ranking",
        "big/trained_on", "small/trained_on", "eval/scores/big--run", "eval/scores/small--run",
    }  # fmt: skip
    assert {"big/weights.safetensors", "big/detector.json", "small/model.onnx", "small/detector.json"} <= set(written)
    assert not [key for key in written if key.endswith((tables.LOCK, ".pt")) or ".tmp" in key or "ray" in key]
    for page in ("run", "big", "eval"):
        assert storage.read_bytes(at(f"{page}/report/index.html")).lower().startswith(b"<!doctype html>")

    again = run_all()
    assert again[1]["done_before"] == 12
    unchanged = {key: value for key, value in objects(s3).items() if not key.startswith("run/videos")}
    assert unchanged == {key: value for key, value in written.items() if not key.startswith("run/videos")}
    assert os.listdir() == []
    assert visible(here) == before
