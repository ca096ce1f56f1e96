"""What a detector costs to run: parameters, multiply-accumulates, bytes, and time measured against a baseline.

R rounds. In each, every detector takes its turn, in random order: a busy spell of the machine slows down all of them,
and ratios compare runs that are close in time.
"""

import contextlib
import os
import platform
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from raydistal.compression.counting import count_macs
from raydistal.compression.stopwatch import Device, Stopwatch
from raydistal.detector import checkpoint, runtime
from raydistal.detector.zoo import Detector

RUNS_SINGLE, RUNS_BATCH = 10, 3  # timed runs of a turn, with one crop and with several
PACKAGES = ("raydistal", "torch", "torchao", "onnxruntime", "executorch", "numpy")


class Case(NamedTuple):
    """Something to time."""

    number: int
    """Index of the detector."""
    device: Device
    batch_size: int


def describe(location: str) -> dict[str, Any]:
    """What needs no timing: architecture, input_px, model_id, runtime, precision, num_params, macs, size_mb.

    macs are those of the float network for one face, whatever the precision; size_mb is the file in 1e6 bytes.

    Raises:
        UserError: as `runtime.load`.
    """
    model, about = runtime.load(location)
    return {
        "architecture": about["architecture"],
        "input_px": about["input_px"],
        "model_id": checkpoint.model_id(about),
        "runtime": about["runtime"],
        "precision": about.get("precision", "float32"),
        "num_params": about["num_params"],
        "macs": count_macs(model) if isinstance(model, Detector) else about["macs"],
        "size_mb": runtime.size_mb(location, about),
    }


def time_rounds(
    locations: Sequence[str],
    cases: Sequence[Case],
    num_threads: int,
    num_rounds: int,
    seed: int,
    on_round: Callable[[], None],
) -> dict[Case, list[list[float]]]:
    """For each case, the milliseconds of the runs of each round.

    Args:
        locations: detector directories.
        cases: each is timed once per round.
        num_threads: of the CPU, for every detector.
        num_rounds: R.
        seed: of the order within the rounds.
        on_round: called after each.
    """
    rng = np.random.default_rng(seed)
    watches: dict[tuple[int, Device], Stopwatch] = {}
    found: dict[Case, list[list[float]]] = {case: [] for case in cases}
    try:
        for case in cases:
            if case[:2] not in watches:
                watches[case[:2]] = Stopwatch(locations[case.number], case.device, num_threads)
        for _ in range(num_rounds):
            for number in rng.permutation(len(cases)):
                case = cases[number]
                num_runs = RUNS_SINGLE if case.batch_size == 1 else RUNS_BATCH
                found[case].append(watches[case[:2]].measure(case.batch_size, num_runs))
            on_round()
    finally:
        for watch in watches.values():
            watch.close()
    return found


def summarise(rounds_ms: Sequence[Sequence[float]], baseline_ms: Sequence[Sequence[float]]) -> dict[str, float]:
    """median_ms, p10_ms and p90_ms over all runs of R rounds; ratio to the baseline, paired by round.

    A round's ratio is that of its two medians; returned are the median, lowest and highest of the R ratios.
    """
    low, median, high = np.percentile(np.concatenate(rounds_ms), [10, 50, 90])
    ratio_R = _medians(rounds_ms) / _medians(baseline_ms)
    return {
        "median_ms": float(median),
        "p10_ms": float(low),
        "p90_ms": float(high),
        "ratio": float(np.median(ratio_R)),
        "ratio_low": float(ratio_R.min()),
        "ratio_high": float(ratio_R.max()),
    }


def _medians(rounds_ms: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
    return np.array([np.median(runs_ms) for runs_ms in rounds_ms])


def conditions() -> dict[str, Any]:
    """The machine that measures, as it is now."""
    import torch

    return {
        "cpu": _cpu_model(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "system": platform.platform(),
        "load_average": os.getloadavg()[0],
        "packages": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of what runs detectors, as far as it is installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
