"""A shared set and a copy of its dataset -> videos, faces: the same crops, without looking for faces.

    the copy -> by path, else by content (tasks) -> which file is which video -> videos
    videos   -> check, decode the listed frames, crop the listed boxes (tasks; in a killable child) -> faces

The `faces` table is the ledger: a rerun does what is missing, also from another folder.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from raydistal import schemas, storage, tables
from raydistal.errors import UserError, VideoError
from raydistal.pipelines.connection import connect
from raydistal.pipelines.scaling import Budget
from raydistal.pipelines.streaming import in_blocks, num_cpus, on_all_cpus
from raydistal.progress import Progress
from raydistal.video.sandbox import kept

if TYPE_CHECKING:
    from raydistal.sharing.manifest import Shared


@dataclass(frozen=True, kw_only=True)
class Config:
    """Rebuild a shared set from your own copy of its dataset."""

    manifest: str
    """File that raydistal share wrote, local or s3://..."""
    videos: str
    """Folder or URI of your copy of the dataset. Files that were renamed are found by their content."""
    out: str
    """Run folder: writes OUT/videos, OUT/faces, OUT/distilled."""
    timeout_s: float = 300
    """Time limit per video, in seconds."""
    memory_mib: int = 2048
    """Memory limit for decoding one video, in MiB."""
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if self.timeout_s <= 0 or self.memory_mib < 64:
            raise UserError("need --timeout-s above 0 and --memory-mib of at least 64")
        storage.refuse_credentials("--videos", self.videos)


def run(config: Config) -> dict[str, Any]:
    """Does what is not done yet and returns a summary.

    A video that is missing, is another file, or does not decode is a row with a reason; the next run tries it again.

    Raises:
        UserError: no such file or folder, or another set in the run folder.
    """
    from raydistal.sharing import manifest
    from raydistal.sharing.sources import list_sizes

    began = time.monotonic()
    shared = manifest.read(config.manifest)
    # The backbone "none" tells readers that there are no features.
    settings = shared.about["faces"] | {"backbone": "none", "manifest": shared.digest}
    faces = storage.absolute(storage.join(config.out, "faces"))
    with tables.sole_writer(faces) as claim:
        done = tables.read_ledger(faces, settings)  # refuses another set before anything is removed
        done = done.filter(pc.is_in(done["status"], pa.array(tables.FINAL)))
        statuses = Counter(done["status"].to_pylist())
        pending = shared.videos.filter(pc.invert(pc.is_in(shared.videos["video_id"], done["video_id"])))
        if not len(pending) and tables.read_info(faces):
            return _summary(faces, statuses, len(done), began)
        sizes = list_sizes(config.videos)  # refuses a wrong folder, likewise
        storage.delete(storage.join(faces, tables.INFO))
        tables.drop_failed(faces, settings)
        connect()
        paths = _locate(config, pending, sizes)
        uris = pa.array([storage.join(storage.absolute(config.videos), path) for path in paths], pa.string())
        pending = pending.append_column("uri", uris)
        _write_videos(config.out, shared, pending)
        stage = partial(rebuild_stage, config=config, settings=settings, claim=claim)
        with Progress("materialize", len(pending), unit="videos") as progress:
            for written in on_all_cpus(in_blocks(pending, num_cpus()), stage, config.budget.max_nodes):
                statuses.update(written["status"].to_pylist())
                failed = statuses["missing"] + statuses["other_file"]
                progress.advance(len(written), f"{failed} missing or other files" if failed else "")
        claim.check()
        info = {"counts": dict(statuses.most_common()), "seconds": time.monotonic() - began}
        tables.write_info(faces, settings, num_rows=statuses.total(), num_new=len(pending), **info)
    return _summary(faces, statuses, len(done), began)


def _summary(faces: str, statuses: Counter[str], num_before: int, began: float) -> dict[str, Any]:
    counts = {"videos": statuses.total(), **statuses, "done_before": num_before}
    return counts | {"seconds": round(time.monotonic() - began, 1), "table": faces}


def _locate(config: Config, pending: pa.Table, sizes: dict[str, int]) -> list[str]:
    """The path in the copy, of whose files these are the sizes, of each row's file, or where it should be."""
    from raydistal.sharing.sources import candidates, locate

    unknown = candidates(pending, sizes)
    digests: dict[str, str] = {}
    if unknown:
        stage = partial(digest_stage, folder=storage.absolute(config.videos))
        blocks = in_blocks(pa.table({"path": unknown}), num_cpus())
        with Progress("materialize: look for renamed files", len(unknown), unit="files") as progress:
            for found in on_all_cpus(blocks, stage, config.budget.max_nodes):
                digests |= dict(zip(found["path"].to_pylist(), found["sha256"].to_pylist(), strict=True))
                progress.advance(len(found))
    return locate(pending, sizes, digests)


def digest_stage(files: pa.Table, folder: str) -> pa.Table:
    """Rows with path -> with sha256; null for what cannot be read."""
    from raydistal.sharing.sources import file_digest, with_copy

    def digest(path: str) -> str | None:
        try:
            return with_copy(storage.join(folder, path), file_digest)[1]
        except VideoError:
            return None

    return files.append_column("sha256", pa.array([digest(path) for path in files["path"].to_pylist()], pa.string()))


def _write_videos(out: str, shared: "Shared", pending: pa.Table) -> None:
    """Writes OUT/videos and OUT/distilled; videos that were done before keep their uri."""
    place, config = storage.join(out, "videos"), {"manifest": shared.digest}
    uri_of = dict(zip(pending["video_id"].to_pylist(), pending["uri"].to_pylist(), strict=True))
    if tables.read_info(place):
        before = tables.read_table(place, "materialize", ["video_id", "uri"]).to_pylist()
        uri_of = {row["video_id"]: row["uri"] for row in before} | uri_of
    uris = pa.array([uri_of[video_id] for video_id in shared.videos["video_id"].to_pylist()])
    videos = shared.videos.append_column("uri", uris)
    tables.write_table(place, schemas.conform(videos, schemas.VIDEOS), config)
    distilled = videos.filter(pc.is_valid(videos["rank"])).sort_by("rank")
    tables.write_table(storage.join(out, "distilled"), schemas.conform(distilled, schemas.DISTILLED), config)


def rebuild_stage(rows: pa.Table, config: Config, settings: dict[str, Any], claim: tables.Claim) -> pa.Table:
    """Rows of a shared set with their uri -> as many of `faces`, written as a part; gives video_id and status."""
    from raydistal.sharing.rebuild import failed

    made = []
    for row in rows.to_pylist():
        try:
            made.append(_rebuild(row, config, settings))
        except VideoError as failure:
            made.append(failed(row["video_id"], failure.status, str(failure), settings))
    faces = schemas.conform(pa.concat_tables(made), schemas.faces_schema(1))
    claim.check()  # here, as workers of a paused or killed job may still be running
    tables.write_part(claim.location, faces, settings)
    return faces.select(["video_id", "status"])


def _rebuild(row: dict[str, Any], config: Config, settings: dict[str, Any]) -> pa.Table:
    from raydistal.sharing.sources import check, with_copy

    limits: dict[str, Any] = {"memory_bytes": config.memory_mib << 20, "timeout_s": config.timeout_s}
    sandbox = kept("raydistal.sharing.rebuild:rebuild", **limits)

    def use(path: str) -> pa.Table:
        check(path, row["num_bytes"], row["sha256"])
        return sandbox.call(path=path, shared=row, settings=settings)

    return with_copy(row["uri"], use)
