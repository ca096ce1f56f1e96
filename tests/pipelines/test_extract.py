"""The extract pipeline on a local cluster."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from raydistal import storage, tables
from raydistal.errors import UserError
from raydistal.faces import look
from raydistal.features.backbones import FeatureExtractor, load
from raydistal.pipelines import extract, streaming
from raydistal.schemas import faces_schema

pytestmark = pytest.mark.ray

NETWORK = extract.Features(backbone="timm:mobilenetv3_small_050", weights="random", precision="float32")
WHOLE = extract.Faces(detector="none", size_px=64)


def config(run, **changes):
    return extract.Config(**{"out": str(run), "sample": "even:4", "faces": WHOLE, "features": NETWORK} | changes)


@pytest.fixture(scope="session")
def clips(tmp_path_factory, clip_writer):
    folder = tmp_path_factory.mktemp("clips")
    return [clip_writer(folder / f"clip{n}.mp4", num_frames=12, seed=n) for n in range(6)]


@pytest.fixture(scope="session")
def mixed(tmp_path_factory, clips):
    """Good clips among files that are none."""
    folder = tmp_path_factory.mktemp("mixed")
    good = [shutil.copy(clip, folder) for clip in clips[:3]]
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("text")
    content = clips[0].read_bytes()
    (folder / "truncated.mp4").write_bytes(content[: len(content) // 2])
    return [*good, *(folder / name for name in ("empty.mp4", "text.mp4", "truncated.mp4", "absent.mp4"))]


def test_every_video_has_one_row_and_a_rerun_does_nothing(cluster, tmp_path, mixed, write_videos):
    write_videos(tmp_path, mixed)
    summary = extract.run(config(tmp_path))
    faces = tables.read_table(str(tmp_path / "faces"), "extract").sort_by("video_id")
    assert faces.schema.remove_metadata().equals(faces_schema(1024))
    rows = faces.select(["video_id", "status", "error", "num_frames_seen", "frame_index"]).to_pylist()
    good = [
        {"video_id": f"clip{n}.mp4", "status": "ok", "error": None, "num_frames_seen": 4, "frame_index": [0, 4, 7, 11]}
        for n in range(3)
    ]
    bad = [row for row in rows if row["status"] == "decode_error"]
    assert [row for row in rows if row["status"] == "ok"] == good
    assert [row["video_id"] for row in bad] == ["absent.mp4", "empty.mp4", "text.mp4", "truncated.mp4"]
    assert all(row["error"] and row["frame_index"] == [] for row in bad)
    assert {key: summary[key] for key in ("videos", "ok", "decode_error", "done_before", "new_faces")} == {
        "videos": 7,
        "ok": 3,
        "decode_error": 4,
        "done_before": 0,
        "new_faces": 12,
    }
    info = tables.read_info(str(tmp_path / "faces"))
    assert info["counts"] == {"decode_error": 4, "ok": 3}
    assert info["stages"]["num_faces"] == 12

    before = {name: storage.read_bytes(f"{tmp_path}/faces/{name}") for name in storage.list_files(f"{tmp_path}/faces")}
    again = extract.run(config(tmp_path))
    after = {name: storage.read_bytes(f"{tmp_path}/faces/{name}") for name in storage.list_files(f"{tmp_path}/faces")}
    assert again["done_before"] == 7
    assert before == after


def test_features_and_crops_are_those_of_the_stages_alone(cluster, tmp_path, clips, write_videos):
    write_videos(tmp_path, clips[:2])
    extract.run(config(tmp_path))
    faces = tables.read_table(str(tmp_path / "faces"), "extract").sort_by("video_id")
    options = {"scale_factor": 1.2, "min_neighbors": 5, "min_face": 0.1, "margin": 0.3, "crops": "png"}
    network = FeatureExtractor(load(NETWORK.backbone, "random"), "float32")
    for number, clip in enumerate(clips[:2]):
        row = look.look(str(clip), clip.name, "even:4", detector="none", size_px=64, **options)
        assert faces["crop"][number].as_py() == row["crop"][0].as_py()
        pixels_NHWC = row["pixels"].combine_chunks().flatten().flatten().to_numpy().reshape(4, 64, 64, 3)
        features_ND = np.array(faces["feature"][number].as_py())
        np.testing.assert_allclose(features_ND, network(pixels_NHWC), rtol=0.02, atol=0.01)


def test_new_videos_are_added_and_other_settings_refused(cluster, tmp_path, clips, write_videos):
    write_videos(tmp_path, clips[:2])
    extract.run(config(tmp_path))
    write_videos(tmp_path, clips[:4])
    summary = extract.run(config(tmp_path))
    assert (summary["videos"], summary["done_before"]) == (4, 2)
    with pytest.raises(UserError, match="sample: 'even:4' there, 'even:5' now"):
        extract.run(config(tmp_path, sample="even:5"))
    assert tables.read_table(str(tmp_path / "faces"), "extract").num_rows == 4


def test_output_below_a_file(tmp_path, clips, write_videos):
    write_videos(tmp_path, clips[:1])
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=f"cannot write to {tmp_path}/file/faces"):
        extract.run(config(tmp_path, manifest=str(tmp_path / "videos"), out=str(tmp_path / "file")))


def test_retry_failed(cluster, tmp_path, clips, write_videos):
    copy = tmp_path / "late.mp4"
    write_videos(tmp_path, [clips[0], copy])
    assert extract.run(config(tmp_path))["decode_error"] == 1
    shutil.copy(clips[1], copy)
    assert extract.run(config(tmp_path))["decode_error"] == 1
    summary = extract.run(config(tmp_path, retry_failed=True))
    assert (summary["ok"], summary["done_before"]) == (2, 1)


def test_real_and_fake_are_sampled_differently(cluster, tmp_path, clips, write_videos):
    write_videos(tmp_path, clips[:2], labels=[0, 1])
    crops_off = extract.Faces(detector="none", size_px=64, crops="none")
    extract.run(config(tmp_path, sample="every:6", sample_fake="random:3", faces=crops_off))
    faces = tables.read_table(str(tmp_path / "faces"), "extract").sort_by("video_id")
    assert faces["frame_index"][0].as_py() == [0, 6]
    assert len(faces["frame_index"][1]) == 3
    assert faces["crop"].null_count == 2


def test_a_time_limit_is_a_row(cluster, tmp_path, clips, write_videos):
    write_videos(tmp_path, clips[:1])
    summary = extract.run(config(tmp_path, timeout_s=0.001))
    faces = tables.read_table(str(tmp_path / "faces"), "extract")
    assert summary["timeout"] == 1
    assert "--timeout-s" in faces["error"][0].as_py()


@pytest.mark.parametrize(
    ("active", "waiting_bytes", "next_active", "allowed"),
    [(0, 0, 1, True), (7, 99, 1, True), (8, 0, 1, False), (0, 100, 1, False), (0, 100, 0, True)],
)
def test_a_stage_does_not_run_far_ahead(active, waiting_bytes, next_active, allowed):
    """4 CPUs, queues of 100 bytes."""
    resources = SimpleNamespace(
        get_global_limits=lambda: SimpleNamespace(object_store_memory=100),
        get_mem_op_outputs=lambda _op: waiting_bytes,
    )
    following = SimpleNamespace(num_active_tasks=lambda: next_active)
    op = SimpleNamespace(
        num_active_tasks=lambda: active, output_dependencies=[following], get_autoscaling_actor_pools=lambda: []
    )
    policy = streaming.policy(SimpleNamespace(cpus=4, max_cpus=99))
    assert policy(None, None, resources).can_add_input(op) is allowed


def test_no_manifest(tmp_path):
    with pytest.raises(UserError, match="raydistal index"):
        extract.run(config(tmp_path))


@pytest.mark.parametrize(
    "make",
    [
        lambda: extract.Faces(crops="gif"),
        lambda: extract.Faces(size_px=8),
        lambda: extract.Faces(scale_factor=1.0),
        lambda: extract.Config(out="x", sample="ten"),
        lambda: extract.Config(out="x", timeout_s=0),
    ],
)
def test_bad_settings(make):
    with pytest.raises(UserError):
        make()
