"""What cannot be done is refused with a clear message, and costs nothing that was done."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.ray


def test_disk_full(arena, clips):
    """The run folder is a small file system, in a mount namespace that all of the run's processes enter."""
    arena.index(clips)
    mount = f"mkdir {arena.faces} && mount -t tmpfs -o size=400k none {arena.faces} && echo mounted && sleep 3600"
    place = arena.start("unshare", "--map-root-user", "--mount", "sh", "-c", mount)
    while "mounted" not in place.out_path.read_text():
        if place.poll() is not None:
            pytest.skip("mount namespaces are not allowed here")
    enter = ("nsenter", "--preserve-credentials", "--user", "--mount", f"--target={place.pid}")
    faces, arena.faces = arena.faces, Path(f"/proc/{place.pid}/root{arena.faces}")
    code, out, err = arena.extract(through=enter).ended()
    assert (code, out) == (1, "")
    assert "No space left on device" in err
    assert "Traceback" not in err
    kept = arena.parts()
    assert 0 < len(kept) < len(clips)
    arena.start(*enter, "mount", "-o", "remount,size=10m", faces).ended()
    assert arena.extract(through=enter).summary()["done_before"] == len(kept)
    assert arena.statuses() == {clip.name: "ok" for clip in clips}
    assert kept.items() <= arena.parts().items()
