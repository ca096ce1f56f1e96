"""How `raydistal select` grows with the faces: its time, and the memory of the driver, which holds a bounded sample."""

import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.measure import Ratio
from benchmarks.scale import FEATURE_DIM, SCORED_FACES, measure


def run(console: Console, *, num_faces: int, factor: int = 4) -> list[Ratio]:
    """`num_faces` and `factor` times as many, made up, in a process of its own each."""
    with tempfile.TemporaryDirectory() as folder:
        few, many = (
            measure("score", times * num_faces // SCORED_FACES, Path(folder, str(times))) for times in (1, factor)
        )
    console.print(
        f"select: {num_faces:,} and {factor * num_faces:,} made-up faces of {FEATURE_DIM} numbers; the driver peaks at "
        f"{few.peak_mb:,.0f} and {many.peak_mb:,.0f} MB above its start"
    )
    what = f"wall time of select, {factor} times the faces"
    return [Ratio("select", what, many.wall_s / few.wall_s, factor)]
