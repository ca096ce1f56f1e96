"""videos, faces, distilled -> one file that names what to take from which video, and holds no face.

    videos -> digest of each source (tasks) -> sources, the ledger: a rerun reads only files that it lacks
    faces  -> digest of each crop (tasks), with frame and box -> the file

Receivers rebuild the set from their own copy of the dataset (raydistal materialize) and check it (raydistal verify).
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from raydistal import schemas, storage, tables
from raydistal.errors import MissingError, UserError
from raydistal.pipelines.connection import connect
from raydistal.pipelines.scaling import Budget
from raydistal.pipelines.streaming import by_batches, by_parts, in_blocks, num_cpus, on_all_cpus, with_parts
from raydistal.progress import Progress

VIDEOS_PER_READ = 16
LEDGER = {"digest": "sha256"}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Write a distilled set to a file for others: hashes and boxes, never faces."""

    data: str
    """Run folder with the tables videos, faces and distilled; writes its table sources."""
    out: str
    """File to write, such as set.parquet; local or s3://..."""
    manifest: str = ""
    """Table of videos to share instead of RUN/distilled."""
    also: tuple[Literal["val", "test"], ...] = ()
    """Splits of RUN/videos to include whole, so that others can validate and test as you did."""
    budget: Budget = field(default_factory=Budget)

    def __post_init__(self) -> None:
        if not self.out.partition("?")[0].endswith(".parquet"):
            raise UserError(f"--out {self.out!r} must be the name of a file that ends in .parquet")


def run(config: Config) -> dict[str, Any]:
    """Writes the file and returns a summary. The same set gives the same bytes.

    Videos whose source cannot be read are left out and counted; a rerun tries them again.

    Raises:
        UserError: no tables, no crops, a video that has no row in `faces`, or no source at all can be read.
    """
    from raydistal.sharing import manifest

    began = time.monotonic()
    chosen_by = config.manifest or storage.join(config.data, "distilled")
    info = tables.faces_info(config.data, with_crops=True)
    about = manifest.describe(info, tables.read_info(chosen_by).get("config", {}))
    faces = storage.absolute(storage.join(config.data, "faces"))
    videos = with_parts(config.data, _videos(config, chosen_by), chosen_by)
    connect()
    sources = _digest_sources(config, storage.absolute(storage.join(config.data, "sources")), videos)
    left_out = videos.filter(pc.invert(pc.is_in(videos["video_id"], sources["video_id"])))
    if len(left_out):
        print(
            f"warning: {len(left_out)} of {len(videos)} videos are left out, as their files cannot be read, such as "
            f"{left_out['uri'][0]}. The table {storage.join(config.data, 'sources')} says why.",
            file=sys.stderr,
        )
    videos = videos.join(sources.drop_columns(["status", "error"]), "video_id", join_type="inner")
    if not len(videos):
        raise UserError(f"none of the files of {chosen_by} can be read. Run share where the dataset is.")
    shared = _with_faces(config, videos.combine_chunks(), faces, info["config"]["size_px"])
    content = manifest.to_bytes(shared, about)
    storage.write_bytes(config.out, content)
    return {
        "videos": len(shared),
        "faces": pc.sum(pc.list_value_length(shared["frame_index"])).as_py(),
        "left_out": len(left_out),
        "bytes": content.size,
        "seconds": round(time.monotonic() - began, 1),
        "manifest": storage.absolute(config.out),
    }


def _videos(config: Config, chosen_by: str) -> pa.Table:
    """Rows of DISTILLED with path, and the videos of `also`, whose rank is null."""
    from raydistal.sharing.manifest import public_group, relative_path

    chosen = tables.read_table(chosen_by, "select")
    more = tables.read_table(storage.join(config.data, "videos"), "index")
    is_known = pc.is_in(more["video_id"], value_set=chosen["video_id"].combine_chunks())
    more = more.filter(pc.and_(pc.is_in(more["split"], pa.array(config.also, pa.string())), pc.invert(is_known)))
    schema = schemas.VIDEOS.append(pa.field("rank", pa.int64()))
    videos = pa.concat_tables([schemas.conform(one, schema) for one in (chosen, more)])
    rows = videos.select(["uri", "dataset", "video_id"]).to_pylist()
    paths = [relative_path(row["uri"], row["dataset"], row["video_id"]) for row in rows]
    groups = [public_group(group_id) for group_id in videos["group_id"].to_pylist()]
    videos = videos.set_column(videos.column_names.index("group_id"), "group_id", pa.array(groups))
    return videos.append_column("path", pa.array(paths))


def _digest_sources(config: Config, location: str, videos: pa.Table) -> pa.Table:
    """SOURCES of the videos that can be read; digests those that earlier runs did not."""
    with tables.sole_writer(location) as claim:
        ledger = tables.read_ledger(location, LEDGER)
        if tables.drop_failed(location, LEDGER):
            ledger = ledger.filter(pc.equal(ledger["status"], "ok"))
        pending = videos.filter(pc.invert(pc.is_in(videos["video_id"], ledger["video_id"])))
        with Progress("share: digest", len(pending), unit="videos") as progress:
            blocks = in_blocks(pending.select(["video_id", "uri"]), num_cpus())
            for written in on_all_cpus(blocks, partial(digest_stage, claim=claim), config.budget.max_nodes):
                progress.advance(len(written))
        claim.check()
        tables.write_info(location, LEDGER, num_rows=len(ledger) + len(pending))
    sources = tables.read_table(location, "share")
    is_wanted = pc.is_in(sources["video_id"], value_set=videos["video_id"].combine_chunks())
    return sources.filter(pc.and_(is_wanted, pc.equal(sources["status"], "ok")))


def digest_stage(videos: pa.Table, claim: tables.Claim) -> pa.Table:
    """Rows of `videos` -> as many of `sources`, written as a part; gives their video_id."""
    from raydistal.sharing.sources import file_digest, with_copy

    rows = []
    for video in videos.to_pylist():
        row = {"video_id": video["video_id"], "status": "ok"}
        try:
            row["num_bytes"], row["sha256"] = with_copy(video["uri"], file_digest)
        except MissingError as failure:
            row |= {"status": failure.status, "error": str(failure)}
        rows.append(row)
    claim.check()
    tables.write_part(claim.location, pa.Table.from_pylist(rows, schemas.SOURCES), LEDGER)
    return videos.select(["video_id"])


def _with_faces(config: Config, videos: pa.Table, faces: str, size_px: int) -> pa.Table:
    """SHARED: `videos` with the columns that come from `faces`."""
    blocks = by_parts(videos.select(["video_id", "part"]), num_cpus())
    stage = partial(faces_stage, faces=faces, size_px=size_px)
    batches = []
    with Progress("share: faces", len(videos), unit="videos") as progress:
        for rows in on_all_cpus(blocks, stage, config.budget.max_nodes):
            batches.append(rows)
            progress.advance(len(rows))
    found = pa.concat_tables(batches)
    at = pc.index_in(videos["video_id"], value_set=found["video_id"])
    for name in found.column_names[1:]:
        videos = videos.append_column(name, found[name].take(at))
    return schemas.conform(videos, schemas.SHARED)


def faces_stage(videos: pa.Table, faces: str, size_px: int) -> Iterator[pa.Table]:
    """Rows with video_id and part -> the columns of SHARED that come from their faces."""
    from raydistal.sharing.sources import crop_digest

    names = ["status", "num_frames_seen", "frame_index", "pts_s", "box_xyxy_px", "detection_score"]
    schema = pa.schema([schemas.SHARED.field(name) for name in ("video_id", *names, "crop_sha256")])
    for _, rows in by_batches(videos, faces, ["video_id", *names, "crop"], VIDEOS_PER_READ):
        digests = [[crop_digest(crop, size_px) for crop in crops or []] for crops in rows["crop"].to_pylist()]
        table = pa.Table.from_batches([rows]).drop_columns(["crop"])
        yield schemas.conform(table.append_column("crop_sha256", pa.array(digests, pa.list_(pa.string()))), schema)
