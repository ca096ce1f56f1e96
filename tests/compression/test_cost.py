from typing import ClassVar

import numpy as np
import pytest

from raydistal.compression import cost
from raydistal.compression.cost import Case
from raydistal.compression.counting import count_macs
from raydistal.compression.stopwatch import Stopwatch
from raydistal.detector import checkpoint
from raydistal.errors import UserError

pytestmark = pytest.mark.slow


def test_what_needs_no_stopwatch(exported):
    detector, about = checkpoint.load(str(exported / "detector"))
    same = {"architecture": "timm:test_resnet", "input_px": 32, "num_params": about["num_params"]}
    same |= {"macs": count_macs(detector)}
    weights, model = exported / "detector/weights.safetensors", exported / "int8/model.onnx"
    assert cost.describe(str(exported / "detector")) == same | {
        "model_id": checkpoint.model_id(about),
        "runtime": "torch",
        "precision": "float32",
        "size_mb": weights.stat().st_size / 1e6,
    }
    assert cost.describe(str(exported / "int8")) == same | {
        "model_id": checkpoint.model_id(checkpoint.read_about(str(exported / "int8"))),
        "runtime": "onnx",
        "precision": "int8",
        "size_mb": model.stat().st_size / 1e6,
    }
    with pytest.raises(UserError, match="no finished detector"):
        cost.describe(str(exported))


class FakeWatch:
    """Takes location + batch_size milliseconds, and what the round adds."""

    log: ClassVar[list] = []

    def __init__(self, location, device, num_threads):
        self.location, self.about = location, (device, num_threads)
        FakeWatch.log.append(("start", location, device, num_threads))

    def measure(self, batch_size, num_runs):
        FakeWatch.log.append(("run", self.location, batch_size, num_runs))
        return [float(self.location) + batch_size] * num_runs

    def close(self):
        FakeWatch.log.append(("close", self.location))


def test_every_round_times_every_case_once_in_random_order(monkeypatch):
    monkeypatch.setattr(cost, "Stopwatch", FakeWatch)
    monkeypatch.setattr(FakeWatch, "log", [])
    cases = [Case(number, "cpu", batch_size) for number in (0, 1, 2) for batch_size in (1, 4)]
    rounds = []
    found = cost.time_rounds(["10", "20", "30"], cases, 2, 6, 0, lambda: rounds.append(len(FakeWatch.log)))
    assert found == {
        case: [[10.0 * (case.number + 1) + case.batch_size] * (10 if case.batch_size == 1 else 3)] * 6 for case in cases
    }
    assert FakeWatch.log[:3] == [("start", name, "cpu", 2) for name in ("10", "20", "30")]
    assert FakeWatch.log[-3:] == [("close", name) for name in ("10", "20", "30")]
    orders = [tuple(FakeWatch.log[end - 6 : end]) for end in rounds]
    assert all(len(set(order)) == 6 for order in orders)
    assert len(set(orders)) > 3
    again = []
    FakeWatch.log.clear()
    cost.time_rounds(["10", "20", "30"], cases, 2, 6, 0, lambda: again.append(tuple(FakeWatch.log[-6:])))
    assert again == orders


def test_processes_end_even_if_one_dies(monkeypatch):
    class Dying(FakeWatch):
        def measure(self, batch_size, num_runs):
            raise RuntimeError("died")

    monkeypatch.setattr(cost, "Stopwatch", Dying)
    monkeypatch.setattr(FakeWatch, "log", [])
    with pytest.raises(RuntimeError, match="died"):
        cost.time_rounds(["1", "2"], [Case(0, "cpu", 1), Case(1, "cpu", 1)], 1, 1, 0, lambda: None)
    assert FakeWatch.log[-2:] == [("close", "1"), ("close", "2")]


def test_ratios_are_paired_by_round():
    baseline = [[10.0, 10.0, 10.0], [100.0, 100.0, 100.0], [20.0, 20.0, 20.0]]
    rounds = [[5.0, 5.0, 9.0], [60.0, 60.0, 60.0], [30.0, 30.0, 30.0]]
    low, median, high = np.percentile([5, 5, 9, 60, 60, 60, 30, 30, 30], [10, 50, 90])
    assert cost.summarise(rounds, baseline) == {
        "median_ms": median,
        "p10_ms": low,
        "p90_ms": high,
        "ratio": 0.6,
        "ratio_low": 0.5,
        "ratio_high": 1.5,
    }


def test_conditions_name_the_machine():
    told = cost.conditions()
    assert told["cpu"]
    assert told["num_cpus"] >= 1
    assert told["load_average"] >= 0
    assert {"python", "torch", "onnxruntime"} <= told["packages"].keys()


def test_a_process_that_dies_is_told(tmp_path, capfd):
    with pytest.raises(RuntimeError, match="died"):
        Stopwatch(str(tmp_path / "absent"), "cpu", 1)
    assert "no finished detector" in capfd.readouterr().err
