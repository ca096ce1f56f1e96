"""Times a detector in a process of its own, so that no other model affects its caches, threads or allocators.

`Stopwatch` starts the process, which loads the detector and then waits; `measure` has it run a few times.
"""

import json
import os
import subprocess
import sys
import time
from typing import Any, Literal

Device = Literal["cpu", "cuda"]

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Stopwatch:
    """One detector on one device, loaded and waiting.

    Args:
        location: detector directory, trained or exported.
        device: where it runs.
        num_threads: of the CPU; set before any library starts.
    """

    def __init__(self, location: str, device: Device, num_threads: int) -> None:
        environment = os.environ | dict.fromkeys(THREADS, str(num_threads))
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        code = f"from raydistal.compression.stopwatch import serve; serve({location!r}, {device!r}, {num_threads})"
        self._child = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._read()

    def measure(self, batch_size: int, num_runs: int) -> list[float]:
        """Milliseconds of each of `num_runs` runs on `batch_size` crops, after one that is not counted."""
        assert self._child.stdin
        self._child.stdin.write(json.dumps([batch_size, num_runs]) + "\n")
        self._child.stdin.flush()
        return list(self._read())

    def close(self) -> None:
        """Ends the process."""
        self._child.kill()
        self._child.communicate()

    def _read(self) -> Any:
        assert self._child.stdout
        line = self._child.stdout.readline()
        if not line:
            self.close()
            raise RuntimeError("the process that measures a detector died; see its error output above")
        return json.loads(line)


def serve(location: str, device: Device, num_threads: int) -> None:
    """The process: for each line [batch_size, num_runs] on stdin, a line of milliseconds, until stdin closes."""
    import numpy as np
    import torch

    from raydistal.detector import runtime

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not end up in an answer
    torch.set_num_threads(num_threads)
    model, _ = runtime.load(location)
    logits = runtime.start(model, device)
    rng = np.random.default_rng(0)
    crops: dict[int, runtime.Crops] = {}
    print("[]", file=answers, flush=True)
    for line in sys.stdin:
        batch_size, num_runs = json.loads(line)
        if batch_size not in crops:
            shape = (batch_size, model.input_px, model.input_px, 3)
            crops[batch_size] = rng.integers(0, 256, shape, dtype=np.uint8)
            logits(crops[batch_size])  # the first run allocates memory
        logits(crops[batch_size])
        took = [_time(logits, crops[batch_size], device) for _ in range(num_runs)]
        print(json.dumps(took), file=answers, flush=True)


def _time(logits: Any, crops_NHWC: Any, device: Device) -> float:
    """Milliseconds, from crops in memory to logits in memory."""
    if device == "cpu":
        began = time.perf_counter()
        logits(crops_NHWC)
        return 1e3 * (time.perf_counter() - began)
    import torch

    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    logits(crops_NHWC)
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))
