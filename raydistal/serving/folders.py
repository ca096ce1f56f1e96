"""Private folders that do not outlive their process for long, however it ends."""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "raydistal-serve-"
LOCK = "lock"


class PrivateFolder:
    """A new folder in TMPDIR that only this user may enter.

    A killed process leaves its folder behind, with what people uploaded. The next process that makes such a folder on
    the same machine removes it: if a folder's lock is free, its process is gone.
    """

    def __init__(self) -> None:
        parent = Path(tempfile.gettempdir())
        for leftover in parent.glob(f"{PREFIX}*"):
            _remove_if_dead(leftover)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
            self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            if (self.path / LOCK).exists():
                break
            os.close(self._lock)  # another process took it for a leftover before it was locked

    def remove(self) -> None:
        """Removes the folder with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)


def _remove_if_dead(folder: Path) -> None:
    try:
        if folder.lstat().st_uid != os.getuid():
            return  # another user's
        lock = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # its process is just starting, or it was removed meanwhile
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)  # does not follow links
    except OSError:  # its process is alive
        pass
    finally:
        os.close(lock)
