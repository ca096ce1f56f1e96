"""A shared set and a run -> verification: whether the run equals the shared set to the bit, and where it differs."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from raydistal import schemas, storage, tables
from raydistal.pipelines.connection import connect
from raydistal.pipelines.streaming import by_batches, by_parts, num_cpus, on_all_cpus, parts_of
from raydistal.progress import Progress

VIDEOS_PER_READ = 16


@dataclass(frozen=True, kw_only=True)
class Config:
    """Compare a run with a shared set, to the bit; exit code 1 unless all is exact."""

    manifest: str
    """File that raydistal share wrote, local or s3://..."""
    out: str
    """Run folder: reads OUT/videos and OUT/faces, writes OUT/verification."""


def run(config: Config) -> dict[str, Any]:
    """Writes the table and returns a summary, in which `exact` says whether all is as shared.

    Only digests of pixels are shared, so it cannot tell how much a crop differs.

    Raises:
        UserError: no such file, or no finished tables with crops.
    """
    from raydistal.sharing import manifest
    from raydistal.sharing.verification import differing

    began = time.monotonic()
    shared = manifest.read(config.manifest)
    info = tables.faces_info(config.out, with_crops=True)
    faces = storage.absolute(storage.join(config.out, "faces"))
    videos = tables.read_table(storage.join(config.out, "videos"), "materialize")
    rows = shared.videos.append_column("part", parts_of(faces, shared.videos["video_id"]))
    rows = rows.append_column("differing", differing(rows, videos))
    absent = rows.filter(pc.is_null(rows["part"]))
    all_verdicts = [_verdicts(absent, {}, 0)]
    present = rows.filter(pc.is_valid(rows["part"])).combine_chunks()
    blocks = []
    if len(present):
        connect()
        blocks = by_parts(present, num_cpus())
    with Progress("verify", len(present), unit="videos") as progress:
        stage = partial(verify_stage, faces=faces, size_px=shared.about["faces"]["size_px"])
        for verdicts in on_all_cpus(blocks, stage):
            all_verdicts.append(verdicts)
            progress.advance(len(verdicts))
    verification = pa.concat_tables(all_verdicts).sort_by("video_id")
    counts = Counter(verification["status"].to_pylist())
    num_faces, num_exact = (pc.sum(verification[name]).as_py() or 0 for name in ("num_faces", "num_exact"))
    there, here = shared.about["versions"], info["versions"]
    summary = {
        "exact": counts["exact"] == len(verification),
        "videos": dict(counts.most_common()),
        "faces": num_faces,
        "exact_faces": num_exact,
        "other_versions": {name: [there[name], here.get(name)] for name in there if there[name] != here.get(name)},
    }
    place = storage.absolute(storage.join(config.out, "verification"))
    tables.write_table(place, verification, {"manifest": shared.digest}, **summary)
    return summary | {"seconds": round(time.monotonic() - began, 1), "table": place}


def verify_stage(rows: pa.Table, faces: str, size_px: int) -> Iterator[pa.Table]:
    """Rows of a shared set with `part` and `differing` -> as many of VERIFICATION."""
    columns = ["video_id", "status", "error", "frame_index", "pts_s", "box_xyxy_px", "detection_score", "crop"]
    for of_part, batch in by_batches(rows, faces, columns, VIDEOS_PER_READ):
        found = {row["video_id"]: row for row in batch.to_pylist()}
        yield _verdicts(of_part.filter(pc.is_in(of_part["video_id"], value_set=batch["video_id"])), found, size_px)


def _verdicts(rows: pa.Table, faces: dict[str, dict[str, Any]], size_px: int) -> pa.Table:
    from raydistal.sharing.verification import verdict

    verdicts = [verdict(row, faces.get(row["video_id"]), size_px) for row in rows.to_pylist()]
    return pa.Table.from_pylist(verdicts, schemas.VERIFICATION)
