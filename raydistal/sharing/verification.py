"""Whether a run holds what a shared set describes, to the bit, and what differs if not."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from raydistal.sharing.sources import crop_digest

KEPT = ("dataset", "label", "method", "compression", "original_id", "group_id", "split")  # also in `videos`


def differing(shared: pa.Table, videos: pa.Table) -> pa.Array:
    """For each row of a set, the columns in which the run's `videos` differ from it; null if they have no such row."""
    rows = {row["video_id"]: row for row in videos.select(["video_id", *KEPT]).to_pylist()}
    names = [
        None if (row := rows.get(set_row["video_id"])) is None else ", ".join(n for n in KEPT if row[n] != set_row[n])
        for set_row in shared.select(["video_id", *KEPT]).to_pylist()
    ]
    return pa.array(names, pa.string())


def verdict(shared: Mapping[str, Any], faces: Mapping[str, Any] | None, size_px: int) -> dict[str, Any]:
    """A row of `schemas.VERIFICATION`.

    Args:
        shared: row of the set, with `differing`.
        faces: row of the run's `faces`; None if there is none.
        size_px: side of the crops.
    """
    row = {"video_id": shared["video_id"], "path": shared["path"], "num_faces": len(shared["frame_index"])}
    if faces is None or shared["differing"] is None:
        return row | {"status": "missing", "detail": "no row of it in the run", "num_exact": 0}
    if faces["status"] != shared["status"]:
        status = faces["status"] if faces["status"] in ("missing", "other_file") else "failed"
        return row | {"status": status, "detail": f"{faces['status']}: {faces['error']}", "num_exact": 0}
    is_exact = _exact_faces(shared, faces, size_px)
    num_more = len(set(faces["frame_index"]) - set(shared["frame_index"]))
    detail = [f"{shared['differing']} not as shared"] if shared["differing"] else []
    if not all(is_exact):
        detail.append(f"{is_exact.count(False)} of {len(is_exact)} faces not as shared")
    if num_more:
        detail.append(f"{num_more} faces more than shared")
    status = "row_differs" if shared["differing"] else "faces_differ" if detail else "exact"
    return row | {"status": status, "detail": "; ".join(detail) or None, "num_exact": sum(is_exact)}


def _exact_faces(shared: Mapping[str, Any], faces: Mapping[str, Any], size_px: int) -> list[bool]:
    """Whether each shared face is there, to the bit."""
    names = ("pts_s", "box_xyxy_px", "detection_score")
    values = zip(*(faces[name] for name in names), faces["crop"], strict=True)
    there = dict(zip(faces["frame_index"], values, strict=True))
    is_exact = []
    for place, frame in enumerate(shared["frame_index"]):
        *found, image = there.get(frame, (None, None, None, b""))
        is_same = found == [shared[name][place] for name in names]
        is_exact.append(is_same and crop_digest(image, size_px) == shared["crop_sha256"][place] != "")
    return is_exact
