"""One writer per table: a live one is left alone, one that stopped for long has lost its claim for good."""

import signal

import pytest

pytestmark = pytest.mark.ray


def test_second_writer_is_refused_and_the_first_goes_on(arena, clips, head):
    gate = arena.gate("gate.mp4")
    arena.index([*clips[:2], gate.path, *clips[2:4]])
    first = arena.extract()
    first.until(lambda: len(arena.parts()) == 2)
    code, out, err = arena.extract(**head).ended()
    assert (code, out) == (2, "")
    assert f"{arena.faces} is being written by process {first.pid} on " in err
    assert "Traceback" not in err
    assert gate.release()
    assert first.summary()["done_before"] == 0
    assert arena.statuses() == {**{clip.name: "ok" for clip in clips[:4]}, "gate.mp4": "decode_error"}


def test_writer_that_wakes_up_after_another_took_over(arena, clips, head):
    gate = arena.gate("gate.mp4")
    arena.index([*clips[:2], gate.path, *clips[2:6]])
    sleeper = arena.extract()
    sleeper.until(lambda: len(arena.parts()) == 2)
    sleeper.send_signal(signal.SIGSTOP)
    gate.become(clips[6])
    assert arena.extract(beat_s=0.2, **head).summary()["done_before"] == 2
    finished = arena.parts()
    gate.release()
    sleeper.send_signal(signal.SIGCONT)
    code, _, err = sleeper.ended()
    assert code == 1
    assert "another process took over" in err
    assert arena.parts() == finished
    assert arena.statuses() == {**{clip.name: "ok" for clip in clips[:6]}, "gate.mp4": "ok"}
