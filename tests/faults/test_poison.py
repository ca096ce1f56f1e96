"""Videos that crash, hang or eat the decoder cost their own row, each with its reason."""

import numpy as np
import pytest

from raydistal import tables

pytestmark = pytest.mark.ray

# No file is known that crashes FFmpeg, so a file of that name does. Python runs this in every process; it acts in the
# child that decodes.
CRASH = """
import sys
if any("video.sandbox import serve" in argument for argument in sys.orig_argv):
    import ctypes, raydistal.video.decode as decode
    read_index = decode.read_index
    decode.read_index = lambda path: ctypes.string_at(0) if "crash" in path else read_index(path)
"""


def test_each_costs_its_own_row(arena, clips):
    import cv2

    cv2.imwrite(str(arena.folder / "memory.png"), np.zeros((8000, 8000, 3), np.uint8))
    (arena.folder / "crash.mp4").write_bytes(clips[0].read_bytes())
    (arena.folder / "sitecustomize.py").write_text(CRASH)
    hang = arena.gate("hang.mp4")
    crash, memory = arena.folder / "crash.mp4", arena.folder / "memory.png"
    arena.index([clips[0], crash, clips[1], hang.path, clips[2], memory, clips[3]])
    limits = ("--memory-mib", "100", "--timeout-s", "8")
    summary = arena.extract(*limits, videos_per_part=16, PYTHONPATH=str(arena.folder)).summary()
    rows = tables.read_table(str(arena.faces), "extract", ["video_id", "error"]).to_pylist()
    errors = {row["video_id"]: row["error"] for row in rows}
    assert arena.statuses() == {
        **{clip.name: "ok" for clip in clips[:4]},
        "crash.mp4": "crashed",
        "memory.png": "crashed",
        "hang.mp4": "timeout",
    }
    assert errors == {
        **{clip.name: None for clip in clips[:4]},
        "crash.mp4": "the decoder process ended by signal SIGSEGV",
        "memory.png": "needed more than 100 MiB (--memory-mib)",
        "hang.mp4": "took longer than 8 s (--timeout-s)",
    }
    assert {"ok": 4, "crashed": 2, "timeout": 1}.items() <= summary.items()
