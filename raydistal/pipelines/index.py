"""index: from a folder, or a manifest, to the table OUT/videos. Needs no Ray and opens no video."""

import dataclasses
import posixpath
import sys
from typing import Any, Literal

from raydistal import schemas, storage, tables
from raydistal.datasets import layout, layouts, splits
from raydistal.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """List the videos of a dataset with their labels, methods, groups and splits."""

    videos: str
    """Folder or URI of the dataset, or a manifest (.csv, .parquet)."""
    out: str
    """Folder or URI of the run; the table is written to OUT/videos."""
    dataset: str = ""
    """Name of the dataset, part of every video_id; default: the name of its folder."""
    layout: Literal["auto", "manifest", layouts.Name] = "auto"
    """Layout of the dataset; auto detects it."""
    compression: str = ""
    """FaceForensics++ only: raw (or c0), c23 or c40; default: c23, or the only one present."""
    split: tuple[float, float, float] = (0.7, 0.15, 0.15)
    """Shares of train, val and test for groups without an official split; they sum to 1."""
    seed: int = 0
    """Seed of the assignment of groups to splits; the same seed and videos give the same splits."""

    def __post_init__(self) -> None:
        if not self.videos or not self.out:
            raise UserError("--videos and --out must not be empty")
        if "/" in self.dataset:
            raise UserError(f"--dataset {self.dataset!r} must not contain a slash")
        if not (all(share >= 0 for share in self.split) and abs(sum(self.split) - 1) <= 1e-6):  # nan: neither
            raise UserError(f"--split {self.split} must be three shares, none negative, that sum to 1")
        storage.refuse_credentials("--videos", self.videos)


def run(config: Config) -> dict[str, Any]:
    """Writes OUT/videos and returns a summary.

    Raises:
        UserError: no dataset was found, several layouts fit, a video is listed twice, or an annotation is malformed.
    """
    reading = layouts.read(config.videos, config.layout, config.compression)
    folder = posixpath.basename(posixpath.normpath(storage.resolve(reading.root)[1]))
    dataset = config.dataset or folder or reading.layout
    videos, unresolved = layout.to_table(reading.root, dataset, reading.entries)
    videos, unbalanced = splits.assign(videos, config.split, config.seed)
    warnings = reading.warnings + unresolved + unbalanced
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    num_real, num_fake = tables.count_classes(videos["label"])
    summary = {
        "videos": len(videos),
        "real": num_real,
        "fake": num_fake,
        "unlabelled": videos["label"].null_count,
        "splits": tables.count_values(videos["split"]),
        "layout": reading.layout,
        "warnings": warnings,
    }
    table = storage.join(config.out, "videos")
    tables.write_table(table, schemas.conform(videos, schemas.VIDEOS), dataclasses.asdict(config), **summary)
    return summary | {"table": table}
