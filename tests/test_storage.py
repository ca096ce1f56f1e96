import http.client
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from raydistal import storage
from raydistal.errors import UserError


def test_join_and_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert storage.join("a/b", "c", "d.txt") == "a/b/c/d.txt"
    assert storage.join("s3://bucket/a", "b") == "s3://bucket/a/b"
    assert storage.join("s3://bucket", "b") == "s3://bucket/b"
    assert storage.join("s3://bucket/a?scheme=http", "b") == "s3://bucket/a/b?scheme=http"
    assert storage.join("s3://bucket/what?", "b?.mp4") == "s3://bucket/what?/b?.mp4"
    assert storage.absolute("a") == str(tmp_path / "a")
    assert storage.absolute("s3://bucket/a") == "s3://bucket/a"


def test_unknown_scheme_and_folder():
    with pytest.raises(UserError, match="s3:// or gs://"):
        storage.resolve("gopher://host/path")
    assert storage.list_files("/no/such/folder") == []


def test_a_name_that_is_not_utf8(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.mp4", "wb"):
        pass
    with pytest.raises(UserError, match="not UTF-8"):
        storage.list_files(str(tmp_path))


def test_links_are_followed_but_not_in_circles(tmp_path):
    (tmp_path / "videos" / "deep").mkdir(parents=True)
    (tmp_path / "videos" / "deep" / "a.mp4").touch()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.mp4").touch()
    (tmp_path / "videos" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "videos")
    (tmp_path / "videos" / "latest").symlink_to(".")
    (tmp_path / "videos" / "deep" / "up").symlink_to(tmp_path / "videos")
    assert storage.list_files(str(tmp_path / "videos")) == ["deep/a.mp4", "link/b.mp4"]


def exercise(root: str) -> None:
    """The same calls, whatever the store."""
    name = storage.join(root, "deep", "name with spaces? é%20.bin")
    assert not storage.exists(name)
    storage.write_bytes(name, b"one")
    storage.write_bytes(name, b"two")
    storage.write_bytes(storage.join(root, "b.bin"), bytes(3_000_000))
    assert storage.read_bytes(name) == b"two"
    sizes = {"b.bin": 3_000_000, "deep/name with spaces? é%20.bin": 3}
    assert storage.list_files(root) == list(sizes)
    assert {name: info.size for name, info in storage.list_infos(root).items()} == sizes
    with storage.local_copy(name) as path:
        assert Path(path).read_bytes() == b"two"
        assert path.endswith(".bin")
    storage.delete(name)
    storage.delete(name)
    assert storage.list_files(root) == ["b.bin"]
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(name)
    with pytest.raises(FileNotFoundError), storage.local_copy(name) as path:
        Path(path).read_bytes()


def test_local(tmp_path):
    exercise(str(tmp_path))


def test_s3(s3):
    exercise(f"{s3}/folder")


def test_a_local_copy_of_s3_is_removed(s3):
    storage.write_bytes(f"{s3}/a.mp4", b"content")
    with storage.local_copy(f"{s3}/a.mp4") as path:
        assert Path(path).exists()
    assert not Path(path).exists()


def test_files_are_readable_by_whom_the_user_lets_read(tmp_path):
    before = os.umask(0o027)
    try:
        storage.write_bytes(str(tmp_path / "folder" / "file"), b"content")
    finally:
        os.umask(before)
    assert (tmp_path / "folder" / "file").stat().st_mode & 0o777 == 0o640


def test_a_bucket_is_set_up_once(s3):
    assert storage.resolve(f"{s3}/a")[0] is storage.resolve(f"{s3}/b/c")[0]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = str(tmp_path / "file")
    storage.write_bytes(target, b"old")

    def full_disk(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        storage.write_bytes(target, b"new")
    assert storage.read_bytes(target) == b"old"
    assert os.listdir(tmp_path) == ["file"]


NOT_PASSED_ON = ("transfer-encoding", "expect", "connection")  # of one connection alone


@pytest.fixture
def through(s3, monkeypatch):
    """through(trouble): from now on the store is reached by a proxy, which asks trouble(method, path) before each
    request: an HTTP status is the answer, None lets it pass."""
    behind = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    servers = []

    def start(trouble: Callable[[str, str], int | None]) -> list[str]:
        asked = []

        class Proxy(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                content = b"".join(self.pieces())
                asked.append(f"{self.command} {self.path}")
                if status := trouble(self.command, self.path):
                    return self.give(status, {}, b"")
                connection = http.client.HTTPConnection(behind)
                headers = {name: value for name, value in self.headers.items() if name.lower() not in NOT_PASSED_ON}
                connection.request(self.command, self.path, content, headers)
                told = connection.getresponse()
                return self.give(told.status, dict(told.getheaders()), told.read())

            def pieces(self) -> Iterator[bytes]:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    yield self.rfile.read(int(self.headers.get("Content-Length", 0)))
                    return
                while length := int(self.rfile.readline(), 16):
                    yield self.rfile.read(length)
                    self.rfile.readline()
                self.rfile.readline()

            def give(self, status: int, headers: dict[str, str], content: bytes) -> None:
                self.send_response(status)
                length = headers.pop("Content-Length", len(content))  # of HEAD: that of the file
                for name, value in (headers | {"Content-Length": length}).items():
                    if name.lower() not in NOT_PASSED_ON:
                        self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None: ...

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

        server = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        storage._set_up.cache_clear()
        return asked

    yield start
    storage._set_up.cache_clear()
    for server in servers:
        server.shutdown()


LARGE = bytes(range(256)) * (12 << 12)  # 12 MiB: more than one piece


def test_a_small_file_is_one_request(s3, through):
    asked = through(lambda *_: None)
    storage.write_bytes(f"{s3}/a", b"content")
    assert [line.split()[0] for line in asked] == ["PUT"]


@pytest.mark.slow
def test_a_store_that_fails_for_a_moment(s3, through):
    times = Counter()

    def trouble(*request):
        times[request] += 1
        return {1: 500, 2: 503}.get(times[request])

    through(trouble)
    storage.write_bytes(f"{s3}/large", LARGE)
    assert storage.list_files(s3) == ["large"]
    assert storage.read_bytes(f"{s3}/large") == LARGE
    assert min(times.values()) >= 3


@pytest.mark.slow
def test_an_upload_that_fails_shows_nothing(s3, through):
    storage.write_bytes(f"{s3}/large", b"old")
    through(lambda method, path: 403 if method == "PUT" and "partNumber=2" in path else None)
    for name in ("large", "new"):
        with pytest.raises(OSError, match="ACCESS_DENIED"):
            storage.write_bytes(f"{s3}/{name}", LARGE)
    assert storage.list_files(s3) == ["large"]
    assert storage.read_bytes(f"{s3}/large") == b"old"


@pytest.mark.slow
def test_a_writer_that_is_killed_amid_an_upload_shows_nothing(s3, through):
    storage.write_bytes(f"{s3}/large", b"old")
    child: list[subprocess.Popen] = []

    def kill(method, path):
        if method == "PUT" and "partNumber=2" in path:
            child[0].kill()

    through(kill)
    script = f"from raydistal import storage; storage.write_bytes({s3 + '/large'!r}, bytes({len(LARGE)}))"
    child.append(subprocess.Popen([sys.executable, "-c", script]))
    assert child[0].wait(120) == -signal.SIGKILL
    assert storage.read_bytes(f"{s3}/large") == b"old"


def test_an_interrupt_waits_for_the_end_of_an_upload(s3, through):
    """An upload whose stream is closed by an exception would be a file with nothing in it."""
    through(lambda method, _: signal.raise_signal(signal.SIGINT) if method == "PUT" else None)
    with pytest.raises(KeyboardInterrupt):
        storage.write_bytes(f"{s3}/file", b"content")
    assert storage.read_bytes(f"{s3}/file") == b"content"


@pytest.mark.parametrize("uri", ["gs://bucket/a b/c", "gs://bucket/a b/c?endpoint_override=127.0.0.1:1&scheme=http"])
def test_google_resolves(uri):
    """No more than that: there is no server to talk to."""
    filesystem, path = storage.resolve(uri)
    assert filesystem.type_name == "gcs"
    assert path == "bucket/a b/c"
    assert storage.resolve(storage.join(uri, "d")) == (filesystem, "bucket/a b/c/d")
    assert storage.absolute(uri) == uri
