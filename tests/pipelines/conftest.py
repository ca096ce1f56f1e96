"""One local cluster for all pipeline tests, with a token and a folder of its own."""

import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest

from raydistal import schemas, tables

os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Workers get the environment of now; the object store of a test starts later.
os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """4 logical CPUs, whatever the machine has."""
    import ray
    import ray.data

    folder = tempfile.mkdtemp(prefix="raydistal-", dir="/tmp")  # short: it holds sockets
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=300 << 20,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        _temp_dir=folder,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def coarse(drawn_once: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Nobody looks at the figures here."""
    with drawn_once():
        yield


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType], None]:
    """no_cluster(verb): from now on, the verb fails if it would start or look for a cluster."""
    return lambda verb: monkeypatch.setattr(verb, "connect", lambda: pytest.fail("needs a cluster"))


@pytest.fixture
def write_videos() -> Callable[..., pa.Table]:
    """write_videos(run, paths, labels, ...) writes the `videos` table of a run; video_id is the file name."""

    def write(run: str, paths: list[Path | str], labels: list[int] | None = None, **columns: list[str]) -> pa.Table:
        labels = labels or [number % 2 for number in range(len(paths))]
        names = [str(path).rsplit("/", 1)[-1] for path in paths]
        table = pa.table(
            {
                "video_id": names,
                "dataset": ["test"] * len(paths),
                "uri": [str(path) for path in paths],
                "label": pa.array(labels, pa.int8()),
                "group_id": [f"group-{name}" for name in names],
                "split": ["train"] * len(paths),
            }
            | columns
        )
        table = schemas.conform(table, schemas.VIDEOS)
        tables.write_table(f"{run}/videos", table, {})
        return table

    return write
