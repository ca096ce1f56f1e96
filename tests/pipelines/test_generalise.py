"""Leave one method out, on made-up faces: noise, the fakes brighter."""

import json

import numpy as np
import pyarrow as pa
import pytest

from raydistal import schemas, storage, tables
from raydistal.detector import checkpoint, evaluated
from raydistal.detector.examples import Limits
from raydistal.errors import UserError
from raydistal.faces import crop
from raydistal.pipelines import generalise
from raydistal.pipelines.trainings import Training

SIZE_PX = 32
SPLITS = ("train",) * 8 + ("val",) * 2 + ("test",) * 6
METHODS = ("swap", "warp")
NET = "timm:test_resnet"
TINY = Training(weights="random", recipe="finetune", epochs=1, batch_size=8, learning_rate=2e-3, input_px=SIZE_PX)


def write_run(run, methods=METHODS):
    """A real video and a fake of each method per group."""
    rng = np.random.default_rng(0)
    videos, faces = [], []
    for group, split in enumerate(SPLITS):
        for method in (None, *methods):
            video_id = f"g{group:02}-{method}"
            videos.append({"video_id": video_id, "dataset": "made up", "uri": f"/{video_id}.mp4", "method": method})
            videos[-1] |= {"label": int(method is not None), "group_id": f"g{group:02}", "split": split}
            images = rng.integers(0, 180, (3, SIZE_PX, SIZE_PX, 3)) + 40 * (method is not None)
            row = {"video_id": video_id, "status": "ok", "num_frames_seen": 3, "frame_index": [0, 1, 2]}
            row |= {"pts_s": [0.0, 0.1, 0.2], "box_xyxy_px": [[0, 0, 9, 9]] * 3, "detection_score": [1.0] * 3}
            row |= {"feature": [[0.0, 1.0]] * 3}
            faces.append(row | {"crop": [crop.encode(image.astype(np.uint8), "png") for image in images]})
    tables.write_table(f"{run}/videos", pa.Table.from_pylist(videos, schemas.VIDEOS), {})
    settings = {"sample": "even:3", "detector": "none", "crops": "png", "size_px": SIZE_PX}
    tables.write_part(f"{run}/faces", pa.Table.from_pylist(faces, schemas.faces_schema(2)), settings)
    tables.write_info(f"{run}/faces", settings, num_rows=len(faces), counts={"ok": len(faces)})
    return str(run)


def config(run, **changes):
    values = {"data": run, "out": f"{run}/out", "architectures": (NET,), "seeds": 1, "training": TINY}
    return generalise.Config(**(values | changes))


@pytest.mark.ray
def test_a_method_is_left_out(tmp_path, cluster, capsys):
    run = write_run(tmp_path)
    asked = config(run, methods=("swap",))
    summary = generalise.run(asked)
    rows = tables.read_table(f"{run}/out/generalisation", "generalise")
    assert rows.schema.remove_metadata().equals(schemas.GENERALISATION)
    rows = rows.to_pylist()
    assert [(row["left_out"], row["tested"]) for row in rows] == [
        (left_out, tested) for left_out in (None, "swap") for tested in METHODS
    ]
    evaluation = evaluated.read(f"{run}/out/evaluation")
    for row in rows:
        trained = asked.to_train(NET, row["left_out"], 0)
        learnt = {one["video_id"] for one in tables.read_table(f"{trained.out}/trained_on", "train").to_pylist()}
        expected = {None, *METHODS} - ({row["left_out"]} - {None})
        assert learnt == {f"g{group:02}-{method}" for group in range(10) for method in expected}
        said = evaluation.results(evaluation.names[trained.out], storage.absolute(run).rsplit("/", 1)[-1])
        reals, fakes = (said.probability_V[said.method_V == method] for method in (None, row["tested"]))
        assert row["auc"] == pytest.approx(np.mean(fakes[:, None] > reals))
        assert row["recall"] == np.mean(fakes > checkpoint.read_about(trained.out)["threshold"]["video"])
        assert (row["num_fake"], row["num_faces"]) == (6, 8 * 3 * len(expected))
    info = tables.read_info(f"{run}/out/generalisation")
    assert [row["method"] for row in info["gaps"]] == ["swap"]
    assert info["learnt"] == list(METHODS)
    assert info["test"]["num_videos"] == 18
    assert json.loads(json.dumps(summary)) == summary | {"gaps": info["gaps"], "detectors": 2}
    shown = capsys.readouterr().err
    assert max(map(len, shown[shown.index("AUC of") :].splitlines())) <= 80
    page = storage.read_bytes(summary["report"]).decode()
    assert "all but swap" in page
    assert page.count("unseen \N{MIDDLE DOT}") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ()}, "at least one of --architectures"),
        ({"architectures": ("alexnet",)}, "unknown architecture 'alexnet'"),
        ({"methods": ("swap", "swap")}, "--methods names something twice"),
        ({"methods": ("morph",)}, "no fakes of 'morph' in train. Methods: swap, warp"),
        ({"limits": Limits(leave_out=("swap",))}, "fakes of two in train of .*, which has those of warp"),
        ({"seeds": 0}, "--seeds"),
        ({"margin": 1.0}, "--margin"),
        ({"split": "train"}, "--split train is what detectors learn from"),
    ],
)
def test_wrong_use_is_told_before_any_work(tmp_path, changes, message):
    run = write_run(tmp_path)
    with pytest.raises(UserError, match=message):
        generalise.run(config(run, **changes))
    assert not (tmp_path / "out").exists()


def test_a_method_that_is_not_tested(tmp_path):
    run = write_run(tmp_path)
    videos = tables.read_table(f"{run}/videos", "index").to_pylist()
    kept = [row for row in videos if not (row["method"] == "warp" and row["split"] == "test")]
    tables.write_table(f"{run}/videos", pa.Table.from_pylist(kept, schemas.VIDEOS), {})
    with pytest.raises(UserError, match="no fakes of 'warp' in split test"):
        generalise.run(config(run))
