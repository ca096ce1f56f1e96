"""The HTTP API by itself, with made-up verdicts. Every answer is held against /openapi.json."""

import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import jsonschema
import pytest
import requests
import uvicorn

from raydistal.serving import answers, api
from raydistal.serving.jobs import Failure, Jobs, Piece
from raydistal.serving.settings import Limits
from raydistal.verdict.examine import Progress

DETECTOR = {"name": "made up", "model_id": "0" * 12, "architecture": "xception", "technique": "train"}
DETECTOR |= {"runtime": "torch", "precision": "float32", "trained_on": [], "synthetic": True}
DETECTOR |= {"threshold": 0.5, "low": 0.4, "high": 0.6}
PROTOCOL = {"sample": "even:4", "timeline": "fps:4", "aggregate": "mean", "faces": {"detector": "haar"}}
VIDEO = {"width_px": 64, "height_px": 48, "num_frames": 9, "duration_s": 0.36, "is_picture": False}
TRACK = {"track": 1, "verdict": "fake", "is_judged": True, "probability": 0.9, "first_s": 0.0, "last_s": 0.2}
TRACK |= {"num_frames": 2, "thumbnail": "face-1.jpg", "heatmap": None}
MOMENT = {"track": 1, "frame_index": 0, "pts_s": 0.0, "probability": 0.9, "box_xyxy_px": [1.0, 2.0, 3.0, 4.0]}
RESULT = {"status": "ok", "error": None, "verdict": "fake", "probability": 0.9, "reason": "Because."}
RESULT |= {"tracks": [TRACK], "timeline": [MOMENT | {"is_sampled": True}], "annotated": "annotated.mp4"}
RESULT |= {"detector": DETECTOR, "protocol": PROTOCOL, "raydistal": "0.1.0"}
LIMITS = Limits(max_upload_mb=1, max_queue=3)
FILES = {
    "annotated.mp4": b"not really a video",
    "verdict.json": b"{}",
    "timeline.csv": b"track\n",
    "face-1.jpg": b"\xff",
}


class Server:
    """The app on a port of this machine; how long its work takes is up to a test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.go, self.ended = folder, threading.Event(), threading.Event()
        self.go.set()
        limits = {name: getattr(LIMITS, name) for name in answers.LimitsTold.model_fields}
        about = answers.About.model_validate({"detector": DETECTOR, "protocol": PROTOCOL, "limits": limits})

        async def serve(listening: socket.socket) -> None:
            app = api.make(Jobs(folder, LIMITS, self.examine, 1), about, ["127.0.0.1", "localhost", "x"])
            self.uvicorn = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
            await self.uvicorn.serve(sockets=[listening])

        listening = socket.create_server(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=lambda: asyncio.run(serve(listening)))
        self.thread.start()

    async def examine(self, path, name):
        try:
            yield Progress("faces", 1, 2)
            yield Piece("face-1.jpg", FILES["face-1.jpg"][:0])
            while not self.go.is_set():
                await asyncio.sleep(0.01)
            if name == "notes.txt":
                yield Failure("decode_error", "cannot be read as a video")
                return
            for file, content in FILES.items():
                yield Piece(file, content)
            yield RESULT | {"video": VIDEO | {"name": name}} | ({"surprise": 1} if name == "bug" else {})
        finally:
            self.ended.set()

    def close(self) -> None:
        self.go.set()
        self.uvicorn.should_exit = True
        self.thread.join()


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()
    assert not list(tmp_path.iterdir())  # all that people uploaded goes with the app


def call(server: Server, method: str, path: str, template: str = "", **options: Any) -> requests.Response:
    """The answer; fails if the schema does not know it, or a header is missing."""
    answer = requests.request(method, server.url + path, timeout=60, **options)
    for name, value in api.HEADERS.items():
        assert answer.headers[name] == value
    if template:
        schema = requests.get(f"{server.url}/openapi.json", timeout=60).json()
        told = schema["paths"][template][method.lower()]["responses"][str(answer.status_code)]
        if content := told.get("content"):
            kind = answer.headers["content-type"].partition(";")[0]
            if kind == "application/json" and "schema" in content[kind]:
                of_answer = content[kind]["schema"] | {"components": schema["components"]}
                jsonschema.Draft202012Validator(of_answer).validate(answer.json())
            assert kind in content
    return answer


def upload(server: Server, name: str = "clip.mp4", content: Any = b"some bytes", **options: Any) -> requests.Response:
    path = f"/api/videos?name={quote(name)}"
    return call(server, "POST", path, "/api/videos", data=content, **options)


def status(server: Server, url: str) -> dict[str, Any]:
    answer = call(server, "GET", url, "/api/videos/{video_id}")
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


def finished(server: Server, url: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (told := status(server, url))["state"] not in ("done", "failed"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return told


@pytest.mark.slow
def test_the_life_of_an_upload(server):
    server.go.clear()
    answer = upload(server)
    assert answer.status_code == 202
    told, url = answer.json(), answer.json()["url"]
    assert url == f"/api/videos/{told['id']}"
    second = upload(server, "second.mp4").json()
    while (now := status(server, url))["state"] == "waiting":
        time.sleep(0.01)
    assert (now["state"], now["progress"], now["result"], now["error"]) == ("faces", 0.3, None, None)
    third = status(server, upload(server, "third.mp4").json()["url"])
    assert (third["state"], third["ahead"]) == ("waiting", 1)
    assert call(server, "GET", f"{url}/files/face-1.jpg", FILE).status_code == 404  # not whole yet
    server.go.set()
    now = finished(server, url)
    assert (now["state"], now["progress"], now["name"]) == ("done", 1.0, "clip.mp4")
    assert now["result"] == RESULT | {"video": VIDEO | {"name": "clip.mp4"}}
    for file, content in FILES.items():
        answer = call(server, "GET", f"{url}/files/{file}", FILE)
        assert (answer.content, answer.headers["cache-control"]) == (content, "no-store")
        assert "content-disposition" not in answer.headers
    part = call(server, "GET", f"{url}/files/annotated.mp4", FILE, headers={"Range": "bytes=4-9"})
    assert (part.status_code, part.content) == (206, FILES["annotated.mp4"][4:10])
    assert call(server, "GET", f"{url}/files/annotated.mp4", FILE, headers={"Range": "bytes=99-"}).status_code == 416
    kept = call(server, "GET", f"{url}/files/annotated.mp4?download=1", FILE)
    assert kept.headers["content-disposition"] == 'attachment; filename="clip-annotated.mp4"'
    assert call(server, "GET", f"{url}/files/annotated.mp4?download=maybe", FILE).status_code == 422
    assert call(server, "DELETE", url, "/api/videos/{video_id}").status_code == 204
    for method in ("GET", "DELETE"):
        assert call(server, method, url, "/api/videos/{video_id}").status_code == 404
    assert call(server, "GET", f"{url}/files/annotated.mp4", FILE).status_code == 404
    assert finished(server, second["url"])["result"]["video"]["name"] == "second.mp4"


FILE = "/api/videos/{video_id}/files/{file}"


def test_what_cannot_be_examined_says_why(server):
    told = finished(server, upload(server, "notes.txt").json()["url"])
    assert (told["state"], told["result"]) == ("failed", None)
    assert told["error"] == {"status": "decode_error", "message": "cannot be read as a video"}


def test_another_name_is_refused(server):
    for host, code in (("127.0.0.1:1", 200), ("LOCALHOST", 200), ("evil.example.org", 400), ("", 400)):
        assert call(server, "GET", "/api/about", headers={"Host": host}).status_code == code
    answer = call(server, "POST", "/api/videos", data=b"some bytes", headers={"Host": "127.0.0.1.example.org"})
    assert (answer.status_code, answer.text) == (400, "Invalid host header")
    assert not list(server.folder.iterdir())


def test_too_large_is_refused_by_its_header_and_by_its_bytes(server):
    def in_chunks():
        for _ in range(40):
            yield b"x" * (1 << 16)

    for content in (b"x" * 1_000_001, in_chunks()):
        answer = upload(server, content=content)
        assert answer.status_code == 413
        assert answer.json() == {"detail": "the file is larger than 1 MB"}
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sender:  # refused before it is sent
        sender.sendall(b"POST /api/videos HTTP/1.1\r\nHost: x\r\nContent-Length: 1000001\r\n\r\n")
        assert sender.recv(1000).startswith(b"HTTP/1.1 413 ")
    assert not list(server.folder.iterdir())
    assert upload(server, content=b"x" * 1_000_000).status_code == 202


def test_an_empty_or_aborted_upload_leaves_nothing(server):
    assert upload(server, content=b"").status_code == 400
    for _ in range(LIMITS.max_queue + 1):
        with socket.create_connection(("127.0.0.1", server.port)) as sender:
            sender.sendall(b"POST /api/videos HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nsome of it")
    deadline = time.monotonic() + 60
    while upload(server).status_code != 202 or len(list(server.folder.iterdir())) != 1:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_full_queue_refuses_before_it_reads_and_loses_nothing(server):
    server.go.clear()
    accepted = [upload(server, f"{number}.mp4").json()["url"] for number in range(LIMITS.max_queue)]
    answer = upload(server)
    assert (answer.status_code, int(answer.headers["retry-after"]) > 0) == (503, True)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as sender:
        sender.sendall(b"POST /api/videos HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert sender.recv(1000).startswith(b"HTTP/1.1 503 ")
    server.go.set()
    assert [finished(server, url)["name"] for url in accepted] == ["0.mp4", "1.mp4", "2.mp4"]
    assert upload(server).status_code == 202


def test_delete_ends_the_work(server):
    server.go.clear()
    url = upload(server).json()["url"]
    while status(server, url)["state"] == "waiting":
        time.sleep(0.01)
    assert call(server, "DELETE", url, "/api/videos/{video_id}").status_code == 204
    assert server.ended.wait(60)
    assert not list(server.folder.iterdir())


HOSTILE = [
    "../../etc/passwd",
    "<script>alert(1)</script>.mp4",
    'a";\r\nSet-Cookie: a=b.mp4',
    "clip\u202e4pm.exe",
    "\0\x1b[31m",
    "한국어 видео.mp4",
    "x" * 5000,
    "",
    "..",
]


def test_a_hostile_name_is_only_ever_shown(server):
    for name in HOSTILE:
        url = upload(server, name).json()["url"]
        told = finished(server, url)
        assert told["name"] == told["result"]["video"]["name"]
        assert told["name"].isprintable()
        assert 0 < len(told["name"]) <= 200
        kept = call(server, "GET", f"{url}/files/annotated.mp4?download=1", FILE)
        assert "set-cookie" not in kept.headers
        kind, filename = re.fullmatch(
            r"attachment; (filename\*=utf-8''|filename=)(.+)", kept.headers["content-disposition"]
        ).groups()
        stem = unquote(filename) if "*" in kind else filename.strip('"')
        assert re.fullmatch(r"[\w-]+-annotated\.mp4", stem)
        assert call(server, "DELETE", url).status_code == 204
    assert not list(server.folder.iterdir())


def test_a_result_has_no_other_files_and_no_other_readers(server):
    told = upload(server).json()
    other = upload(server, "other.mp4").json()
    finished(server, told["url"])
    assert min(len(one["id"]) for one in (told, other)) >= 43  # 256 bits
    assert told["id"][:8] != other["id"][:8]
    for wrong in ("", told["id"][:-1], told["id"].swapcase(), "*", "..", quote("../" + told["id"], safe="")):
        assert call(server, "GET", f"/api/videos/{wrong}").status_code in (404, 405)
    for file in (
        "upload",
        "../upload",
        "..%2fupload",
        "%2e%2e/upload",
        "result-verdict.json",
        ".",
        "%00",
        "face-2.jpg",
    ):
        answer = requests.Request("GET", server.url).prepare()
        answer.url = f"{server.url}{told['url']}/files/{file}"  # as it is, dots and all
        with requests.Session() as session:
            assert session.send(answer, timeout=60).status_code == 404


def test_pages_of_other_sites_cannot_fill_the_queue(server):
    assert upload(server, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert upload(server, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 202


def test_everything_else_is_an_answer_too(server):
    assert call(server, "GET", "/healthz", "/healthz").json() == {"status": "ok"}
    assert call(server, "GET", "/api/about", "/api/about").json()["limits"]["max_upload_mb"] == 1
    for path in ("/docs", "/redoc", "/static/../api.py", "/static/nothing.js", "/no/such/page"):
        assert "detail" in call(server, "GET", path).json()
    assert call(server, "PUT", "/api/about").status_code == 405
    bug = upload(server, "bug").json()["url"]
    deadline = time.monotonic() + 60
    while (answer := call(server, "GET", bug)).status_code == 200:  # a result that does not fit the schema
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (answer.status_code, "surprise" in answer.text) == (500, False)


def test_the_page_fetches_nothing_from_elsewhere(server):
    for path, kind in (("/", "html"), ("/static/app.js", "javascript"), ("/static/style.css", "css")):
        answer = call(server, "GET", path)
        assert kind in answer.headers["content-type"]
        assert answer.headers["cache-control"] == "no-cache"
        outside = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+", answer.text)) - {"http://www.w3.org"}
        assert not outside


def test_every_part_of_the_api_is_described(server):
    schema = call(server, "GET", "/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    assert set(schema["paths"]) == {"/api/videos", "/api/videos/{video_id}", FILE, "/api/about", "/healthz"}
    for path, methods in schema["paths"].items():
        for method, told in methods.items():
            assert told["summary"]
            for code, answer in told["responses"].items():
                assert answer["description"], (path, method, code)
                assert int(code) < 400 or code == "416" or "Problem" in json.dumps(answer["content"])
    with contextlib.suppress(ImportError):  # of moto's
        from openapi_spec_validator import validate

        validate(schema)
