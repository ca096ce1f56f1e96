import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydistal import schemas, storage, tables
from raydistal.errors import UserError

CONFIG = {"sample": "even:10", "size_px": 299}


def statuses(*pairs: tuple[str, str]) -> pa.Table:
    return pa.table({"video_id": [name for name, _ in pairs], "status": [status for _, status in pairs]})


def faces_row(video_id: str, num_faces: int) -> pa.Table:
    table = pa.table(
        {
            "video_id": [video_id],
            "status": ["ok" if num_faces else "no_face"],
            "num_frames_seen": [num_faces],
            "frame_index": schemas.list_column(np.arange(num_faces, dtype=np.int32), [num_faces]),
            "pts_s": schemas.list_column(np.arange(num_faces) / 25, [num_faces]),
            "box_xyxy_px": schemas.list_column(np.zeros((num_faces, 4), np.float32), [num_faces]),
            "detection_score": schemas.list_column(np.ones(num_faces, np.float32), [num_faces]),
            "feature": schemas.list_column(np.full((num_faces, 3), len(video_id), np.float16), [num_faces]),
        }
    )
    return schemas.conform(table, schemas.faces_schema(3))


def test_conform_names_what_is_wrong():
    with pytest.raises(ValueError, match="'uri' is missing"):
        schemas.conform(pa.table({"video_id": ["a"], "dataset": ["d"]}), schemas.VIDEOS)
    bad = faces_row("a", 1).set_column(1, "status", pa.array([None], pa.string()))
    with pytest.raises(ValueError, match="'status' is required but has 1 nulls"):
        schemas.conform(bad, schemas.faces_schema(3))
    assert schemas.conform(faces_row("a", 2), schemas.faces_schema(3))["crop"].to_pylist() == [None]


def test_list_column_equals_python_lists():
    values_N2 = np.arange(10, dtype=np.float32).reshape(5, 2)
    assert schemas.list_column(values_N2, [2, 0, 3]).to_pylist() == [
        values_N2[:2].tolist(),
        [],
        values_N2[2:].tolist(),
    ]
    assert schemas.list_column(np.arange(3), [1, 2]).to_pylist() == [[0], [1, 2]]


def test_explode_faces_keeps_order_and_drops_empty_videos():
    faces = pa.concat_tables([faces_row("a", 2), faces_row("bb", 0), faces_row("ccc", 1)])
    exploded = tables.explode_faces(faces)
    assert exploded.select(["video_id", "frame_index", "feature"]).to_pylist() == [
        {"video_id": "a", "frame_index": 0, "feature": [1, 1, 1]},
        {"video_id": "a", "frame_index": 1, "feature": [1, 1, 1]},
        {"video_id": "ccc", "frame_index": 0, "feature": [3, 3, 3]},
    ]
    assert "crop" not in exploded.column_names


@pytest.mark.parametrize("place", ["local", "s3"])
def test_write_and_read_a_table(place, tmp_path, request):
    root = str(tmp_path) if place == "local" else request.getfixturevalue("s3") + "/run"
    location = storage.join(root, "faces")
    tables.write_table(location, faces_row("a", 1), CONFIG, counts={"ok": 1})
    tables.write_table(location, faces_row("b", 2), CONFIG, counts={"ok": 1})
    assert tables.read_table(location, "extract", ["video_id"]).to_pylist() == [{"video_id": "b"}]
    info = tables.read_info(location)
    assert (info["table"], info["config"], info["counts"]) == ("faces/1", CONFIG, {"ok": 1})
    assert info["fingerprint"] == tables.fingerprint(CONFIG) != tables.fingerprint(CONFIG | {"size_px": 224})


def test_a_scan_holds_few_parts(tmp_path, monkeypatch):
    place, read, read_part = str(tmp_path / "t"), [], tables.read_part
    for number in range(12):
        tables.write_part(place, statuses((f"v{number}", "ok")), CONFIG)
    monkeypatch.setattr(tables, "READERS", 2)
    monkeypatch.setattr(tables, "read_part", lambda *arguments: read.append(arguments) or read_part(*arguments))
    found = []
    for name, rows in tables.scan(place, "extract", ["video_id"]):
        found.append((name, rows["video_id"].to_pylist()))
        assert len(read) <= len(found) + 2 * 2
    assert [name for name, _ in found] == tables.part_names(place)
    assert {video_id for _, ids in found for video_id in ids} == {f"v{number}" for number in range(12)}


def test_a_table_that_is_not_there_names_the_command(tmp_path):
    with pytest.raises(UserError, match="raydistal index"):
        tables.read_table(str(tmp_path / "videos"), "index")
    assert tables.read_info(str(tmp_path / "videos")) == {}


def test_writing_the_same_rows_again_does_not_double_them(tmp_path):
    location = str(tmp_path / "faces")
    for _ in range(2):
        tables.write_part(location, statuses(("a", "ok"), ("b", "no_face")), CONFIG)
    tables.write_part(location, statuses(("c", "ok")), CONFIG)
    ledger = tables.read_ledger(location, CONFIG)
    assert sorted(ledger["video_id"].to_pylist()) == ["a", "b", "c"]


def test_ledger_removes_what_a_killed_writer_left(tmp_path, capsys):
    location = tmp_path / "faces"
    tables.write_part(str(location), statuses(("a", "ok")), CONFIG)
    (whole,) = location.iterdir()
    (location / "part-truncated.parquet").write_bytes(whole.read_bytes()[:-20])
    (location / "part-empty.parquet").write_bytes(b"")
    (location / ".tmp-123").write_bytes(b"half a part")
    (location / "notes.txt").write_text("not ours")
    ledger = tables.read_ledger(str(location), CONFIG)
    assert ledger.to_pylist() == [{"video_id": "a", "status": "ok"}]
    assert sorted(path.name for path in location.iterdir()) == ["notes.txt", whole.name]
    assert capsys.readouterr().err.count("removed an unreadable part") == 2


def test_ledger_refuses_other_settings_and_says_which(tmp_path):
    location = str(tmp_path / "faces")
    tables.write_part(location, statuses(("a", "ok")), CONFIG)
    with pytest.raises(UserError, match=r"size_px: 299 there, 224 now") as error:
        tables.read_ledger(location, CONFIG | {"size_px": 224})
    assert "sample" not in str(error.value)
    assert tables.read_ledger(location, CONFIG).num_rows == 1  # nothing was lost


def test_ledger_refuses_what_others_wrote_and_keeps_it(tmp_path):
    tables.write_part(str(tmp_path), statuses(("a", "ok")), CONFIG)
    pa.parquet.write_table(pa.table({"a": [1]}), tmp_path / "part-0.parquet")
    with pytest.raises(UserError, match=r"part-0\.parquet was not written by raydistal"):
        tables.read_ledger(str(tmp_path), CONFIG)
    assert (tmp_path / "part-0.parquet").exists()


def test_drop_failed_keeps_the_rest(tmp_path):
    location = str(tmp_path / "faces")
    tables.write_part(location, statuses(("a", "ok"), ("b", "timeout"), ("c", "no_face")), CONFIG)
    tables.write_part(location, statuses(("d", "crashed")), CONFIG)
    assert tables.drop_failed(location, CONFIG) == 2
    assert sorted(tables.read_ledger(location, CONFIG)["video_id"].to_pylist()) == ["a", "c"]


@pytest.fixture
def fast_beats(monkeypatch):
    monkeypatch.setattr(tables, "BEAT_S", 0.2)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_two_writers_are_refused(place, tmp_path, request, fast_beats):
    root = str(tmp_path) if place == "local" else request.getfixturevalue("s3") + "/run"
    with tables.sole_writer(root) as claim:
        with pytest.raises(UserError, match=f"being written by process {os.getpid()}"), tables.sole_writer(root):
            pass
        claim.check()
    with tables.sole_writer(root):
        pass
    assert not storage.exists(storage.join(root, tables.LOCK))


def test_a_claim_of_a_dead_process_is_taken_over(tmp_path):
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    held = {"owner": "x", "host": __import__("socket").gethostname(), "pid": int(process.stdout), "beat": 3}
    storage.write_bytes(str(tmp_path / tables.LOCK), json.dumps(held).encode())
    with tables.sole_writer(str(tmp_path)):
        pass


@pytest.mark.slow
def test_a_silent_claim_of_another_host_is_taken_over(tmp_path, fast_beats):
    held = {"owner": "x", "host": "another-host", "pid": 1, "beat": 3}
    storage.write_bytes(str(tmp_path / tables.LOCK), json.dumps(held).encode())
    with tables.sole_writer(str(tmp_path)):
        pass


@pytest.mark.slow
def test_a_writer_that_lost_its_claim_stops(tmp_path, fast_beats):
    with tables.sole_writer(str(tmp_path)) as claim:
        other = json.dumps({"owner": "other", "host": "h", "pid": 1, "beat": 0}).encode()
        storage.write_bytes(str(tmp_path / tables.LOCK), other)
        time.sleep(3 * tables.BEAT_S)  # a beat must not take it back
        with pytest.raises(RuntimeError, match="another process took over"):
            claim.check()
    assert (tmp_path / tables.LOCK).read_bytes() == other  # the new owner's claim stays


@pytest.mark.slow
def test_parts_never_show_half(tmp_path):
    """A reader that lists while a writer writes sees whole parts only."""
    location = tmp_path / "faces"
    script = (
        "import sys; from raydistal import tables; import pyarrow as pa\n"
        "for i in range(100000):\n"
        "    ids = [str(i * 1000 + j) for j in range(1000)]\n"
        "    tables.write_part(sys.argv[1], pa.table({'video_id': ids, 'status': ['ok'] * 1000}), {})"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(location)]) as writer:
        deadline = time.monotonic() + 120
        while len(tables.part_names(str(location))) < 50 and time.monotonic() < deadline:
            for name in tables.part_names(str(location)):
                assert pa.parquet.read_metadata(Path(location, name)).num_rows == 1000
        writer.kill()
    assert tables.read_ledger(str(location), {}).num_rows >= 50_000
