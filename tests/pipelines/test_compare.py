"""Sets, trainings and verdicts on made-up faces: noise, the fakes brighter."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from raydistal import schemas, storage, tables
from raydistal.detector import checkpoint
from raydistal.errors import UserError
from raydistal.faces import crop
from raydistal.pipelines import compare, epochs, extract, train, trainings

SIZE_PX = 32
SPLITS = ("train",) * 12 + ("val",) * 3 + ("test",) * 7
NET = "timm:test_resnet"
TINY = trainings.Training(
    weights="random", recipe="finetune", epochs=1, batch_size=8, learning_rate=2e-3, input_px=SIZE_PX
)
SETS = ["full", "distill-50", "distill-50-random", "distill-50-frame_count", "faces-20"]


def write_run(run, order=None, faces_per_group=lambda group: 2 + group % 4):
    """A real video and a fake of it per group; the last test pair has no faces. `order`: the ranking."""
    rng = np.random.default_rng(0)
    videos, faces = [], []
    for group, split in enumerate(SPLITS):
        for label in (0, 1):
            video_id = f"g{group:02}-{label}"
            videos.append({"video_id": video_id, "dataset": "made up", "uri": f"/{video_id}.mp4", "label": label})
            videos[-1] |= {"method": "swap" if label else None, "group_id": f"g{group:02}", "split": split}
            num = 0 if group == len(SPLITS) - 1 else faces_per_group(group)
            images = rng.integers(0, 180, (num, SIZE_PX, SIZE_PX, 3)) + 40 * label
            row = {"video_id": video_id, "status": "ok" if num else "no_face", "num_frames_seen": 9}
            row |= {"error": None if num else "no face in 9 frames", "frame_index": list(range(0, 10 * num, 10))}
            row |= {"pts_s": [0.4 * place for place in range(num)], "box_xyxy_px": [[0, 0, 9, 9]] * num}
            row |= {"detection_score": [1.0] * num, "feature": [[0.0, 1.0]] * num}
            faces.append(row | {"crop": [crop.encode(image.astype(np.uint8), "png") for image in images]})
    tables.write_table(f"{run}/videos", pa.Table.from_pylist(videos, schemas.VIDEOS), {})
    settings = {"sample": "even:9", "sample_fake": "even:9", "detector": "haar", "margin": 0.3, "crops": "png"}
    settings["size_px"] = SIZE_PX
    for start in range(0, len(faces), 5):
        part = pa.Table.from_pylist(faces[start : start + 5], schemas.faces_schema(2))
        tables.write_part(f"{run}/faces", part, settings)
    tables.write_info(f"{run}/faces", settings, num_rows=len(faces), counts={"ok": 42, "no_face": 2})
    order = order or [f"g{group:02}-{label}" for group in range(12) for label in (1, 0)]
    ranking = {"video_id": order, "label": [int(name[-1]) for name in order], "num_representative": [1] * len(order)}
    ranking |= {"rank": range(len(order))}
    ranking = schemas.conform(pa.table(ranking), schemas.RANKING)
    tables.write_table(f"{run}/ranking", ranking, {"arrange": "frequency"})


def config(run, **changes):
    values = {"data": str(run), "out": str(run / "out"), "architectures": (NET,), "sets": ("0.5",), "seeds": 2}
    return compare.Config(**(values | {"training": TINY} | changes))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    write_run(run)
    return run


@pytest.fixture(scope="module")
def compared(made, cluster):
    return compare.run(config(made, faces=(20,), metric="auc", margin=0.3))


@pytest.fixture(autouse=True)
def one_thread():
    """As in the trainings: other numbers of threads sum in other orders."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def place(run, name, seed):
    return run / "out/detectors/timm-test_resnet" / name / f"seed-{seed}"


def measure_by_hand(run, location):
    """Number of test videos called right by a detector, and its AUC: pairs in order."""
    detector, about = checkpoint.load(str(location))
    probability = {}
    for row in tables.read_table(f"{run}/faces", "extract").to_pylist():
        crops = [crop.decode(image, SIZE_PX) for image in row["crop"]]
        with torch.inference_mode():
            logits = detector(torch.from_numpy(np.stack(crops))) if crops else torch.tensor([torch.nan])
        probability[row["video_id"]] = float(torch.sigmoid(logits.double()).mean())
    names = [f"g{group:02}-{label}" for group in range(15, 22) for label in (0, 1)]
    threshold = about["threshold"]["video"]
    right = sum((probability[name] > threshold) == (name[-1] == "1") for name in names[:-2])  # without a face: wrong
    reals, fakes = ([np.nan_to_num(probability[name], nan=0.5) for name in names[label::2]] for label in (0, 1))
    return right / len(names), np.mean([(fake > real) + (fake == real) / 2 for fake in fakes for real in reals])


@pytest.mark.ray
def test_every_detector_is_a_row(made, compared):
    table = tables.read_table(str(made / "out/comparison"), "compare")
    assert table.schema.remove_metadata().equals(schemas.COMPARISON)
    rows = table.to_pylist()
    assert [(row["architecture"], row["set"], row["seed"]) for row in rows] == [
        (NET, name, seed) for seed in (0, 1) for name in SETS
    ]
    faces = {group: 2 + group % 4 for group in range(12)}
    for row in rows:
        by_hand = measure_by_hand(made, place(made, row["set"], row["seed"]))
        assert (row["accuracy"], row["auc"]) == pytest.approx(by_hand, abs=1e-5)
        cost = checkpoint.load(str(place(made, row["set"], row["seed"])))[1]["cost"]
        assert {name: cost[name] for name in ("images", "seconds", "gpu_seconds")}.items() <= row.items()
    sizes = {row["set"]: (row["kind"], row["share"], row["num_videos"]) for row in rows}
    assert sizes.pop("faces-20")[:2] == ("faces", 20 / 84)
    assert sizes == {
        "full": ("full", 1.0, 24),
        "distill-50": ("distilled", 0.5, 12),
        "distill-50-random": ("random", 0.5, 12),
        "distill-50-frame_count": ("frame_count", 0.5, 12),
    }
    num_faces = {row["set"]: row["num_faces"] for row in rows}
    del num_faces["distill-50-random"]
    assert num_faces == {
        "full": 2 * sum(faces.values()),
        "distill-50": 2 * sum(faces[group] for group in range(6)),
        "distill-50-frame_count": 2 * sum(sorted(faces.values())[6:]),
        "faces-20": 20,
    }


@pytest.mark.ray
def test_detectors_learn_from_their_set(made, compared):
    learnt = {}
    for name in SETS[:-1]:
        for seed in (0, 1):
            folder = f"{name}-seed{seed}" if name == "distill-50-random" else name
            videos = tables.read_table(str(made / "out/sets" / folder), "compare").to_pylist()
            used = tables.read_table(str(place(made, name, seed) / "trained_on"), "train").to_pylist()
            learnt[name, seed] = {row["video_id"] for row in used if row["split"] == "train"}
            assert learnt[name, seed] == {row["video_id"] for row in videos}
            assert {row["video_id"] for row in used if row["split"] == "val"} == {
                f"g{group}-{label}" for group in (12, 13, 14) for label in (0, 1)
            }
            if name != "full":
                assert Counter(row["label"] for row in videos) == {0: 6, 1: 6}
    assert learnt["distill-50", 0] == {f"g{group:02}-{label}" for group in range(6) for label in (0, 1)}
    assert learnt["distill-50-random", 0] != learnt["distill-50-random", 1]
    assert learnt["distill-50-frame_count", 0] == learnt["distill-50-frame_count", 1]


@pytest.mark.ray
def test_what_is_told(made, compared):
    info = tables.read_info(str(made / "out/comparison"))
    assert [row["set"] for row in info["summary"]] == SETS
    assert [(one["set"], one["versus"], one["metric"], one["margin"]) for one in info["verdicts"]] == [
        ("distill-50", "full", "auc", 0.3),
        ("distill-50", "random", "auc", None),
        ("distill-50", "frame_count", "auc", None),
    ]
    summary = {row["set"]: row for row in info["summary"]}
    rows = tables.read_table(str(made / "out/comparison"), "compare").to_pylist()
    for name, row in summary.items():
        assert row["auc_mean"] == pytest.approx(np.mean([one["auc"] for one in rows if one["set"] == name]))
        assert row["num_seeds"] == 2
    for one in info["verdicts"]:
        other = "full" if one["versus"] == "full" else f"distill-50-{one['versus']}"
        assert one["difference"] == pytest.approx(summary["distill-50"]["auc_mean"] - summary[other]["auc_mean"])
    assert [row["num_faces"] for row in info["curve"]] == [84, 20]
    assert info["test"] == {"dataset": "made up", "num_videos": 14, "num_real": 7, "num_fake": 7}
    assert info["synthetic"] is False
    assert "2000 resamples" in info["protocol"]["text"]
    assert compared["verdicts"] == info["verdicts"]
    assert json.loads(json.dumps(compared)) == compared
    assert "distill-50" in storage.read_bytes(compared["report"]).decode()


def files(run):
    return {path: path.stat().st_mtime_ns for path in run.glob("out/detectors/**/weights.safetensors")}


@pytest.mark.ray
def test_a_rerun_trains_only_what_is_new(made, compared, capsys, monkeypatch):
    before = files(made)
    monkeypatch.chdir(made)
    again = compare.run(config(made, data=".", out="out", seeds=3))
    after = files(made)
    assert {path: after[path] for path in before} == before
    assert {path.parent.name for path in set(after) - set(before)} == {"seed-2"}
    assert again["detectors"] == 12
    shown = capsys.readouterr().err
    assert "12/12 detectors" in shown
    table = shown[shown.index(NET) :]
    for text in ("distill-50-frame_count", "recall", *(one["text"][:40] for one in again["verdicts"])):
        assert text in table
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.ray
def test_trouble_in_a_training_is_told_and_what_is_finished_stays(made, compared, tmp_path):
    before = files(made)
    other = replace(TINY, batch_size=4)
    with pytest.raises(UserError, match=r"made with other settings[\s\S]*batch_size: 8 there, 4 now"):
        compare.run(config(made, training=other))
    assert files(made).items() >= before.items()


@pytest.mark.ray
def test_a_training_whose_worker_dies_goes_on(made, cluster, tmp_path):
    """Killed after its first epoch, it ends as if nothing had happened. The driver is a program of its own."""
    import ray

    asked = config(made, out=str(tmp_path / "out"), sets=(), seeds=1, training=replace(TINY, epochs=6))
    detector = tmp_path / "out/detectors/timm-test_resnet/full/seed-0"
    code = "import sys; from raydistal import cli; cli.main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "compare", "--data", str(made), "--out", asked.out, "--architectures", NET]
    command += ["--sets", "--seeds", "1", "--weights", "random", "--recipe", "finetune", "--epochs", "6"]
    command += ["--batch-size", "8", "--learning-rate", "2e-3", "--input-px", str(SIZE_PX)]
    environment = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as program:
        while not (detector / epochs.CHECKPOINT).exists():
            assert program.poll() is None, program.stderr.read().decode()
            time.sleep(0.005)
        os.kill(json.loads((detector / "_lock.json").read_text())["pid"], signal.SIGKILL)
        assert not (detector / "detector.json").exists()
        _, told = program.communicate(timeout=200)
    assert program.returncode == 0, told.decode()
    train.fit(asked.to_train(NET, str(tmp_path / "alone"), str(made / "videos")))
    one, other = (checkpoint.load(str(place))[1] for place in (detector, tmp_path / "alone"))
    assert len(one["history"]) == 6
    assert one["digest"] == other["digest"]


def test_a_distilled_table_is_called_as_its_run(made, tmp_path):
    distilled = tables.read_table(str(made / "ranking"), "select")[:4]
    tables.write_table(str(tmp_path / "distill-50/distilled"), distilled, {})
    with pytest.raises(UserError, match="two of --sets are called distill-50"):
        compare.run(config(made, sets=("0.5", str(tmp_path / "distill-50/distilled"))))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ()}, "at least one of --architectures"),
        ({"architectures": (NET, NET)}, "--architectures names something twice"),
        ({"architectures": ("alexnet",)}, "unknown architecture 'alexnet'"),
        ({"sets": ("0.5", "0")}, "above 0 and below 1, not 0.5 0"),
        ({"sets": ("1.0",)}, "above 0 and below 1"),
        ({"sets": ("0.5", "0.50")}, "two of --sets are called distill-50"),
        ({"sets": ("/no/such/table",)}, "/no/such/table"),
        ({"sets": ("0.01",)}, r"set distill-1 has 0 faces of real videos.*--arrange balanced"),
        ({"faces": (1,)}, "--faces of at least 2"),
        ({"faces": (90,)}, "set full has 42 faces of real videos, at least 45"),
        ({"seeds": 0}, "--seeds"),
        ({"margin": 2.0}, "--margin"),
        ({"split": "val"}, "--split val is what detectors learn from"),
        ({"split": "pool"}, r"split 'pool' .* has 0 real and 0 fake.*'train': 24"),
        ({"data": "/no/such/run"}, "raydistal index"),
        ({"training": trainings.Training(recipe="best")}, "use one of thesis"),
        ({"training": trainings.Training(weights="/no/such/file")}, "--weights random"),
    ],
)
def test_wrong_use_is_told_before_any_work(made, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        compare.run(config(made, **({"out": str(tmp_path / "out")} | changes)))
    assert not (tmp_path / "out").exists()


def test_runs_that_cannot_be_compared_on(tmp_path):
    write_run(tmp_path / "a")
    storage.delete_folder(str(tmp_path / "a/ranking"))
    with pytest.raises(UserError, match="raydistal select"):
        compare.run(config(tmp_path / "a"))
    write_run(tmp_path / "b")
    videos = tables.read_table(str(tmp_path / "b/videos"), "index").to_pylist()
    videos[0]["split"] = "test"  # its fake stays in train
    tables.write_table(str(tmp_path / "b/videos"), pa.Table.from_pylist(videos, schemas.VIDEOS), {})
    with pytest.raises(UserError, match="1 groups are in test and in train or val, such as g00"):
        compare.run(config(tmp_path / "b"))
    write_run(tmp_path / "c", order=["g12-0", "g00-1"])
    with pytest.raises(UserError, match=r"1 of the 2 videos of .*ranking are not labelled training videos"):
        compare.run(config(tmp_path / "c"))
    write_run(tmp_path / "d")
    storage.delete(str(tmp_path / "d/faces" / tables.INFO))
    with pytest.raises(UserError, match="raydistal extract"):
        compare.run(config(tmp_path / "d"))


@pytest.fixture
def job(load_paper):
    """jobs/papers/deepdistal_table1.py, imported."""
    return load_paper("deepdistal_table1")


def test_what_deepdistal_says_is_the_default(job):
    """Section 3: whole frames; 4.1: 299 pixels, VGG16, E = 1000 for 50 % and 500 for 20 %, the rate 0.002."""
    config = job.Config(videos="v", out="o")
    extracted, selected, compared = config.to_extract(), config.to_select(), config.to_compare([])
    assert (extracted.faces.detector, extracted.faces.size_px, extracted.features.backbone) == ("none", 299, "vgg16")
    assert [(one.ratio, one.frames) for one in selected][:2] == [(0.5, 1000), (0.2, 500)]
    assert {(one.strategy, one.arrange, one.rounds) for one in selected} == {("entropy", "frequency", 1)}
    trained = compared.to_train("xception", "", "")
    assert (trained.weights, trained.input_px, trained.full_recipe().learning_rate) == ("imagenet", 299, 0.002)


@pytest.mark.ray
def test_table_1_of_deepdistal(cluster, job, tmp_path, clip_writer, capsys):
    for label in ("real", "fake"):
        (tmp_path / "videos" / label).mkdir(parents=True)
        for number in range(12):
            clip_writer(tmp_path / "videos" / label / f"{label}{number}.mp4", num_frames=6, seed=number)
    asked = job.Config(
        videos=str(tmp_path / "videos"),
        out=str(tmp_path / "run"),
        ratios=(0.5,),
        frames=(20,),
        arrange="balanced",
        sample="even:2",
        architectures=(NET,),
        seeds=1,
        faces=extract.Faces(detector="none", size_px=64),
        features=extract.Features(backbone="timm:mobilenetv3_small_050", weights="random"),
        training=trainings.Training(weights="random", recipe="deepdistal", epochs=1, input_px=32),
    )
    summary = job.run(asked)
    distilled = tables.read_info(str(tmp_path / "run/sets/distill-50"))["config"]
    assert (distilled["ratio"], distilled["frames"]) == (0.5, 20)
    assert summary["detectors"] == 4
    assert "With one seed" in summary["verdicts"][0]["text"]
    assert len(summary["verdicts"]) == 3
    shown = capsys.readouterr().err
    assert "paper" not in shown[shown.index("Table 1, in %") : shown.index("The paper's numbers")]
    info = tables.read_info(str(tmp_path / "run/table1/comparison"))
    for row in info["summary"]:
        row["architecture"] = "xception"
    job.show(info)
    shown = " ".join(capsys.readouterr().err.split())
    assert "distill-50 xception paper 99.05 96.06 97.53 97.57 distill-50 xception ours" in shown
    with pytest.raises(UserError, match="as many --frames as --ratios"):
        job.Config(videos="v", out="o", ratios=(0.5,))
