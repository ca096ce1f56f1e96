"""The app as people meet it: `raydistal serve` in a process of its own, and chromium in front of it."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from raydistal.datasets.synthetic import write_video

LIMIT_S = 240  # for a machine that does much else
MAX_UPLOAD_MB = 1


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of a drawn talking head."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, identity=1, seconds=2)
    return path


@pytest.fixture(scope="module")
def app(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of the app, with a tiny detector that learnt nothing of faces, and faces found by Haar cascade."""
    detector = tmp_path_factory.mktemp("served") / "tiny"
    shutil.copytree(exported / "detector", detector)
    about = json.loads((detector / "detector.json").read_text())
    about["data"]["faces"]["detector"] = "haar"
    (detector / "detector.json").write_text(json.dumps(about))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tempfile.mkdtemp(prefix="raydistal-", dir="/tmp")  # short: it holds sockets
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_TMPDIR": folder}
    environment |= {"RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", "from raydistal.cli import main; main()", "serve", "--detector", str(detector)]
    command += ["--port", str(port), "--examiners", "1", "--max-upload-mb", str(MAX_UPLOAD_MB)]
    log = Path(folder, "serve.err")
    with log.open("wb") as err:
        process = subprocess.Popen(command, env=environment, stderr=err, start_new_session=True)
    url = f"http://127.0.0.1:{port}/"
    try:
        deadline = time.monotonic() + LIMIT_S
        while not answers(f"{url}healthz"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(LIMIT_S)
        finally:
            process.kill()
            shutil.rmtree(folder, ignore_errors=True)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.fixture
def visit(browser: Any, app: str) -> Iterator[Callable[..., Any]]:
    """visit(fragment, **options of the browser's context) opens the app.

    In the end there must have been no request to another host and no complaint on the console, such as of a script
    error or a violated security policy; but that a request failed may be said of the paths in `page.may_fail`.
    """
    pages = []

    def open_page(fragment: str = "", **options: Any) -> Any:
        page = browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | options)).new_page()
        page.set_default_timeout(1000 * LIMIT_S)
        page.may_fail, page.sent, page.trouble = [], [], []
        page.on("request", lambda request: page.sent.append((request.method, request.url)))
        page.on("pageerror", lambda error: page.trouble.append(str(error)))
        page.on("console", lambda message: note(page, message))
        pages.append(page)
        page.goto(app + fragment)
        page.locator("#limits:not(:empty)").wait_for(state="attached")
        return page

    yield open_page
    for page in pages:
        assert page.trouble == []
        assert [url for _, url in page.sent if not url.startswith((app, "data:", "blob:"))] == []
        page.context.close()


def note(page: Any, message: Any) -> None:
    is_failed = message.text.startswith("Failed to load resource")
    if not is_failed or not any(part in message.location["url"] for part in page.may_fail):
        page.trouble.append(message.text)
