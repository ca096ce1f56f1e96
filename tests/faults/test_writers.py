"""One writer per table: a live one is left alone, one that stopped for long has lost its claim for good."""

import signal

import pytest

pytestmark = pytest.mark.ray


def test_two_writers(arena, clips, head):
    first_gate, second_gate = arena.gate("first.mp4"), arena.gate("second.mp4")
    arena.index([*clips[:2], first_gate.path, *clips[2:4], second_gate.path, *clips[4:6]])
    writer = arena.extract()
    writer.until(lambda: len(arena.parts()) == 2)
    code, out, err = arena.extract(**head).ended()
    assert (code, out) == (2, "")
    assert f"{arena.faces} is being written by process {writer.pid} on " in err
    assert "Traceback" not in err
    assert first_gate.release()
    writer.until(lambda: len(arena.parts()) == 5)

    writer.send_signal(signal.SIGSTOP)
    second_gate.become(clips[6])
    assert arena.extract(beat_s=0.2, **head).summary()["done_before"] == 5
    finished = arena.parts()
    second_gate.release()
    writer.send_signal(signal.SIGCONT)
    code, _, err = writer.ended()
    assert code == 1
    assert "another process took over" in err
    assert arena.parts() == finished
    assert arena.statuses() == {clip.name: "ok" for clip in clips[:6]} | {
        "first.mp4": "decode_error",
        "second.mp4": "ok",
    }
