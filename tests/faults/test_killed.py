"""kill -9 at any moment, then the same command again: every video once, and nothing finished is done twice."""

import os
import signal
from pathlib import Path

import pytest

from raydistal import tables

pytestmark = pytest.mark.ray


def test_driver_killed(arena, clips, head):
    """With its cluster, and on one that goes on."""
    arena.index(clips)
    kept = {}
    for environment, num_parts in (({}, 1), (head, 7)):
        program = arena.extract(**environment)
        program.until(lambda least=num_parts: (arena.faces / tables.LOCK).exists() and len(arena.parts()) >= least)
        program.kill()
        program.wait()
        assert kept.items() <= arena.parts().items()
        kept = arena.parts()
        assert num_parts <= len(kept) < len(clips)
    name, (_, content) = kept.popitem()
    (arena.faces / name).write_bytes(content[: len(content) // 2])
    (arena.faces / ".tmp-1").write_bytes(content[: len(content) // 2])
    program = arena.extract(**head)
    assert program.summary()["done_before"] >= len(kept)
    assert f"removed an unreadable part, its videos are done again: {name}" in program.err_path.read_text()
    assert "sign of life" not in program.err_path.read_text()
    assert arena.statuses() == {clip.name: "ok" for clip in clips}
    assert kept.items() <= arena.parts().items()


def test_workers_killed(arena, clips, head, head_arena):
    """The one that decodes, in the middle of it, and the one that holds the network."""
    gate = arena.gate("gate.mp4")
    arena.index([*clips[:3], gate.path, *clips[3:6]])
    program = arena.extract(**head)
    program.until(lambda: len(arena.parts()) == 3)
    gate.become(clips[6])
    victims: list[int] = []
    while len(victims) < 2:
        there = head_arena.processes().items()
        victims = [pid for pid, line in there if "look_stage" in line or "FeatureStage" in line]
    arena.kill(victims)
    program.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in victims))
    assert not gate.release()  # the decoder's child went with it
    assert program.summary()["ok"] == 7
    assert arena.statuses() == {clip.name: "ok" for clip in clips[:6]} | {"gate.mp4": "ok"}


def test_interrupt_leaves_no_process_behind(arena, clips, head):
    gate = arena.gate("gate.mp4")
    arena.index([*clips[:3], gate.path, *clips[3:6]])
    program = arena.extract()
    program.until(lambda: len(arena.parts()) == 3)
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does: everything in the foreground gets it
    code, out, err = program.ended()
    assert (code, out) == (3, "")
    assert err.endswith("raydistal: stopped. Finished work is kept; the same command goes on with the rest.\n")
    assert "Traceback" not in err
    program.until(lambda: arena.processes() == {})
    assert not (arena.faces / tables.LOCK).exists()
    gate.become(clips[6])
    assert arena.extract(**head).summary()["done_before"] == 3
    assert arena.statuses() == {clip.name: "ok" for clip in clips[:6]} | {"gate.mp4": "ok"}
