"""detectors -> cost, report: how large each is and how long it takes, compared with the first one. Needs no Ray.

Every detector runs in a process of its own, and they take turns; measure on a machine that does nothing else.
"""

import time
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from raydistal import schemas, storage, tables
from raydistal.errors import UserError
from raydistal.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """Measure size and latency of detectors, trained or exported."""

    detectors: tuple[str, ...]
    """Detector directories, trained or exported, local or s3://...; the first one is the baseline."""
    out: str
    """Folder to write: OUT/cost, OUT/report."""
    batch_sizes: tuple[int, ...] = (1, 32)
    """Faces per forward pass."""
    threads: int = 1
    """CPU threads for each detector."""
    rounds: int = 10
    """Rounds in which all detectors take turns in random order: 10 runs of one face, or 3 of a batch."""
    seed: int = 0
    """Seed of the order."""

    def __post_init__(self) -> None:
        if not self.detectors or not self.batch_sizes:
            raise UserError("need at least one of --detectors and one of --batch-sizes")
        if min(*self.batch_sizes, self.threads, self.rounds) < 1 or self.seed < 0:
            raise UserError("need --batch-sizes, --threads and --rounds of at least 1, and --seed of 0 or more")
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise UserError(f"--batch-sizes names one twice: {' '.join(map(str, self.batch_sizes))}")


def run(config: Config) -> dict[str, Any]:
    """Measures, unless that is done; writes the report; returns a summary.

    Raises:
        UserError: no such detector, a runtime that is not installed, or another measurement in the folder.
    """
    from raydistal.compression.cost import describe
    from raydistal.report import cost as report

    began = time.monotonic()
    out = storage.absolute(config.out)
    storage.refuse_input(out, config.detectors)
    names = storage.distinct_names("--detectors", config.detectors)
    known = {name: describe(place) for name, place in zip(names, config.detectors, strict=True)}
    settings: dict[str, Any] = {name: getattr(config, name) for name in ("threads", "rounds", "seed")}
    settings |= {"batch_sizes": list(config.batch_sizes)}
    settings |= {"detectors": {name: [one["model_id"], one["runtime"]] for name, one in known.items()}}
    place = storage.join(out, "cost")
    with tables.sole_writer(out):
        if info := tables.read_info(place):
            tables.refuse_other_config(place, tables.INFO, info["config"], settings)
        else:
            rows, conditions = _measure(config, known)
            tables.write_table(place, rows, settings, **conditions)
        page = report.write(out)
    rows = tables.read_table(place, "cost")
    names_shown = ("detector", "device", "batch_size", "size_mb", "median_ms", "ratio")
    return {
        "results": rows.select(names_shown).to_pylist(),
        "seconds": round(time.monotonic() - began, 1),
        "report": page,
    }


def _measure(config: Config, known: dict[str, dict[str, Any]]) -> tuple[pa.Table, dict[str, Any]]:
    """Rows of `cost`, and the conditions."""
    import torch

    from raydistal.compression.cost import RUNS_BATCH, RUNS_SINGLE, Case, conditions, summarise, time_rounds
    from raydistal.compression.stopwatch import Device

    conditions_before = conditions()
    on_gpu: list[Device] = ["cuda"] if torch.cuda.is_available() else []
    described = list(enumerate(known.items()))
    cases = [
        Case(number, device, batch_size)
        for number, (_, one) in described
        for device in ["cpu", *(on_gpu if one["runtime"] == "torch" else [])]
        for batch_size in config.batch_sizes
    ]
    locations = [storage.absolute(place) for place in config.detectors]
    with Progress("cost", config.rounds, unit="rounds") as progress:
        found = time_rounds(locations, cases, config.threads, config.rounds, config.seed, lambda: progress.advance(1))
    rows = []
    for case, rounds_ms in found.items():
        name, one = described[case.number][1]
        # If the baseline does not run on the GPU, its time on the CPU is compared.
        baseline_ms = found.get(case._replace(number=0)) or found[Case(0, "cpu", case.batch_size)]
        place = {"detector": name, "device": case.device, "batch_size": case.batch_size}
        rows.append(place | one | summarise(rounds_ms, baseline_ms))
    all_conditions = conditions_before | {"load_average_after": conditions()["load_average"]}
    all_conditions |= {"locations": dict(zip(known, locations, strict=True))}
    all_conditions |= {"runs": {"single": RUNS_SINGLE, "batch": RUNS_BATCH}}
    return schemas.conform(pa.Table.from_pylist(rows), schemas.COST), all_conditions
