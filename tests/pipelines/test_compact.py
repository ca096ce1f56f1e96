"""Parts merged; and killed after each of its steps. No cluster."""

import itertools
import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raydistal import storage, tables
from raydistal.errors import UserError
from raydistal.pipelines import compact

CONFIG = {"crops": "png"}


def write_parts(location, num_parts, config=CONFIG):
    for number in range(num_parts):
        ids = [f"{number}-{row}" for row in range(2)]
        tables.write_part(location, pa.table({"video_id": ids, "status": ["ok", "no_face"]}), config)


def write_foreign(location, name="0"):
    """As Spark and others name theirs."""
    Path(location).mkdir(exist_ok=True)
    pq.write_table(pa.table({"a": [1]}), Path(location, f"part-{name}.parquet"))


def ids_of(location):
    return sorted(tables.read_table(location, "extract", ["video_id"])["video_id"].to_pylist())


@pytest.mark.slow
@pytest.mark.parametrize("place", ["local", "s3"])
def test_many_become_one_and_a_second_time_nothing(place, tmp_path, request):
    root = str(tmp_path) if place == "local" else request.getfixturevalue("s3")
    location = storage.join(root, "run", "faces")
    write_parts(location, 5)
    tables.write_info(location, CONFIG, counts={"ok": 5})
    before, info = ids_of(location), tables.read_info(location)
    summary = compact.run(compact.Config(table=location))
    assert (summary["parts_before"], summary["parts"]) == (5, 1)
    assert ids_of(location) == before
    assert tables.read_info(location) == info
    files = storage.list_files(location)
    assert len(files) == 2
    assert tables.read_ledger(location, CONFIG).num_rows == 10
    assert compact.run(compact.Config(table=location))["parts"] == 1
    assert storage.list_files(location) == files
    write_parts(location, 6)  # a rerun of extract, had it not read the ledger
    tables.write_part(location, pa.table({"video_id": ["new"], "status": ["ok"]}), CONFIG)
    assert len(tables.part_names(location)) == 8


def test_large_parts_stay_as_they_are(tmp_path, monkeypatch):
    location = str(tmp_path / "faces")
    write_parts(location, 6)
    names = tables.part_names(location)
    monkeypatch.setattr(storage, "sizes", lambda *_: [40 << 20, 30 << 20, 31 << 20, 32 << 20, 10 << 20, 3 << 20])
    compact.run(compact.Config(table=location))
    left = tables.part_names(location)
    assert {names[0], names[3], names[5]} < set(left)  # more than half of 64 MiB; alone
    assert sorted(pq.read_metadata(tmp_path / "faces" / name).num_rows for name in left) == [2, 2, 2, 6]


class KilledError(BaseException):
    """As if the process were dead: from some storage operation on, all of them raise."""


def run_until(location, num_steps, sizes):
    """Compacts, and dies before the step with that number."""
    steps = itertools.count()

    def mortal(operation):
        def act(*arguments):
            if next(steps) >= num_steps:
                raise KilledError
            return operation(*arguments)

        return act

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "sizes", lambda _, names: [sizes[name] for name in names])
        for name in ("write_bytes", "delete"):
            patch.setattr(storage, name, mortal(getattr(storage, name)))
        try:
            compact.run(compact.Config(table=location, part_mib=8))
        except KilledError:
            return False
    return True


@pytest.mark.slow
@settings(max_examples=40)
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=7),
    st.integers(0, 25),
    st.integers(0, 25),
    st.sampled_from(["compact", "ledger", "drop_failed"]),
)
@example([1] * 7, 2, 3, "compact")
def test_killed_at_any_moment_no_row_is_lost_or_doubled(sizes_mib, first_steps, second_steps, then):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "time", SimpleNamespace(sleep=lambda _: None, monotonic=time.monotonic))
        location = f"{folder}/faces"
        write_parts(location, len(sizes_mib))
        before = ids_of(location)
        sizes = {name: size << 20 for name, size in zip(tables.part_names(location), sizes_mib, strict=True)}
        is_done = False
        for num_steps in (first_steps, second_steps, 1000):
            if then != "compact" and num_steps == second_steps:
                break
            Path(location, tables.LOCK).unlink(missing_ok=True)  # its process is dead
            is_done = run_until(location, num_steps, _Sizes(sizes))
            assert ids_of(location) == before
        assert is_done or then != "compact"
        ledger = tables.read_ledger(location, CONFIG)
        if then == "drop_failed":
            assert tables.drop_failed(location, CONFIG) == 0
        assert sorted(ledger["video_id"].to_pylist()) == before
        on_disk = [pq.read_table(path)["video_id"].to_pylist() for path in Path(location).glob("part-*")]
        assert sorted(itertools.chain(*on_disk)) == before
        assert not Path(location, tables.MERGES).exists()


class _Sizes(dict):
    """Merged parts are large."""

    def __missing__(self, name):
        return 8 << 20


def test_a_reader_that_comes_when_it_is_done(tmp_path, monkeypatch):
    """The listing shows the note, which is gone when it is read."""
    location = str(tmp_path / "faces")
    write_parts(location, 2)
    real, listings = storage.list_files, [[tables.MERGES, "part-old.parquet"]]
    monkeypatch.setattr(storage, "list_files", lambda place: listings.pop() if listings else real(place))
    assert len(tables.part_names(location)) == 2
    assert not listings


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda run: None, "no table at"),
        (lambda run: tables.write_table(f"{run}/faces", pa.table({"rank": [1]}), {}), "not a table of faces or scores"),
        (lambda run: (write_parts(f"{run}/faces", 3), write_parts(f"{run}/faces", 2, {"crops": "none"})), "crops: "),
        (lambda run: write_foreign(f"{run}/faces"), "part-0.parquet was not written by raydistal"),
        (lambda run: (write_parts(f"{run}/faces", 2), write_foreign(f"{run}/faces", "z")), "part-z.parquet was not"),
    ],
)
def test_refused(tmp_path, make, message):
    make(tmp_path)
    before = storage.list_files(str(tmp_path))
    with pytest.raises(UserError, match=message):
        compact.run(compact.Config(table=f"{tmp_path}/faces"))
    assert storage.list_files(str(tmp_path)) == before


def test_a_part_that_is_cut_off_is_removed(tmp_path):
    location = tmp_path / "faces"
    write_parts(str(location), 3)
    (location / "part-0.parquet").write_bytes(b"half a part")
    assert compact.run(compact.Config(table=str(location)))["parts"] == 1
    assert len(ids_of(str(location))) == 6


def test_faces_that_teachers_have_spoken_of_are_refused(tmp_path, write_run):
    write_run(tmp_path / "run")
    storage.write_bytes(f"{tmp_path}/run/teaching/abc/part-0.parquet", b"")
    with pytest.raises(UserError, match="Compact before raydistal teach"):
        compact.run(compact.Config(table=f"{tmp_path}/run/faces"))
    storage.delete_folder(f"{tmp_path}/run/teaching")
    before = tables.read_table(f"{tmp_path}/run/faces", "extract").sort_by("video_id")
    compact.run(compact.Config(table=f"{tmp_path}/run/faces"))
    assert tables.read_table(f"{tmp_path}/run/faces", "extract").sort_by("video_id") == before
    assert json.loads(storage.read_bytes(f"{tmp_path}/run/faces/{tables.INFO}"))["num_rows"] == len(before)
