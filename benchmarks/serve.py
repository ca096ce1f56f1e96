"""The web app: how long people wait for a verdict, one and several at once, against the same work in this process."""

import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.table import Table

from benchmarks.clips import describe, make_clips
from benchmarks.measure import Ratio
from raydistal.detector import checkpoint, heatmaps, scoring, zoo
from raydistal.verdict import examine

FACES = {"sample": "even:20", "sample_fake": "even:20", "detector": "haar", "scale_factor": 1.2, "min_neighbors": 5}
FACES |= {"min_face": 0.1, "margin": 0.3, "size_px": 224, "crops": "jpeg:95"}
AGAIN_S = 0.2  # after a 503; shorter than Retry-After, so that the machine is never idle
NUM_EACH = 2  # videos of a person, one after the other


def run(
    console: Console,
    *,
    size: str,
    users: tuple[int, ...] = (1, 2, 4, 8),
    seconds: float = 10,
    architecture: str = "efficientnet_b0",
    overload: int = 32,
) -> list[Ratio]:
    """Each of `users` uploads NUM_EACH videos one after the other; then `overload` come at once to a short queue."""
    [path] = make_clips(size, 48, 1, seconds)
    with tempfile.TemporaryDirectory() as folder:
        detector = f"{folder}/detector"
        make_detector(detector, architecture)
        alone_s = statistics.median(in_this_process(path, detector, f"{folder}/out") for _ in range(3))
        with served(detector, Path(folder)) as url:
            wait_for(url, path)  # the first starts the child processes
            waits_s = {num: at_once(url, path, num) for num in users}
            began = time.monotonic()
            with ThreadPoolExecutor(overload) as people:
                lost = list(people.map(lambda _: wait_for(url, path)[1], range(overload))).count(False)
            overload_s = time.monotonic() - began
    table = Table("users", "median wait, s", "longest, s", "videos/min", title=f"serve: {describe([path])}")
    for num, found in waits_s.items():
        rate = 60 * num / statistics.mean(found)
        table.add_row(f"{num}", f"{statistics.median(found):.2f}", f"{max(found):.2f}", f"{rate:.1f}")
    table.add_row("in this process", f"{alone_s:.2f}", "", f"{60 / alone_s:.1f}")
    console.print(table)
    console.print(f"overload: {overload} at once, {overload_s:.0f} s, {lost} lost")
    one_s, most_s = (statistics.median(waits_s[num]) for num in (users[0], users[-1]))
    return [
        Ratio("serve", "one user, the app : the same work in this process", one_s / alone_s, 1.3),
        Ratio("serve", f"{users[-1]} users at once : one after the other", most_s / users[-1] / one_s, 1.0),
        Ratio("serve", f"{overload} at once, lost", lost, 0),
    ]


def make_detector(location: str, architecture: str) -> None:
    """Untrained: its verdicts mean nothing, and cost as much as those of a trained one."""
    about: dict[str, Any] = {"technique": "train", "parent": None, "threshold": {"video": 0.5, "frame": 0.5}}
    about["data"] = {"location": "", "dataset": ["synthetic"], "synthetic": True, "faces": FACES}
    checkpoint.save(location, zoo.create(architecture, "random", 0), about)


def in_this_process(path: Path, detector: str, out: str) -> float:
    """Seconds that the verdict takes with the detector loaded; the decoding children stay from the first call on."""
    model, about = checkpoint.load(detector)
    judge = examine.Judge("detector", about, scoring.Scorer(model), heatmaps.of(detector))
    began = time.monotonic()
    for _ in examine.examine(str(path), path.name, out, judge):
        pass
    return time.monotonic() - began


@contextmanager
def served(detector: str, folder: Path) -> Iterator[str]:
    """The address of the app, on a cluster of its own with all CPUs of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray = tempfile.mkdtemp(prefix="raydistal-", dir="/tmp")  # short: it holds sockets
    environment = os.environ | {"RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": ray, "TMPDIR": str(folder)}
    environment.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-m", "raydistal", "serve", "--detector", detector, "--port", str(port)]
    process = subprocess.Popen([*command, "--max-queue", "16"], env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        if not any("Ctrl-C ends it" in line for line in process.stderr):
            raise RuntimeError("the app did not start")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=120)
        shutil.rmtree(ray, ignore_errors=True)


def at_once(url: str, path: Path, num_users: int) -> list[float]:
    """Seconds that each video of each user took."""

    def use(_: int) -> list[float]:
        return [wait_for(url, path)[0] for _ in range(NUM_EACH)]

    with ThreadPoolExecutor(num_users) as people:
        return [wait_s for waits_s in people.map(use, range(num_users)) for wait_s in waits_s]


def wait_for(url: str, path: Path) -> tuple[float, bool]:
    """Seconds from the upload to the annotated video, and whether it came."""
    began = time.monotonic()
    content = path.read_bytes()
    while (answer := post(url, path.name, content)).status_code == 503:
        time.sleep(AGAIN_S)
    place = url + answer.json()["url"]
    while (told := requests.get(place, timeout=600).json())["state"] not in ("done", "failed"):
        time.sleep(0.1)
    is_there = told["state"] == "done"
    if is_there:
        is_there = requests.get(f"{place}/files/{told['result']['annotated']}", timeout=600).status_code == 200
    requests.delete(place, timeout=600)
    return time.monotonic() - began, is_there


def post(url: str, name: str, content: bytes) -> requests.Response:
    """The answer to an upload."""
    return requests.post(f"{url}/api/videos", params={"name": name}, data=content, timeout=600)
