"""From a run to a file, and from the file and another copy of the dataset to the same run, on a local cluster."""

import dataclasses
import getpass
import json
import shutil
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raydistal import cli, schemas, storage, tables
from raydistal.errors import DecodeError, UserError
from raydistal.faces import crop, look
from raydistal.pipelines import extract, index, materialize, select, share, verify
from raydistal.sharing import manifest

pytestmark = pytest.mark.ray

EXTRACTED = ("video_id", "frame_index", "pts_s", "box_xyxy_px", "detection_score", "crop")


@pytest.fixture(scope="module")
def sent(cluster, tmp_path_factory, clip_writer):
    """A folder with a dataset, its run, and what was shared of that: seven videos, one of which is no video."""
    folder = tmp_path_factory.mktemp("alice")
    for label in ("real", "fake"):
        (folder / "data" / label).mkdir(parents=True)
        for number in range(3):
            clip_writer(folder / "data" / label / f"{number}.mp4", num_frames=12, seed=number + 10 * (label == "fake"))
    (folder / "data" / "real" / "text.mp4").write_text("not a video")
    run = str(folder / "run")
    index.run(index.Config(videos=str(folder / "data"), out=run, dataset="made up", split=(1, 0, 0)))
    write_faces(run)
    videos = tables.read_table(f"{run}/videos", "index").sort_by("uri")
    videos = videos.append_column("rank", pa.array(range(len(videos))))
    tables.write_table(
        f"{run}/distilled", schemas.conform(videos, schemas.DISTILLED), {"strategy": "entropy", "seed": 0}
    )
    told = share.run(share.Config(data=run, out=str(folder / "set.parquet")))
    assert {"videos": 7, "faces": 18, "left_out": 0}.items() <= told.items()
    return folder


def write_faces(run):
    """As `extract` does, with one number as feature."""
    config = extract.Config(out=run, sample="even:3", faces=extract.Faces(detector="none", size_px=48))
    rows = []
    for video in tables.read_table(f"{run}/videos", "index").to_pylist():
        try:
            found = look.look(video["uri"], video["video_id"], config.sample, **dataclasses.asdict(config.faces))
        except DecodeError as error:
            found = look.row(video["video_id"], error.status, str(error), 48, "png")
        rows.append({**found.drop_columns(["pixels"]).to_pylist()[0], "feature": [[1.0]] * len(found["pts_s"][0])})
    for some in (rows[:4], rows[4:]):
        part = pa.Table.from_pylist(some, schemas.faces_schema(1))
        tables.write_part(f"{run}/faces", part, extract.result_settings(config))
    tables.write_info(f"{run}/faces", extract.result_settings(config), num_rows=len(rows), counts={})


def crops_of(run):
    rows = tables.read_table(f"{run}/faces", "extract", list(EXTRACTED)).sort_by("video_id").to_pylist()
    return [row for row in rows if row["frame_index"]]


def checked(sent, run):
    return verify.run(verify.Config(manifest=str(sent / "set.parquet"), out=str(run)))


def test_the_file_is_the_same_each_time_and_tells_neither_faces_nor_places(sent):
    again = share.run(share.Config(data=str(sent / "run"), out=str(sent / "again.parquet")))
    assert again["videos"] == 7
    assert storage.read_bytes(str(sent / "again.parquet")) == storage.read_bytes(str(sent / "set.parquet"))
    shared = manifest.read(str(sent / "set.parquet"))
    kinds = {field.type for field in shared.videos.schema}
    assert not {pa.binary(), pa.list_(pa.binary())} & kinds
    told = json.dumps([shared.about, shared.videos.to_pylist()])
    for secret in (str(sent), "alice", "/tmp", "/home", f"/{getpass.getuser()}", "\\u0089PNG"):
        assert secret not in told
    assert {row["path"] for row in shared.videos.to_pylist()} >= {"real/0.mp4", "fake/2.mp4", "real/text.mp4"}
    assert shared.about["faces"]["detector"] == "none"
    assert shared.about["selection"] == {"strategy": "entropy", "seed": 0}
    assert shared.about["versions"] == tables.versions()


def test_what_needs_no_cluster(sent, tmp_path, no_cluster):
    no_cluster(materialize)
    shared = manifest.read(str(sent / "set.parquet"))
    settings = shared.about["faces"] | {"backbone": "none", "manifest": shared.digest}
    done = shared.videos.select(["video_id"]).append_column("status", pa.array(["ok"] * 7))
    for out, num in (("all", 7), ("some", 3)):
        tables.write_part(f"{tmp_path}/{out}/faces", done[:num], settings)
        tables.write_info(f"{tmp_path}/{out}/faces", settings)
    asked = materialize.Config(manifest=str(sent / "set.parquet"), videos="/no/such", out=f"{tmp_path}/all")
    assert materialize.run(asked)["done_before"] == 7
    with pytest.raises(UserError, match="Point --videos at your copy"):
        materialize.run(dataclasses.replace(asked, out=f"{tmp_path}/some"))
    assert tables.read_info(f"{tmp_path}/some/faces")


def test_a_run_is_rebuilt_from_another_copy(sent, tmp_path, clip_writer):
    copy, run = tmp_path / "bob" / "copy", tmp_path / "run"
    shutil.copytree(sent / "data", copy)
    (copy / "real" / "0.mp4").rename(copy / "moved.mp4")
    altered = bytearray((copy / "real" / "1.mp4").read_bytes())
    altered[-1] ^= 1
    (copy / "real" / "1.mp4").write_bytes(altered)
    (copy / "fake" / "2.mp4").unlink()
    asked = materialize.Config(manifest=str(sent / "set.parquet"), videos=str(copy), out=str(run))
    told = materialize.run(asked)
    assert {
        "videos": 7,
        "ok": 4,
        "missing": 1,
        "other_file": 1,
        "decode_error": 1,
        "done_before": 0,
    }.items() <= told.items()
    ids = {row["video_id"]: row["path"] for row in manifest.read(str(sent / "set.parquet")).videos.to_pylist()}
    errors = tables.read_table(f"{run}/faces", "materialize", ["video_id", "error"]).to_pylist()
    errors = {ids[row["video_id"]]: row["error"] for row in errors if row["error"]}
    assert errors["real/1.mp4"].startswith(f"not the file that was shared: {len(altered)} bytes")
    assert errors["fake/2.mp4"].startswith("cannot be read")
    assert errors["real/text.mp4"] == "decode_error where it was shared"
    assert crops_of(run) == [row for row in crops_of(sent / "run") if ids[row["video_id"]] not in errors]
    videos = tables.read_table(f"{run}/videos", "materialize")
    assert {ids[row["video_id"]]: row["uri"] for row in videos.to_pylist()} == {
        path: str(copy / ("moved.mp4" if path == "real/0.mp4" else path)) for path in ids.values()
    }
    verdict = checked(sent, run)
    assert (verdict["exact"], verdict["faces"], verdict["exact_faces"]) == (False, 18, 12)
    assert verdict["videos"] == {"exact": 5, "missing": 1, "other_file": 1}

    told = materialize.run(materialize.Config(manifest=asked.manifest, videos=str(sent / "data"), out=str(run)))
    assert {"ok": 6, "decode_error": 1, "done_before": 4}.items() <= told.items()
    assert crops_of(run) == crops_of(sent / "run")
    uris = set(tables.read_table(f"{run}/videos", "materialize")["uri"].to_pylist())
    assert {str(copy / "moved.mp4"), str(sent / "data" / "fake" / "2.mp4")} <= uris
    assert (
        tables.read_table(f"{run}/distilled", "materialize")
        .drop_columns(["uri"])
        .equals(tables.read_table(str(sent / "run" / "distilled"), "select").sort_by("rank").drop_columns(["uri"]))
    )
    assert {"exact": True, "exact_faces": 18, "other_versions": {}}.items() <= checked(sent, run).items()
    with pytest.raises(UserError, match="materialized and have no features"):
        select.run(select.Config(out=str(run)))
    tamper(run)
    verdict = checked(sent, run)
    assert (verdict["exact"], verdict["exact_faces"]) == (False, 17)
    table = tables.read_table(f"{run}/verification", "verify").to_pylist()
    assert [row["detail"] for row in table if row["status"] == "faces_differ"] == ["1 of 3 faces not as shared"]
    half = tables.read_table(str(sent / "run" / "distilled"), "select")[:3]
    tables.write_table(str(tmp_path / "half"), half, {})
    other = str(tmp_path / "half.parquet")
    share.run(share.Config(data=str(sent / "run"), out=other, manifest=str(tmp_path / "half")))
    with pytest.raises(UserError, match="manifest: "):
        materialize.run(materialize.Config(manifest=other, videos=asked.videos, out=asked.out))


def tamper(run):
    """Changes one value of one pixel of one crop."""
    for path in run.glob("faces/part-*"):
        part = pq.read_table(path)
        rows = part.to_pylist()
        if images := rows[0]["crop"]:
            image_HWC = crop.decode(images[1], 48)
            image_HWC[20, 30, 1] ^= 1
            images[1] = crop.encode(image_HWC, "png")
            pq.write_table(pa.Table.from_pylist(rows, part.schema), path)
            return


def test_videos_go_along_and_those_that_cannot_be_read_are_left_out(sent, tmp_path, capsys):
    shutil.copytree(sent / "run", tmp_path / "run")
    run = str(tmp_path / "run")
    storage.delete_folder(f"{run}/sources")
    videos = tables.read_table(f"{run}/videos", "index").sort_by("uri").to_pylist()
    for row, split in zip(videos, ("train", "val", "test", "test", "train", "train", "train"), strict=True):
        row["split"] = split
    videos[1]["uri"] = "/not/there.mp4"
    tables.write_table(f"{run}/videos", pa.Table.from_pylist(videos, schemas.VIDEOS), {})
    chosen = pa.Table.from_pylist(videos[:1], schemas.VIDEOS).append_column("rank", pa.array([0]))
    tables.write_table(f"{run}/distilled", chosen, {})
    asked = share.Config(data=run, out=str(tmp_path / "set.parquet"), also=("val", "test"))
    assert {"videos": 3, "left_out": 1}.items() <= share.run(asked).items()
    assert "1 of 4 videos are left out" in capsys.readouterr().err
    shared = manifest.read(asked.out).videos.to_pylist()
    assert {(row["video_id"], row["split"], row["rank"]) for row in shared} == {
        (videos[0]["video_id"], "train", 0),
        (videos[2]["video_id"], "test", None),
        (videos[3]["video_id"], "test", None),
    }
    videos[1]["uri"] = str(sent / "data" / "fake" / "1.mp4")
    tables.write_table(f"{run}/videos", pa.Table.from_pylist(videos, schemas.VIDEOS), {})
    assert {"videos": 4, "left_out": 0}.items() <= share.run(asked).items()


def test_wrong_use(tmp_path, write_run):
    with pytest.raises(UserError, match="\\.parquet"):
        share.Config(data="RUN", out="set")
    with pytest.raises(UserError, match="raydistal extract"):
        share.run(share.Config(data=str(tmp_path), out="set.parquet"))
    with pytest.raises(UserError, match="credentials"):
        materialize.Config(manifest="set.parquet", videos="s3://key:secret@bucket/data", out="run")
    write_run(tmp_path / "run", crops="none")
    with pytest.raises(UserError, match="keeps no crops"):
        share.run(share.Config(data=str(tmp_path / "run"), out="set.parquet"))
    with pytest.raises(UserError, match="raydistal share makes one"):
        materialize.run(
            materialize.Config(manifest=str(tmp_path / "no"), videos=str(tmp_path), out=str(tmp_path / "r"))
        )
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("exact", [True, False])
def test_exit_code(monkeypatch, capsys, exact):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which the command line replaces
    monkeypatch.setitem(cli.RUNS, verify.Config, lambda config: {"exact": exact})
    code = 0
    try:
        cli.main(["verify", "--manifest", "set.parquet", "--out", "run"])
    except SystemExit as end:
        code = end.code
    assert code == (0 if exact else 1)
    assert json.loads(capsys.readouterr().out) == {"exact": exact}
