"""The app as it runs: `raydistal serve` in a process and on a cluster of its own, asked by HTTP."""

import contextlib
import io
import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import jsonschema
import numpy as np
import pytest
import requests

from raydistal.detector import runtime, scoring
from raydistal.verdict import examine
from raydistal.verdict.examine import Judge

pytestmark = pytest.mark.ray
MAX_QUEUE = 6
LIMITS = ["--max-upload-mb", "2", "--max-seconds", "5", "--max-pixels", "1000000", "--max-queue", str(MAX_QUEUE)]
LIMITS += ["--timeout-s", "20", "--memory-mib", "700"]


class App:
    """The running app; `detector` is what it serves."""

    def __init__(self, detector: Path, folder: Path) -> None:
        self.detector, self.folder = detector, folder / "uploads"
        self.folder.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.ray = tempfile.mkdtemp(prefix="raydistal-", dir="/tmp")  # short: it holds sockets
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"RAY_USAGE_STATS_ENABLED": "0"}
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": self.ray}
        environment |= {"TMPDIR": str(self.folder)}
        program = Path(sys.executable).with_name("raydistal")
        command = [program, "serve", "--detector", detector, "--port", str(port), "--examiners", "1", *LIMITS]
        self.errors = (folder / "stderr").open("w+")
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.until(lambda: "Ctrl-C ends it" in self.said() or self.process.poll() is not None, 240)
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        self.errors.flush()
        return Path(self.errors.name).read_text()

    def until(self, holds: Any, limit_s: float = 90) -> None:
        deadline = time.monotonic() + limit_s
        while not holds():
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def upload(self, name: str, content: bytes) -> requests.Response:
        return requests.post(f"{self.url}/api/videos", params={"name": name}, data=content, timeout=60)

    def status(self, url: str) -> dict[str, Any]:
        return requests.get(self.url + url, timeout=60).json()

    def finished(self, url: str) -> dict[str, Any]:
        self.until(lambda: self.status(url)["state"] in ("done", "failed"))
        return self.status(url)

    def examined(self, name: str, content: bytes) -> dict[str, Any]:
        """What becomes of an upload; comes back as long as the queue is full."""
        while (answer := self.upload(name, content)).status_code == 503:
            assert int(answer.headers["Retry-After"]) > 0
            time.sleep(0.2)
        if answer.status_code == 400:
            return {"state": "refused", **answer.json()}
        assert answer.status_code == 202, answer.text
        return self.finished(answer.json()["url"])

    def replicas(self) -> dict[str, int]:
        """Process ids of the replicas of this app, by deployment."""
        found = {}
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):  # it has ended
                title = Path(f"/proc/{pid}/cmdline").read_bytes()
                if named := re.search(rb"ServeReplica:raydistal:(\w+)", title):
                    found[named[1].decode()] = pid
        return found

    def close(self) -> dict[str, Any]:
        """Ends it by Ctrl-C; its summary."""
        self.process.send_signal(signal.SIGINT)
        out, _ = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, self.said()
        return json.loads(out.splitlines()[-1])


def descendants(pid: int) -> list[int]:
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(") ")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


@pytest.fixture(scope="module")
def app(exported, tmp_path_factory) -> Iterator[App]:
    """Serves the int8 export: without PyTorch, its heatmaps by what it was exported from."""
    app = App(exported / "int8", tmp_path_factory.mktemp("app"))
    try:
        yield app
    finally:
        app.process.send_signal(signal.SIGTERM)
        app.process.wait(120)
        shutil.rmtree(app.ray, ignore_errors=True)


@pytest.fixture(scope="module")
def clip(clip_writer, tmp_path_factory) -> Path:
    return clip_writer(tmp_path_factory.mktemp("clip") / "clip.mp4", num_frames=20)


def test_the_app_says_of_a_video_what_the_verdict_says(app, clip, tmp_path):
    told = app.examined("my clip.mp4", clip.read_bytes())
    assert told["state"] == "done", told
    schema = requests.get(f"{app.url}/openapi.json", timeout=60).json()
    status = schema["components"]["schemas"]["Status"] | {"components": schema["components"]}
    jsonschema.Draft202012Validator(status).validate(told)

    model, about = runtime.load(str(app.detector))
    judge = Judge("int8", about, scoring.Scorer(model))
    steps = examine.examine(str(clip), "my clip.mp4", str(tmp_path / "here"), judge)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            here = end.value
            break
    found = told["result"]
    assert found["probability"] == pytest.approx(here["probability"], abs=1e-6)
    assert [one["probability"] for one in found["timeline"]] == pytest.approx(
        [one["probability"] for one in here["timeline"]], abs=2e-6
    )
    assert found["detector"] == here["detector"]
    assert (found["detector"]["precision"], found["protocol"]["sample"]) == ("int8", "even:6")

    url = f"{app.url}/api/videos/{told['id']}/files"
    [track] = found["tracks"]
    for name, start in (
        (found["annotated"], b"ftyp"),
        (track["thumbnail"], b"\xff\xd8"),
        (track["heatmap"], b"\xff\xd8"),
    ):
        assert start in requests.get(f"{url}/{name}", timeout=60).content[:12]
    assert requests.get(f"{url}/verdict.json", timeout=60).json()["probability"] == found["probability"]
    assert requests.get(f"{url}/timeline.csv", timeout=60).text.startswith("track,frame_index")
    assert requests.delete(f"{app.url}/api/videos/{told['id']}", timeout=60).status_code == 204


def test_limits_are_told_in_words(app, clip_writer, tmp_path):
    long = clip_writer(tmp_path / "long.mp4", num_frames=12, steps_ms=[500]).read_bytes()
    large = clip_writer(tmp_path / "large.mp4", num_frames=2, size=(1280, 800)).read_bytes()
    for name, content, words in (
        ("long.mp4", long, ("6.0 s", "5 s")),
        ("large.mp4", large, ("1280 x 800", "1000000")),
        ("notes.txt", b"dear diary, " * 100, ("cannot be read as a video",)),
    ):
        told = app.examined(name, content)
        status = "decode_error" if name == "notes.txt" else "over_limit"
        assert (told["state"], told["error"]["status"], told["result"]) == ("failed", status, None)
        assert all(word in told["error"]["message"] for word in words), told["error"]
    assert app.upload("x", b"x" * 2_000_001).status_code == 413


def test_more_uploads_than_places_and_nothing_is_lost(app, clip):
    examiner = app.replicas()["Examiner"]
    os.kill(examiner, signal.SIGSTOP)  # no place becomes free meanwhile
    with ThreadPoolExecutor(2 * MAX_QUEUE) as people:
        answers = list(people.map(lambda n: app.upload(f"{n}.mp4", clip.read_bytes()), range(2 * MAX_QUEUE)))
    os.kill(examiner, signal.SIGCONT)
    accepted = [answer.json()["url"] for answer in answers if answer.status_code == 202]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert (len(accepted), len(refused)) == (MAX_QUEUE, MAX_QUEUE)
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    assert {app.finished(url)["state"] for url in accepted} == {"done"}


def test_processes_that_are_killed_cost_time_only(app, clip):
    before = app.replicas()
    assert set(before) == {"Web", "Examiner", "Scorer"}
    urls = [app.upload(f"{number}.mp4", clip.read_bytes()).json()["url"] for number in range(2)]
    app.until(lambda: app.status(urls[0])["state"] != "waiting")
    for name in ("Scorer", "Examiner"):
        os.kill(before[name], signal.SIGKILL)
    assert [app.finished(url)["state"] for url in urls] == ["done", "done"]
    app.until(lambda: set(app.replicas()) == set(before))
    assert app.replicas()["Web"] == before["Web"]


def damaged(clip: bytes, others: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """210 files that are not what they should be."""
    rng = random.Random(0)
    for number in range(50):
        yield f"truncated {number}.mp4", clip[: 1 + len(clip) * number // 50]
    sources = [("clip.mp4", clip), *others.items()]
    for number in range(120):
        name, content = sources[number % len(sources)]
        flipped = bytearray(content)
        for _ in range(1 << rng.randrange(1, 8)):
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
        yield f"flipped {number} {name}", bytes(flipped)
    for number in range(20):
        yield f"noise {number}.mp4", rng.randbytes(1 << number // 2)
    yield from others.items()
    yield from wrong_types(clip).items()
    yield from bombs(clip).items()


def wrong_types(clip: bytes) -> dict[str, bytes]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../clip.mp4", clip)
    return {
        "empty.mp4": b"",
        "archive.mp4": archive.getvalue(),
        "page.html": b"<!DOCTYPE html><script>alert(1)</script>",
        "picture.svg": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "list.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "list.ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "stream.sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
        "dash.mpd": b'<?xml version="1.0"?><MPD><Period><BaseURL>file:///etc/passwd</BaseURL></Period></MPD>',
        "sound.wav": b"RIFF\x24\x08\x00\x00WAVEfmt \x10\x00\x00\x00\x01\x00\x01\x00" + bytes(2000),
        "program": b"\x7fELF" + bytes(500),
        "zeros.mp4": bytes(1_000_000),
    }


def bombs(clip: bytes) -> dict[str, bytes]:
    """Little files that claim, or unpack to, a lot."""

    def png(width_px: int, height_px: int, rows: bytes) -> bytes:
        header = struct.pack(">IIBBBBB", width_px, height_px, 8, 0, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
        body = (struct.pack(">I", len(c)) + k + c + struct.pack(">I", zlib.crc32(k + c)) for k, c in chunks)
        return b"\x89PNG\r\n\x1a\n" + b"".join(body)

    at = clip.index(b"mvhd") + 4
    longer = clip[: at + 12] + struct.pack(">II", 1, 0xFFFFFFFE) + clip[at + 20 :]
    many = clip.index(b"stts") + 8
    return {
        "claims.png": png(0x7FFFFFFF, 0x7FFFFFFF, b""),
        "unpacks.png": png(8000, 8000, bytes(8001 * 8000)),
        "claims.gif": b"GIF89a"
        + struct.pack("<HH", 65535, 65535)
        + b"\xf0\0\0"
        + bytes(6)
        + b",\0\0\0\0\xff\xff\xff\xff\0\2\2L\1\0;",
        "claims.bmp": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0),
        "longer.mp4": longer,
        "slower.mp4": clip[: many + 4] + struct.pack(">I", 0x7FFFFFFF) + clip[many + 8 :],
    }


def test_no_file_ends_a_replica(app, clip, clip_writer, tmp_path):
    others = {}
    for name, codec, pix_fmt in (
        ("other.avi", "mpeg4", "yuv420p"),
        ("other.webm", "libvpx", "yuv420p"),
        ("other.gif", "gif", "rgb8"),
    ):
        others[name] = clip_writer(tmp_path / name, codec, num_frames=4, pix_fmt=pix_fmt).read_bytes()
    picture_HWC = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    others |= {f"other{kind}": cv2.imencode(kind, picture_HWC)[1].tobytes() for kind in (".png", ".jpg", ".webp")}
    small = clip_writer(tmp_path / "small.mp4", num_frames=6, size=(64, 48)).read_bytes()
    before = app.replicas()
    corpus = list(damaged(small, others))
    assert len(corpus) > 200
    with ThreadPoolExecutor(MAX_QUEUE) as people:
        found = list(people.map(lambda one: app.examined(*one), corpus))
    assert app.replicas() == before
    states = {state: sum(one["state"] == state for one in found) for state in ("done", "failed", "refused")}
    assert sum(states.values()) == len(corpus)
    assert states["refused"] == 1  # the empty one
    assert min(states["done"], states["failed"]) > 20  # both are tried
    assert {one["error"]["status"] for one in found if one["state"] == "failed"} <= {
        "decode_error",
        "over_limit",
        "crashed",
        "timeout",
    }
    by_name = {name: one["state"] for (name, _), one in zip(corpus, found, strict=True)}
    assert {by_name[name] for name in others} == {"done"}
    assert {by_name[name] for name in ("unpacks.png", "claims.gif", "list.m3u8", "picture.svg")} == {"failed"}
    assert app.examined("clip.mp4", clip.read_bytes())["state"] == "done"


def test_ctrl_c_ends_it_and_what_people_uploaded(app, clip):
    url = app.upload("clip.mp4", clip.read_bytes()).json()["url"]
    app.until(lambda: app.status(url)["state"] != "waiting")
    assert [path for path in app.folder.rglob("*") if path.is_file()]
    assert app.close()["url"] == f"{app.url}/"
    assert not list(app.folder.glob("raydistal-serve-*"))
    said = [line for line in app.said().splitlines() if "A worker died or was killed" not in line]  # by another test
    assert [line.partition(" ")[0] for line in said] == ["serve:", "serve:"], app.said()
