"""What a report needs of a run's tables: some columns, and a few face crops. Features are never read.

Tables of a whole DFDC go through: memory grows with the number of videos, not with that of faces.
"""

import math
import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from raydistal import schemas, storage, tables

MADE_BY = {
    "videos": "index",
    "faces": "extract",
    "uncertainty": "select",
    "representative": "select",
    "ranking": "select",
    "distilled": "select",
    "coverage": "select",
}
FACES = pa.schema(
    [
        ("video_id", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("num_faces", pa.int32()),
        ("part", pa.string()),  # the file that holds the row
    ]
)
CARD = ("video_id", "frame_index", "label", "probability", "uncertainty")
THUMBNAIL_PX = 192  # shown at half of that: sharp on a dense display
JPEG_QUALITY = 88

Frame = tuple[str, int]  # video_id, frame_index


@dataclass(frozen=True, kw_only=True)
class Face:
    """One card of a contact sheet."""

    video_id: str
    frame_index: int
    label: int
    probability: float | None
    uncertainty: float | None
    uri: str
    name: str
    """Of the file."""
    method: str
    """Empty when real or unknown."""
    thumbnail: bytes | None
    """JPEG; null if the crop was not kept."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The tables of a run. One that is not there has no rows and is not in `infos`."""

    location: str
    infos: dict[str, dict[str, Any]]
    """`_table.json` by table; {} while a table is unfinished."""
    videos: pa.Table
    faces: pa.Table
    """`FACES`: one row per video."""
    representative: pa.Table
    ranking: pa.Table
    """From the first to the last."""
    distilled: pa.Table
    coverage: pa.Table
    most_uncertain: list[Face]
    """Real ones first, then fake; within a class in the order of selection."""
    least_uncertain: list[Face]


def read(location: str, num_faces: int) -> Contents:
    """Reads the run folder `location`, with at most `num_faces` faces per contact sheet, half of them of each class.

    Raises:
        UserError: there is no `videos` table.
    """
    place = {name: storage.join(location, name) for name in MADE_BY}
    infos = {name: tables.read_info(place[name]) for name in MADE_BY if tables.part_names(place[name])}

    def table(name: str, schema: pa.Schema) -> pa.Table:
        return tables.read_table(place[name], MADE_BY[name], schema.names) if name in infos else schema.empty_table()

    faces = _read_faces(place["faces"]) if "faces" in infos else FACES.empty_table()
    representative = table("representative", schemas.REPRESENTATIVE)
    first = representative.filter(pc.less(representative["order"], num_faces // 2))
    most = first.sort_by([("label", "ascending"), ("order", "ascending")])
    least = pa.Table.from_pylist([], schemas.REPRESENTATIVE)
    if "uncertainty" in infos:
        listed = infos.get("representative", {}).get("least_uncertain", [])
        least = _scores(place["uncertainty"], [(item["video_id"], item["frame_index"]) for item in listed])
        least = pa.concat_tables([least.filter(pc.equal(least["label"], label))[: num_faces // 2] for label in (0, 1)])
    videos = tables.read_table(place["videos"], "index", schemas.VIDEOS.names)
    crops = _read_crops(place["faces"], faces, [*_frames(most), *_frames(least)])
    return Contents(
        location=location,
        infos=infos,
        videos=videos,
        faces=faces,
        representative=representative,
        ranking=table("ranking", schemas.RANKING).sort_by("rank"),
        distilled=table("distilled", schemas.DISTILLED),
        coverage=table("coverage", schemas.COVERAGE),
        most_uncertain=_cards(most, videos, crops),
        least_uncertain=_cards(least, videos, crops),
    )


def read_cards(location: str, frames: list[dict[str, Any]]) -> list[Face]:
    """Cards of some faces of the run folder `location`, each given as what `CARD` names.

    Raises:
        UserError: the run's tables are not there.
    """
    table = pa.Table.from_pylist(frames, pa.schema([schemas.REPRESENTATIVE.field(name) for name in CARD]))
    faces = _read_faces(storage.join(location, "faces"))
    of_videos = pads.field("video_id").isin(table["video_id"].to_pylist())
    videos = tables.open_table(storage.join(location, "videos"), "index").to_table(filter=of_videos)
    return _cards(table, videos, _read_crops(storage.join(location, "faces"), faces, _frames(table)))


def rows_by_id(table: pa.Table, video_ids: list[str]) -> dict[str, dict[str, Any]]:
    """Rows by video_id, of the videos that are there."""
    rows = table.filter(pc.is_in(table["video_id"], pa.array(video_ids, pa.string()))).to_pylist()
    return {row["video_id"]: row for row in rows}


def file_name(uri: str | None, video_id: str) -> str:
    """The last part of the video's URI; its id where there is none."""
    return posixpath.basename(uri or "") or video_id


def _read_faces(location: str) -> pa.Table:
    found, path = [FACES.empty_table()], storage.resolve(location)[1]
    for name, rows in tables.scan(location, "extract", ["video_id", "status", "error", "frame_index"]):
        num_faces = pc.list_value_length(rows["frame_index"])
        part = pa.array([f"{path}/{name}"] * len(rows))
        found.append(pa.table([*rows.columns[:3], num_faces, part], schema=FACES))
    return pa.concat_tables(found)


def _scores(location: str, frames: list[Frame]) -> pa.Table:
    """label, probability and uncertainty of those of the frames that are there, in their order."""
    of_videos = pads.field("video_id").isin([video_id for video_id, _ in frames])
    scored = tables.explode_faces(tables.open_table(location, "select").to_table(filter=of_videos))
    row = {frame: number for number, frame in enumerate(_frames(scored))}
    return scored.take(pa.array([row[frame] for frame in frames if frame in row], pa.int64()))


def _frames(table: pa.Table) -> list[Frame]:
    return list(zip(table["video_id"].to_pylist(), table["frame_index"].to_pylist(), strict=True))


def _read_crops(location: str, faces: pa.Table, frames: Iterable[Frame]) -> dict[Frame, bytes]:
    """Thumbnails of those frames whose crop was kept. Opens only the parts that hold them."""
    wanted = set(frames)
    video_ids = pa.array(sorted({video_id for video_id, _ in wanted}), pa.string())
    parts = pc.unique(faces.filter(pc.is_in(faces["video_id"], video_ids))["part"]).to_pylist()
    if not parts:
        return {}
    dataset = pads.dataset(parts, filesystem=storage.resolve(location)[0], format="parquet")
    thumbnails = {}
    # One part at a time: crops of long videos that were sampled densely take hundreds of MB.
    for batch in dataset.to_batches(
        columns=["video_id", "frame_index", "crop"], filter=pads.field("video_id").isin(video_ids), fragment_readahead=1
    ):
        for row in batch.to_pylist():
            for frame_index, crop in zip(row["frame_index"], row["crop"] or (), strict=False):
                frame = (row["video_id"], frame_index)
                if frame in wanted and crop and (thumbnail := _thumbnail(crop)):
                    thumbnails[frame] = thumbnail
    return thumbnails


def _thumbnail(image: bytes) -> bytes | None:
    """A small JPEG of an encoded image; None if it cannot be decoded."""
    crop_HWC = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
    if crop_HWC is None:
        return None
    small_HWC = cv2.resize(crop_HWC, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", small_HWC, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1])


def _cards(frames: pa.Table, videos: pa.Table, thumbnails: dict[Frame, bytes]) -> list[Face]:
    """One card per row of `frames`, which has the columns of `CARD`."""
    found = rows_by_id(videos, frames["video_id"].to_pylist())
    cards = []
    for row in frames.select(CARD).to_pylist():
        if row["probability"] is not None and math.isnan(row["probability"]):  # random, k_center: no probe
            row["probability"] = None
        video = found.get(row["video_id"], {})
        uri, method = video.get("uri", ""), video.get("method") or ""
        thumbnail = thumbnails.get((row["video_id"], row["frame_index"]))
        cards.append(Face(**row, uri=uri, name=file_name(uri, row["video_id"]), method=method, thumbnail=thumbnail))
    return cards
