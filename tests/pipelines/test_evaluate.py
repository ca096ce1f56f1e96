"""The evaluate pipeline on a local cluster: detectors of random weights, faces of noise, the fakes brighter."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from raydistal import schemas, storage, tables
from raydistal.detector import checkpoint, runtime, zoo
from raydistal.errors import UserError
from raydistal.faces import crop
from raydistal.pipelines import evaluate, export, streaming

pytestmark = pytest.mark.ray

SPLITS = (
    ("train",) * 2 + ("val",) + ("test",) * 4
)  # a group each: a real video and a fake of it; the last without faces
DETECTORS = ("small", "large", "onnx")
COST = {"images": 700, "seconds": 3.5, "gpu_seconds": 0.0, "device": "cpu"}
THRESHOLD = {"video": 0.45, "frame": 0.55, "from": "val"}


def save_detector(location, seed=0, input_px=32, learnt=("g00", "g01", "g02")):
    detector = zoo.create("timm:test_resnet", "random", seed, input_px)
    about = {"threshold": THRESHOLD, "cost": COST, "data": {"synthetic": False}}
    splits = ["train"] * (len(learnt) - 1) + ["val"]
    rows = {"video_id": [f"{group}-0" for group in learnt], "group_id": list(learnt), "split": splits}
    tables.write_table(f"{location}/trained_on", pa.table(rows, schemas.TRAINED_ON), {})
    checkpoint.save(str(location), detector, about)
    return str(location)


@pytest.fixture(scope="module")
def place(tmp_path_factory, write_run):
    """Two runs (the second with faces of another size, and no group that the detectors know), two detectors, and one of
    them exported."""
    folder = tmp_path_factory.mktemp("place")
    write_run(folder / "one", videos_per_part=3, splits=SPLITS)
    write_run(folder / "two", videos_per_part=40, splits=("pool",) * 3 + ("test",) * 5, size_px=48, faces_per_video=3)
    save_detector(folder / "small")
    save_detector(folder / "large", seed=1, input_px=40)
    export.run(export.Config(detector=f"{folder}/small", out=f"{folder}/onnx"))
    return folder


def config(place, out, detectors=("small", "large"), data=("one",), **changes):
    places = {
        name: tuple(str(place / one) for one in given) for name, given in (("detectors", detectors), ("data", data))
    }
    return evaluate.Config(**(places | {"out": str(out), "bootstrap": 50, "batch_size": 5} | changes))


@pytest.fixture(scope="module")
def evaluated(cluster, place, tmp_path_factory):
    """All detectors on both runs."""
    out = tmp_path_factory.mktemp("out")
    asked = config(place, out, detectors=DETECTORS, data=("one", "two"))
    return asked, evaluate.run(asked)


def scores(out, detector="small", data="one"):
    return tables.read_table(f"{out}/scores/{detector}--{data}", "evaluate").sort_by("video_id")


def metrics(out, **of):
    rows = tables.read_table(f"{out}/metrics", "evaluate").to_pylist()
    return [row for row in rows if all(row[name] == value for name, value in of.items())]


def value(out, metric, level="video", slice_="all", **of):
    (row,) = metrics(out, metric=metric, level=level, slice=slice_, **of)
    return row["value"]


def files(folder):
    return {name: storage.read_bytes(f"{folder}/{name}") for name in storage.list_files(str(folder))}


def by_hand(location, run):
    """Rows of `scores`, by the detector alone, one face at a time."""
    model, about = runtime.load(str(location))
    logits = runtime.start(model)
    videos = {row["video_id"]: row for row in tables.read_table(f"{run}/videos", "index").to_pylist()}
    rows = []
    for face in tables.read_table(f"{run}/faces", "extract").sort_by("video_id").to_pylist():
        video = videos[face["video_id"]]
        if video["split"] == "test":
            crops = [crop.decode(image, model.input_px)[None] for image in face["crop"]]
            frames = [1 / (1 + np.exp(-logits(crops_1HWC).item())) for crops_1HWC in crops]
            rows.append({name: video[name] for name in ("video_id", "label", "method", "group_id")})
            rows[-1] |= {"model_id": checkpoint.model_id(about), "status": face["status"]}
            rows[-1] |= {"frame_index": face["frame_index"], "frame_probability": pytest.approx(frames, abs=1e-6)}
            rows[-1] |= {"probability": pytest.approx(np.mean(frames), abs=1e-6) if frames else None}
    return rows


@pytest.mark.parametrize("data", ["one", "two"])
@pytest.mark.parametrize("detector", DETECTORS)
def test_scores_are_those_of_the_detector_alone(evaluated, place, detector, data):
    found = scores(evaluated[0].out, detector, data)
    assert found.schema.remove_metadata().equals(schemas.SCORES)
    expected = by_hand(place / detector, place / data)
    assert found.to_pylist() == expected
    assert [row["status"] for row in expected] == ["ok"] * (len(expected) - 2) + ["no_face"] * 2


def test_metrics_are_those_of_the_scores(evaluated):
    out = evaluated[0].out
    rows = tables.read_table(f"{out}/metrics", "evaluate")
    assert rows.schema.remove_metadata().equals(schemas.METRICS)
    for data in ("one", "two"):
        table = scores(out, "large", data).to_pylist()
        of = {"detector": "large", "dataset": data}
        label_N = np.array([row["label"] for row in table for _ in row["frame_probability"]])
        probability_N = np.concatenate([row["frame_probability"] for row in table])
        assert value(out, "auc", "frame", **of) == pytest.approx(roc_auc_score(label_N, probability_N))
        right_N = (probability_N > THRESHOLD["frame"]) == label_N
        assert value(out, "accuracy", "frame", **of) == pytest.approx(right_N.mean())
        label_V = np.array([row["label"] for row in table])
        probability_V = np.array([row["probability"] or 0.5 for row in table])
        assert value(out, "auc", **of) == pytest.approx(roc_auc_score(label_V, probability_V))
        right_V = ((probability_V > THRESHOLD["video"]) == label_V) & [row["status"] == "ok" for row in table]
        assert value(out, "accuracy", **of) == pytest.approx(right_V.mean())
        for slice_, is_in_V in (
            ("real", label_V == 0),
            *((m, [r["method"] == m for r in table]) for m in ("swap", "talk")),
        ):
            assert value(out, "accuracy", slice_=slice_, **of) == pytest.approx(right_V[is_in_V].mean())
    (row,) = metrics(out, metric="auc", level="video", slice="all", detector="small", dataset="one")
    assert row["low"] <= row["value"] <= row["high"]
    about = checkpoint.load(evaluated[0].detectors[0])[1]
    names = {"model_id": checkpoint.model_id(about), "detector": "small", "dataset": "one", "split": "test", "num": 8}
    assert {name: row[name] for name in names} == names


def test_the_summary_and_what_the_report_needs(evaluated, place):
    asked, summary = evaluated
    assert [(one["detector"], one["data"]) for one in summary["results"]] == [
        (detector, data) for data in ("one", "two") for detector in DETECTORS
    ]
    info = tables.read_info(f"{asked.out}/metrics")
    first = summary["results"][0]
    of = {"detector": "small", "dataset": "one"}
    assert {name: first[name] for name in ("auc", "accuracy", "eer", "num_videos", "protocol")} == {
        **{name: value(asked.out, name, **of) for name in ("auc", "accuracy", "eer")},
        "num_videos": 8,
        "protocol": info["data"][0]["protocol"],
    }
    assert first["auc_interval"][0] <= first["auc"] <= first["auc_interval"][1]
    assert summary["report"] == f"{asked.out}/report/index.html"
    assert "small" in storage.read_bytes(summary["report"]).decode()
    assert info["data"][1] == {
        "name": "two",
        "location": str(place / "two"),
        "datasets": ["made up"],
        "synthetic": False,
        "num_videos": 10,
        "num_real": 5,
        "num_fake": 5,
        "num_without_faces": 2,
        "protocol": info["data"][1]["protocol"],
        "num_resamples_skipped": {"video": 0, "frame": 0},
    }
    assert info["detectors"][0] == {
        "name": "small",
        "location": str(place / "small"),
        "model_id": checkpoint.model_id(checkpoint.load(str(place / "small"))[1]),
        "architecture": "timm:test_resnet",
        "num_params": checkpoint.load(str(place / "small"))[1]["num_params"],
        "input_px": 32,
        "threshold": THRESHOLD,
        "cost": COST,
        "synthetic": False,
    }
    assert [(one["detector"], one["data"], one["level"]) for one in info["curves"]] == [
        (detector, data, level) for data in ("one", "two") for detector in DETECTORS for level in ("video", "frame")
    ]
    for one in info["worst"]:
        table = {row["video_id"]: row for row in scores(asked.out, one["detector"], one["data"]).to_pylist()}
        video = table[one["video_id"]]
        assert (video["probability"] > THRESHOLD["video"]) != video["label"] == one["label"]
        error = np.abs(np.array(video["frame_probability"]) - video["label"])
        assert (one["frame_index"], one["probability"]) == (
            video["frame_index"][error.argmax()],
            video["frame_probability"][error.argmax()],
        )
    assert info["worst"]


def test_a_rerun_does_nothing_and_other_metrics_need_no_second_look(evaluated, place, tmp_path, no_cluster):
    out = tmp_path / "out"
    shutil.copytree(evaluated[0].out, out)
    asked = config(place, out, detectors=DETECTORS, data=("one", "two"))
    before = files(out / "scores") | files(out / "metrics")
    no_cluster(evaluate)
    again = evaluate.run(asked)
    assert again["results"] == evaluated[1]["results"]
    assert files(out / "scores") | files(out / "metrics") == before
    scored = files(out / "scores")
    asked = config(place, out, data=("one",), aggregate="max", bootstrap=0)
    evaluate.run(asked)
    assert files(out / "scores") == scored
    table = scores(out).to_pylist()
    probability_V = [max(row["frame_probability"], default=0.5) for row in table]
    assert value(out, "auc", detector="small") == pytest.approx(
        roc_auc_score([r["label"] for r in table], probability_V)
    )
    assert {row["low"] for row in metrics(out)} == {None}


def test_no_face_skip(evaluated, place, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(evaluated[0].out, out)
    unsure = {row["detector"]: row["protocol"] for row in evaluated[1]["results"] if row["data"] == "one"}
    summary = evaluate.run(config(place, out, detectors=("small",), no_face="skip"))
    assert summary["results"][0]["num_videos"] == 6
    assert summary["results"][0]["protocol"] != unsure["small"]
    table = [row for row in scores(out).to_pylist() if row["frame_index"]]
    label_V, probability_V = (np.array([row[name] for row in table]) for name in ("label", "probability"))
    assert value(out, "auc") == pytest.approx(roc_auc_score(label_V, probability_V))
    assert value(out, "accuracy") == pytest.approx(((probability_V > THRESHOLD["video"]) == label_V).mean())
    assert tables.read_info(f"{out}/metrics")["data"][0]["num_without_faces"] == 2


def test_only_what_is_missing_is_scored(evaluated, place, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    shutil.copytree(evaluated[0].out, out)
    removed, damaged = (sorted((out / "scores" / f"{name}--one").glob("part-*"))[0] for name in ("small", "large"))
    removed.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-9])
    for name in ("small", "large"):
        (out / "scores" / f"{name}--one" / tables.INFO).unlink()
    before = files(out / "scores")
    evaluate.run(config(place, out))
    after = files(out / "scores")
    assert "removed an unreadable part" in capsys.readouterr().err
    kept = {name for name in before if name.endswith(".parquet") and name != str(damaged.relative_to(out / "scores"))}
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    for name in ("small", "large"):
        assert scores(out, name).to_pylist() == by_hand(place / name, place / "one")
    assert tables.read_info(str(out / "scores/small--one"))["counts"] == {"ok": 6, "no_face": 2}


def rewrite_faces(run, change):
    """The faces of a run after `change` of each row."""
    table = tables.read_table(f"{run}/faces", "extract")
    info = tables.read_info(f"{run}/faces")
    shutil.rmtree(run / "faces")
    rows = [change(row) for row in table.to_pylist()]
    tables.write_part(f"{run}/faces", pa.Table.from_pylist(rows, table.schema.remove_metadata()), info["config"])
    tables.write_info(
        f"{run}/faces", info["config"], num_rows=len(rows), counts=tables.count_values(r["status"] for r in rows)
    )


def test_bad_crops_and_failed_videos(cluster, place, tmp_path, monkeypatch):
    """A bad crop costs its frame, a video with no other is a decode_error; failures are tried again with new faces."""
    run = tmp_path / "one"
    shutil.copytree(place / "one", run)

    def spoil(row):
        if row["video_id"] == "g03-0":
            row["crop"][1:3] = [b"", b"no image"]
        if row["video_id"] == "g03-1":
            row["crop"] = [b"no image"] * 6
        if row["video_id"] == "g04-0":
            row |= {name: [] for name in ("crop", "frame_index", "pts_s", "box_xyxy_px", "detection_score", "feature")}
            row |= {"status": "crashed", "error": "died"}
        return row

    rewrite_faces(run, spoil)
    asked = config(place, tmp_path / "out", detectors=("small",), data=(run,))
    evaluate.run(asked)
    expected = by_hand(place / "small", place / "one")
    found = scores(tmp_path / "out").to_pylist()
    assert [(row["video_id"], row["status"]) for row in found[:4]] == [
        ("g03-0", "ok"),
        ("g03-1", "decode_error"),
        ("g04-0", "crashed"),
        ("g04-1", "ok"),
    ]
    assert found[0]["frame_index"] == [0, 30, 40, 50]
    assert found[1] == expected[1] | {
        "status": "decode_error",
        "frame_index": [],
        "frame_probability": [],
        "probability": None,
    }
    assert found[3:] == expected[3:]
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "connect", pytest.fail)
        evaluate.run(asked)

    healthy = {row["video_id"]: row for row in tables.read_table(f"{place}/one/faces", "extract").to_pylist()}
    rewrite_faces(run, lambda row: healthy[row["video_id"]] if row["video_id"] == "g04-0" else row)
    evaluate.run(asked)
    assert scores(tmp_path / "out").to_pylist()[2] == expected[2]


def test_names_are_made_unique(place, tmp_path):
    shutil.copytree(place / "small", tmp_path / "again/small")
    shutil.copytree(place / "small", tmp_path / "other/small")
    locations = [str(tmp_path / "again/small"), str(tmp_path / "other/small"), f"{place}/large/"]
    assert storage.distinct_names("--detectors", locations) == ["again-small", "other-small", "large"]
    with pytest.raises(UserError, match="twice"):
        storage.distinct_names("--detectors", [str(place / "small"), f"{place}/small/"])


def test_what_a_detector_has_learnt_from_is_refused(place, tmp_path, capsys):
    knows = save_detector(tmp_path / "knows", learnt=("g09", "g05", "g04"))
    with pytest.raises(
        UserError, match=r"2 videos of split 'test' .* \(there in split train and val\), such as g04-0, g05-0"
    ):
        evaluate.run(config(place, tmp_path / "out", detectors=(knows,)))
    rows = tables.read_table(f"{knows}/trained_on", "train").set_column(0, "video_id", [["a", "b", "c"]])
    tables.write_table(f"{knows}/trained_on", rows, {})
    with pytest.raises(UserError, match=r"2 groups .* such as g04, g05"):
        evaluate.run(config(place, tmp_path / "out", detectors=("small", knows)))
    with pytest.raises(UserError, match=r"split 'val' .* \(there in split val\)"):
        evaluate.run(config(place, tmp_path / "out", split="val"))
    shutil.rmtree(f"{knows}/trained_on")
    evaluate._inputs(config(place, tmp_path / "out", detectors=(knows,)))
    assert "knows does not say what it was trained on" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_other_settings_are_refused(evaluated, place, tmp_path):
    save_detector(tmp_path / "small", seed=5)
    with pytest.raises(UserError, match="model_id"):
        evaluate.run(config(place, evaluated[0].out, detectors=(tmp_path / "small",)))


def test_requests_that_cannot_be_served(place, tmp_path, write_run):
    with pytest.raises(UserError, match="no finished detector"):
        evaluate.run(config(place, tmp_path / "out", detectors=("absent",)))
    with pytest.raises(UserError, match="is one of the folders to read"):
        evaluate.run(config(place, place / "one"))
    with pytest.raises(UserError, match="raydistal index"):
        evaluate.run(config(place, tmp_path / "out", data=("absent",)))
    with pytest.raises(UserError, match=r"0 real and 0 fake .* Videos per split: .*'test': 8"):
        evaluate.run(config(place, tmp_path / "out", split="pool"))
    write_run(tmp_path / "none", crops="none")
    with pytest.raises(UserError, match="--crops png"):
        evaluate.run(config(place, tmp_path / "out", data=(tmp_path / "none",)))
    for broken in ("unfinished", "incomplete"):
        shutil.copytree(place / "one", tmp_path / broken)
    storage.delete(f"{tmp_path}/unfinished/faces/{tables.INFO}")
    with pytest.raises(UserError, match=r"unfinished\. Run: raydistal extract"):
        evaluate.run(config(place, tmp_path / "out", data=(tmp_path / "unfinished",)))
    (data,) = evaluate._inputs(config(place, "", ("small",)))[1]
    storage.delete(f"{tmp_path}/incomplete/faces/{data.videos['part'][0]}")
    with pytest.raises(UserError, match="videos of split 'test' have no row"):
        evaluate.run(config(place, tmp_path / "out", data=(tmp_path / "incomplete",)))
    shutil.copytree(place / "small", tmp_path / "bare")
    about = json.loads((tmp_path / "bare/detector.json").read_text())
    (tmp_path / "bare/detector.json").write_text(json.dumps({k: v for k, v in about.items() if k != "threshold"}))
    with pytest.raises(UserError, match="does not say its threshold"):
        evaluate.run(config(place, tmp_path / "out", detectors=(tmp_path / "bare",)))
    assert not (tmp_path / "out").exists()


def test_trouble_in_a_worker_is_told_without_its_traceback(cluster, place, tmp_path):
    asked = config(place, tmp_path / "out", detectors=("small",))
    detectors, (data,) = evaluate._inputs(asked)
    (scores_,) = evaluate._scores(asked, detectors, data)
    pending = [(scores_, data.videos["video_id"].combine_chunks())]
    lost = data._replace(location="nowhere://run")
    with pytest.raises(UserError, match=r"^cannot open nowhere://run/faces/part-"):
        list(evaluate._stream(asked, lost, data.videos, pending, tables.Claim(str(tmp_path), "me")))


@pytest.mark.parametrize("changes", [{"detectors": ()}, {"bootstrap": -1}, {"batch_size": 0}])
def test_bad_settings(changes):
    with pytest.raises(UserError):
        evaluate.Config(**({"detectors": ("d",), "data": ("r",), "out": "o"} | changes))


def test_the_protocol_names_what_matters(place):
    def ids(**changes):
        asked = config(place, "out", detectors=("small",), **changes)
        _, datasets = evaluate._inputs(asked)
        return [evaluate._protocol(asked, datasets)["id"], *(evaluate._protocol_id(asked, data) for data in datasets)]

    (whole, one) = ids()
    assert whole == one
    assert len(one) == 8
    assert ids(bootstrap=7, seed=3) == [one, one]
    assert len({one, ids(aggregate="max")[1], ids(no_face="skip")[1], ids(data=("two",))[1]}) == 4
    assert ids(data=("one", "two"))[1] == one
    assert ids(data=("one", "two"))[0] == ids(data=("two", "one"))[0] != one


def stream_here(config, data, videos, pending, claim):
    """The stages in turn."""
    import ray

    detectors = [runtime.load(scores.detector.location)[0] for scores, _ in pending]
    stage = evaluate.ScoreStage(ray.put((detectors, pending)), config.batch_size, claim)
    sizes_px = [detector.input_px for detector in detectors]
    for videos_of_task in streaming.by_parts(videos, num_cpus=1):
        for row in streaming.decode_stage(videos_of_task, f"{data.location}/faces", sizes_px, "evaluate"):
            yield stage(row)


def test_all_on_an_object_store(cluster, place, s3, monkeypatch):
    for path in (*place.glob("one/*/*"), *place.glob("small/**/*")):
        if path.is_file():
            storage.write_bytes(f"{s3}/{path.relative_to(place)}", path.read_bytes())
    # In this process: the cluster's workers, started before, do not know the store.
    monkeypatch.setattr(evaluate, "_stream", stream_here)
    asked = evaluate.Config(detectors=(f"{s3}/small",), data=(f"{s3}/one",), out=f"{s3}/out", bootstrap=50)
    summary = evaluate.run(asked)
    assert scores(f"{s3}/out").to_pylist() == by_hand(place / "small", place / "one")
    assert storage.exists(summary["report"])
