"""The queue by itself, with work that does what a test wants."""

import asyncio
import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from raydistal.serving import jobs as jobs_module
from raydistal.serving.folders import PrivateFolder
from raydistal.serving.jobs import BusyError, Failure, Jobs, LostError, Piece, SlowError
from raydistal.serving.settings import Limits
from raydistal.verdict.examine import Progress


async def bytes_of(*chunks):
    for chunk in chunks:
        yield chunk


async def finished(job):
    await asyncio.wait_for(asyncio.shield(job.task), 60)
    return job


def test_what_is_kept_long_enough_goes_for_ever(tmp_path, monkeypatch):
    async def examine(path, name):
        yield Piece("timeline.csv", path.read_bytes())
        yield {}

    async def scenario():
        jobs = Jobs(tmp_path, Limits(keep_minutes=5), examine, 1)
        sweeping = asyncio.create_task(jobs.sweep())
        job = await finished(await jobs.receive("a", bytes_of(b"1", b"2")))
        assert job.files["timeline.csv"].read_bytes() == b"12"
        assert not job.upload.exists()  # no longer than it is needed
        now_s[0] = 299.9
        await asyncio.sleep(0.2)
        assert jobs.find(job.job_id) is job
        now_s[0] = 300.0
        async with asyncio.timeout(60):
            while jobs.find(job.job_id) or list(tmp_path.iterdir()):
                await asyncio.sleep(0.05)
        sweeping.cancel()
        assert not jobs.find(job.job_id)
        assert not list(tmp_path.iterdir())

    now_s = [0.0]
    monkeypatch.setattr(jobs_module, "SWEEP_S", 0.05)
    monkeypatch.setattr(jobs_module, "time", SimpleNamespace(time=lambda: now_s[0]))
    asyncio.run(scenario())


@pytest.mark.parametrize("num_losses", [1, 2])
def test_a_lost_process_costs_one_more_try_and_no_more(num_losses, tmp_path):
    tries = []

    async def examine(path, name):
        tries.append(path.read_bytes())
        yield Progress("faces", 1, 2)
        yield Piece("face-1.jpg", b"of try %d" % len(tries))
        if len(tries) <= num_losses:
            raise LostError
        yield {"tries": len(tries)}

    async def scenario():
        return await finished(await Jobs(tmp_path, Limits(), examine, 1).receive("a", bytes_of(b"x")))

    job = asyncio.run(scenario())
    assert tries == [b"x", b"x"]
    if num_losses == 1:
        assert (job.state, job.error, job.result) == ("done", None, {"tries": 2})
        assert job.files["face-1.jpg"].read_bytes() == b"of try 2"
    else:
        assert (job.state, job.result) == ("failed", None)
        assert job.error == Failure("crashed", "the process that examined it was lost 2 times")
        assert not job.files


def test_a_bug_fails_its_video_only(tmp_path, caplog):
    async def examine(path, name):
        if name == "bad":
            raise ZeroDivisionError("secret")
        yield {}

    async def scenario():
        jobs = Jobs(tmp_path, Limits(), examine, 1)
        return [await finished(await jobs.receive(name, bytes_of(b"x"))) for name in ("bad", "good")]

    bad, good = asyncio.run(scenario())
    assert (bad.state, good.state) == ("failed", "done")
    assert "secret" not in bad.error.message
    assert "ZeroDivisionError: secret" in caplog.text


@pytest.mark.parametrize("when", ["upload", "result"])
def test_a_full_disk_leaves_nothing(when, tmp_path, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")

    async def examine(path, name):
        yield Piece("face-1.jpg", b"x")
        yield {}

    async def no_write(self, path, chunks):
        path.write_bytes(b"some of it")
        raise full

    def no_append(path, content):
        path.write_bytes(b"some of it")
        raise full

    async def scenario():
        jobs = Jobs(tmp_path, Limits(max_queue=1), examine, 1)
        if when == "upload":
            monkeypatch.setattr(Jobs, "_write", no_write)
            for _ in range(2):  # the place in the queue is free again
                with pytest.raises(BusyError, match="disk is full"):
                    await jobs.receive("a", bytes_of(b"x"))
            assert not list(tmp_path.iterdir())
        else:
            monkeypatch.setattr(jobs_module, "_append", no_append)
            job = await finished(await jobs.receive("a", bytes_of(b"x")))
            assert (job.state, job.result) == ("failed", None)
            assert "disk of the server is full" in job.error.message
            assert not list(job.folder.iterdir())

    asyncio.run(scenario())


def test_an_upload_that_trickles_gives_its_place_back(tmp_path, monkeypatch):
    async def for_ever():
        while True:
            yield b"x"
            await asyncio.sleep(0.01)

    async def scenario():
        jobs = Jobs(tmp_path, Limits(max_queue=1), None, 1)
        for _ in range(2):
            with pytest.raises(SlowError, match=r"0.1 s"):
                await jobs.receive("a", for_ever())
        assert not list(tmp_path.iterdir())

    monkeypatch.setattr(jobs_module, "UPLOAD_S", 0.1)
    asyncio.run(scenario())


def test_order_places_and_the_end_of_a_job(tmp_path):
    began, ended = [], []

    async def examine(path, name):
        began.append(name)
        try:
            yield Progress("faces", 1, 4)
            await asyncio.sleep(60 if name == "a" else 0)
            yield {}
        finally:
            ended.append(name)

    async def scenario():
        jobs = Jobs(tmp_path, Limits(max_queue=3), examine, 1)
        a, b, c = [await jobs.receive(name, bytes_of(b"x")) for name in "abc"]
        while not began:
            await asyncio.sleep(0.01)
        assert (a.state, a.progress, b.state) == ("faces", 0.15, "waiting")
        assert [jobs.num_ahead(job) for job in (a, b, c)] == [0, 0, 1]
        with pytest.raises(BusyError):
            await jobs.receive("d", bytes_of(b"x"))
        await jobs.remove(a.job_id)
        assert ended[0] == "a"
        await finished(b)
        await finished(c)
        await finished(await jobs.receive("d", bytes_of(b"x")))
        assert began == ["a", "b", "c", "d"]
        await jobs.close()
        assert not list(tmp_path.iterdir())

    asyncio.run(scenario())


def test_a_folder_goes_with_its_process_or_by_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    alive = PrivateFolder()
    assert alive.path.stat().st_mode & 0o777 == 0o700
    dead = tmp_path / "raydistal-serve-dead"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "upload").write_bytes(b"private")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "lock").touch()
    link = tmp_path / "raydistal-serve-link"
    link.symlink_to(elsewhere)
    other = PrivateFolder()
    assert set(tmp_path.iterdir()) == {alive.path, other.path, elsewhere, link}
    assert (elsewhere / "lock").exists()
    alive.remove()
    assert not Path(alive.path).exists()
    other.remove()
