"""The detect pipeline: on a local cluster, and in this process."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pyarrow.csv as pacsv
import pytest
from pyarrow import fs

from raydistal import schemas, storage, tables
from raydistal.datasets import synthetic
from raydistal.datasets.synthetic_scenes import TalkingHead
from raydistal.errors import UserError
from raydistal.pipelines import compact, detect, evaluate, extract, scaling, status
from raydistal.verdict import examine

pytestmark = pytest.mark.slow

SIZE_PX = (240, 180)
NETWORK = extract.Features(backbone="timm:mobilenetv3_small_050", weights="random", precision="float32")
PLAIN = examine.Settings(timeline="fps:2", draw=False)


def heads(*identities):
    """A frame's worth of people side by side, for each of 20 frames."""
    scenes = [TalkingHead(identity, 0, *SIZE_PX, 20, 10, 1.0) for identity in identities]
    return [np.hstack([scene.frame(number) for scene in scenes]) for number in range(20)]


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """Two people, one, none, and a picture of one."""
    folder = tmp_path_factory.mktemp("media")
    options = {"crf": "20", "preset": "veryfast"}
    for name, frames in (("one.mp4", heads(1)), ("two.mp4", heads(2, 3))):
        synthetic._encode(folder / name, frames, frames[0].shape[1::-1], 10, options)
    scene = TalkingHead(4, 0, *SIZE_PX, 20, 10, 1.0)
    synthetic._encode(folder / "wall.mp4", map(scene.empty_frame, range(20)), SIZE_PX, 10, options)
    cv2.imwrite(str(folder / "face.png"), cv2.cvtColor(heads(5)[0], cv2.COLOR_RGB2BGR))
    return folder


def tell(location, **faces):
    """Changes what a detector says of the faces that it learnt from."""
    about = json.loads((location / "detector.json").read_text())
    about["data"]["faces"] |= faces
    (location / "detector.json").write_text(json.dumps(about))


@pytest.fixture(scope="session")
def detectors(exported, tmp_path_factory):
    """Trained, ONNX and int8; they learnt from the largest face of even:6."""
    folder = tmp_path_factory.mktemp("detectors")
    for name in ("detector", "onnx", "int8"):
        shutil.copytree(exported / name, folder / name)
        tell(folder / name, detector="haar", size_px=64)
    return folder


def config(detectors, out, *videos, name="detector", **changes):
    asked = {"videos": tuple(map(str, videos)), "detector": str(detectors / name), "out": str(out)}
    return detect.Config(**(asked | {"examination": PLAIN, "device": "cpu"} | changes))


def verdicts(out):
    """By file name."""
    rows = tables.read_table(f"{out}/verdicts", "detect").to_pylist()
    assert len({row["uri"] for row in rows}) == len(rows)
    return {row["uri"].rpartition("/")[2]: row for row in rows}


def files(folder):
    return {name: storage.read_bytes(f"{folder}/{name}") for name in storage.list_files(str(folder))}


@pytest.mark.ray
@pytest.mark.parametrize(
    ("faces", "names"),
    [
        ({"detector": "haar", "crops": "png"}, ("detector", "onnx", "int8")),
        ({"detector": "none", "crops": "jpeg:85"}, ("detector",)),
    ],
)
def test_evaluate_says_the_same(cluster, detectors, media, tmp_path, write_videos, monkeypatch, faces, names):
    paths = sorted(media.iterdir())
    shutil.copytree(detectors, tmp_path / "detectors")
    for name in names:
        tell(tmp_path / "detectors" / name, **faces)
    run = str(tmp_path / "run")
    write_videos(run, paths, labels=[0, 1, 0, 1], split=["test"] * len(paths))
    crops = extract.Faces(size_px=64, **faces)
    extract.run(extract.Config(out=run, sample="even:6", faces=crops, features=NETWORK))
    locations = tuple(str(tmp_path / "detectors" / name) for name in names)
    out = str(tmp_path / "evaluation")
    evaluate.run(evaluate.Config(detectors=locations, data=(run,), out=out, bootstrap=0, device="cpu"))
    monkeypatch.setattr(detect, "FEW", 9)  # in this process; that the cluster says the same is tested below
    for name in names:
        detect.run(config(tmp_path / "detectors", tmp_path / name, media, name=name))
        rows = tables.read_table(f"{out}/scores/{name}--run", "evaluate").to_pylist()
        expected = {row["video_id"]: row["probability"] for row in rows}
        found = {name: row["probability"] for name, row in verdicts(tmp_path / name).items()}
        assert found == pytest.approx(expected, abs=1e-6)
        assert (expected["wall.mp4"] is None) == (faces["detector"] == "haar")
        assert len({probability for probability in expected.values() if probability}) >= 3


@pytest.fixture(scope="module")
def mixed(media, tmp_path_factory):
    """A folder as people have them."""
    folder = tmp_path_factory.mktemp("my videos é")
    for name in ("one.mp4", "two.mp4", "wall.mp4", "face.png"):
        shutil.copy(media / name, folder)
    (folder / "in a talk").mkdir()
    shutil.copy(media / "one.mp4", folder / "in a talk/-the 'same' [one].mp4")
    (folder / "text.mp4").write_text("no video")
    (folder / "._one.mp4").write_text("of a Mac")
    (folder / "notes.txt").write_text("of mine")
    return folder


@pytest.fixture(scope="module")
def detected(cluster, detectors, mixed):
    """All of it on the cluster, into the folder itself."""
    asked = config(detectors, mixed / "detected", mixed, examination=replace(PLAIN, draw=True), num_workers=2)
    return asked, detect.run(asked)


@pytest.mark.ray
def test_every_file_has_a_row_and_a_folder(detected, mixed):
    asked, summary = detected
    rows = verdicts(asked.out)
    assert set(rows) == {"one.mp4", "two.mp4", "wall.mp4", "face.png", "-the 'same' [one].mp4", "text.mp4"}
    for name, row in rows.items():
        if name == "text.mp4":
            assert (row["status"], row["folder"], row["verdict"]) == ("decode_error", None, None)
            assert "cannot be read as a video" in row["error"]
            continue
        result = json.loads(Path(asked.out, row["folder"], "verdict.json").read_text())
        assert result["video"]["name"] == name
        told = {key: result[key] for key in ("status", "error", "verdict", "probability", "reason")}
        assert {key: row[key] for key in told} == told
        assert row["num_bytes"] == (Path(row["uri"])).stat().st_size
        assert (result["annotated"] is None) == (row["status"] == "no_face")
    assert [rows[name]["num_tracks"] for name in ("one.mp4", "two.mp4", "face.png")] == [1, 2, 1]
    assert rows["wall.mp4"]["status"] == "no_face"
    same = rows["-the 'same' [one].mp4"]
    assert same["folder"] == f"results/the_same_one-{same['video_id'][:8]}"
    assert same["probability"] == rows["one.mp4"]["probability"]
    assert {name: summary[name] for name in ("videos", "no_face", "failed", "done_before")} == {
        "videos": 6,
        "no_face": 1,
        "failed": 1,
        "done_before": 0,
    }
    folders = {path.name for path in Path(asked.out, "results").iterdir()}
    assert folders == {row["folder"].rpartition("/")[2] for row in rows.values() if row["folder"]}
    assert len(pacsv.read_csv(summary["csv"])) == 6
    told = status.run(status.Config(out=asked.out))["verdicts"]
    assert (told["done"], told["complete"], told["counts"]["decode_error"]) == (6, True, 1)


@pytest.mark.ray
def test_a_rerun_does_what_failed_what_changed_and_what_is_new(
    detected, mixed, media, tmp_path, detectors, monkeypatch
):
    monkeypatch.setattr(detect, "FEW", 9)
    shutil.copytree(mixed, tmp_path / "copy")
    asked = config(detectors, tmp_path / "out", tmp_path / "copy", examination=PLAIN)
    shutil.rmtree(tmp_path / "copy/detected")
    detect.run(asked)
    before, there = verdicts(asked.out), verdicts(detected[0].out)
    assert {name: row["probability"] for name, row in before.items()} == pytest.approx(
        {name: row["probability"] for name, row in there.items()}, abs=1e-6
    )
    shutil.copy(media / "two.mp4", tmp_path / "copy/text.mp4")
    assert detect.run(asked)["done_before"] == 5
    compact.run(compact.Config(table=f"{asked.out}/verdicts"))
    shutil.copy(media / "wall.mp4", tmp_path / "copy/one.mp4")
    shutil.copy(media / "wall.mp4", tmp_path / "copy/new.mp4")
    assert detect.run(asked)["done_before"] == 5
    after = verdicts(asked.out)
    assert after["text.mp4"]["probability"] == before["two.mp4"]["probability"]
    assert [after[name]["status"] for name in ("one.mp4", "new.mp4")] == ["no_face"] * 2
    assert {name: after[name] for name in ("two.mp4", "face.png")} == {
        name: before[name] for name in ("two.mp4", "face.png")
    }
    kept = files(asked.out)
    assert detect.run(asked)["done_before"] == 7
    assert files(asked.out) == kept
    with pytest.raises(UserError, match=r"band: 0\.1 there, 0\.2 now"):
        detect.run(replace(asked, examination=replace(PLAIN, band=0.2)))


def test_each_file_once_and_nothing_of_ours(media, detectors, tmp_path, monkeypatch):
    shutil.copytree(media, tmp_path / "videos")
    for place in ("videos/earlier/results/one-12345678", "videos/face.png.d"):
        (tmp_path / place).mkdir(parents=True)
        shutil.copy(media / "one.mp4", tmp_path / place / "annotated.mp4")
    (tmp_path / "videos/earlier/results/one-12345678/verdict.json").write_text("{}")
    shutil.copytree(media, tmp_path / "videos/detected/results/.tmp-x")
    monkeypatch.chdir(tmp_path)
    given = ("videos", "videos/one.mp4", tmp_path / "videos/one.mp4", "./videos/../videos/")
    _, found = detect._inputs(config(detectors, "videos/detected", *given))
    names = sorted(uri.removeprefix(f"{tmp_path}/videos/") for uri in found["uri"].to_pylist())
    assert names == ["face.png", "face.png.d/annotated.mp4", "one.mp4", "two.mp4", "wall.mp4"]
    (tmp_path / "videos/one.mp4").rename(tmp_path / "strange name")
    _, named = detect._inputs(config(detectors, "out", "strange name"))
    assert named["uri"].to_pylist() == [f"{tmp_path}/strange name"]
    assert detect._safe_name(f"{tmp_path}/strange name") == "strange_name"


def test_few_need_no_cluster(media, detectors, tmp_path, monkeypatch, no_cluster):
    no_cluster(detect)
    monkeypatch.setenv("RAY_ADDRESS", "here:1")
    two = config(detectors, tmp_path, media / "wall.mp4", media / "face.png", examination=PLAIN)
    with pytest.raises(pytest.fail.Exception, match="needs a cluster"):
        detect.run(two)
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(pytest.fail.Exception, match="needs a cluster"):
        detect.run(config(detectors, tmp_path, media, examination=PLAIN))
    assert detect.run(two)["videos"] == 2
    monkeypatch.setenv("RAY_ADDRESS", "here:1")
    assert detect.run(two)["done_before"] == 2


def test_stopped_in_the_middle(media, detectors, tmp_path, monkeypatch):
    real, calls = examine.examine, []

    def until_ctrl_c(path, *arguments):
        calls.append(path)
        steps = real(path, *arguments)
        yield next(steps)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return (yield from steps)

    asked = config(detectors, tmp_path / "out", media / "one.mp4", media / "two.mp4")
    monkeypatch.setattr(examine, "examine", until_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        detect.run(asked)
    assert list(verdicts(asked.out)) == ["one.mp4"]
    assert not tables.read_info(f"{asked.out}/verdicts")
    (kept,) = Path(asked.out, "results").iterdir()
    assert kept.name.startswith("one-")
    (tmp_path / "out/results/.tmp-killed").mkdir()
    assert detect.run(asked)["done_before"] == 1
    assert calls == [str(media / name) for name in ("one.mp4", "two.mp4", "two.mp4")]
    assert not list(Path(asked.out, "results").glob(".tmp-*"))


def test_on_an_object_store(media, detectors, s3, monkeypatch):
    for path in (*media.glob("*.png"), *media.glob("wall.mp4"), *(detectors / "onnx").glob("*.*")):
        storage.write_bytes(f"{s3}/{path.parent.name}/{path.name}", path.read_bytes())
    listed, real = [], fs.FileSelector
    monkeypatch.setattr(fs, "FileSelector", lambda path, **options: listed.append(path) or real(path, **options))
    asked = detect.Config(videos=(f"{s3}/{media.name}",), detector=f"{s3}/onnx", out=f"{s3}/out", examination=PLAIN)
    summary = detect.run(asked)
    rows = verdicts(f"{s3}/out")
    assert {name: row["status"] for name, row in rows.items()} == {"face.png": "ok", "wall.mp4": "no_face"}
    folder = f"{s3}/out/{rows['face.png']['folder']}"
    assert set(storage.list_files(folder)) == {"face-1.jpg", "timeline.csv", "verdict.json"}
    assert json.loads(storage.read_bytes(f"{folder}/verdict.json"))["video"]["name"] == "face.png"
    assert storage.exists(summary["csv"])
    assert sum(path.endswith(media.name) for path in listed) == 1
    assert detect.run(asked)["done_before"] == 2


def test_requests_that_cannot_be_served(media, detectors, tmp_path):
    one = media / "one.mp4"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/notes.txt").touch()
    for videos, message in (
        (["absent.mp4"], "no such file or folder: absent.mp4"),
        ([tmp_path / "empty"], "no video and no picture in .*: it has 1 files"),
        (["nowhere://bucket/x.mp4"], "cannot open"),
    ):
        with pytest.raises(UserError, match=message):
            detect.run(config(detectors, tmp_path / "out", *videos))
    with pytest.raises(UserError, match="no finished detector"):
        detect.run(config(detectors, tmp_path / "out", one, name="absent"))
    shutil.copytree(detectors / "detector", tmp_path / "old")
    about = json.loads((tmp_path / "old/detector.json").read_text())
    del about["data"]["faces"]
    (tmp_path / "old/detector.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="raydistal train"):
        detect.run(config(tmp_path, tmp_path / "out", one, name="old"))
    shutil.copytree(detectors / "onnx", tmp_path / "orphan")
    about = json.loads((tmp_path / "orphan/detector.json").read_text())
    about["parent"]["location"] = str(tmp_path / "gone")
    (tmp_path / "orphan/detector.json").write_text(json.dumps(about))
    with pytest.raises(UserError, match="no gradients"):
        detect.run(config(tmp_path, tmp_path / "out", one, name="orphan", heatmaps=True))
    assert not list(tmp_path.glob("out/results/*"))


@pytest.mark.parametrize(
    "changes",
    [
        {"videos": ()},
        {"videos": ("a.mp4", "")},
        {"detector": ""},
        {"num_workers": -1},
        {"videos": ("s3://key:secret@bucket/a.mp4",)},
    ],
)
def test_bad_settings(changes):
    with pytest.raises(UserError):
        detect.Config(**({"videos": ("a.mp4",), "detector": "d"} | changes))


def test_heatmaps_are_there_when_asked_for(media, detectors, tmp_path):
    asked = config(detectors, tmp_path, media / "face.png", heatmaps=True, examination=replace(PLAIN, draw=True))
    detect.run(asked)
    (row,) = verdicts(tmp_path).values()
    assert {"annotated.jpg", "heatmap-1.jpg"} <= set(storage.list_files(f"{tmp_path}/{row['folder']}"))


def test_names_do_no_harm(media, detectors, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    name = "[red]\x1b[2J\N{RIGHT-TO-LEFT OVERRIDE}" + "é" * 60 + " '\"$(rm).mp4"
    shutil.copy(media / "wall.mp4", tmp_path / name)
    summary = detect.run(config(detectors, tmp_path / "out", tmp_path / name))
    (row,) = verdicts(tmp_path / "out").values()
    folder = row["folder"].removeprefix("results/")
    assert folder == f"red_2J_{'é' * 32}-{row['video_id'][:8]}"
    assert summary["no_face"] == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "- no face" in printed.err
    assert "[red]" in printed.err
    assert not {"\x1b", "\N{RIGHT-TO-LEFT OVERRIDE}"} & set(printed.err)
    *lines, place = printed.err.splitlines()
    assert place == f"{tmp_path}/out/{row['folder']}"
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("cpus", "gpus", "num_videos", "num_workers", "expected"),
    [
        (4, 0, 100, 0, (4, 4)),
        (4, 0, 3, 0, (3, 3)),
        (4, 0, 6400, 0, (4, 100)),
        (4, 0, 100, 3, (3, 3)),
        (4, 2, 100, 0, (16, 16)),
        (4, 2, 6400, 0, (16, 96)),
    ],
)
def test_an_actor_per_cpu_or_eight_per_gpu(cpus, gpus, num_videos, num_workers, expected):
    growth = object.__new__(scaling.Growth)
    growth.max_nodes, growth.on_gpu, growth.num_to_come = 0, gpus > 0, 0
    growth.cpus, growth.max_cpus = cpus, 9999
    growth.gpus, growth.max_gpus = gpus, 9999
    assert detect._num_actors(growth, num_videos, num_workers) == expected


def test_the_most_alarming_come_first():
    said = [("real", 0.1), ("fake", 0.8), (None, None), ("unsure", 0.5), ("fake", 0.9)]
    rows = [
        {"video_id": f"v{place}", "uri": f"/v{place}", "status": "ok" if verdict else "no_face", "verdict": verdict}
        | {"max_track_probability": value}
        for place, (verdict, value) in enumerate(said)
    ]
    rows.append({"video_id": "v5", "uri": "/v5", "status": "timeout"})
    table = schemas.VERDICTS.empty_table().from_pylist(rows, schemas.VERDICTS)
    assert detect._by_alarm(table)["video_id"].to_pylist() == ["v4", "v1", "v3", "v0", "v2", "v5"]
    assert detect._counts(table) == {"fake": 2, "unsure": 1, "real": 1, "no_face": 1, "failed": 1}
