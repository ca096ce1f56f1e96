"""serve: runs the web app until it is told to stop."""

import dataclasses
import logging
import os
import socket
import sys
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from raydistal import storage
from raydistal.errors import UserError
from raydistal.pipelines.connection import connect
from raydistal.serving.settings import App

if TYPE_CHECKING:
    from ray.serve.schema import ApplicationStatusOverview

NAME = "raydistal"
OPEN_TO_ALL = ("0.0.0.0", "::")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Serve a web app: upload a video, see whether the detector calls its faces fake."""

    app: App
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0: all of this machine. There is no login: see docs/serve.md."""
    port: int = 8000
    """Port to listen on."""

    def __post_init__(self) -> None:
        if not 0 < self.port < 65536:
            raise UserError("--port must be from 1 to 65535")


def check(config: Config) -> None:
    """Raises UserError if the detector is unsuitable, the settings are wrong, or the port is taken."""
    from raydistal.detector import checkpoint
    from raydistal.verdict import examine

    config.app.settings()
    examine.check(checkpoint.read_about(config.app.detector), config.app.detector)
    if not os.environ.get("RAY_ADDRESS"):  # on a given cluster the head listens, which may be another machine
        _check_port(config.host, config.port)


def run(config: Config) -> dict[str, Any]:
    """Serves on the Ray cluster until Ctrl-C or SIGTERM, then stops what it started.

    Raises:
        UserError: as `check`, the cluster already runs Ray Serve, or the app does not start there.
    """
    check(config)
    # Ray Serve's controller ends amid the call that is to end it, of which Ray would tell.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", r"ServeController\.graceful_shutdown")
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")  # of 5 by itself: too few on a busy machine
    connect()
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    if serve.status().proxies:
        raise UserError(
            "this cluster already runs Ray Serve: add this app to its config file, as cluster/serve.yaml shows"
        )

    from raydistal.serving import app

    began = time.monotonic()
    application = app.bind(_for_all_nodes(config))
    http = {"host": config.host, "port": config.port}
    try:
        try:
            serve.start(proxy_location="HeadOnly", http_options=http, logging_config=app.QUIET)
            serve.run(application, name=NAME, route_prefix="/")
        except (RuntimeError, TimeoutError) as error:
            raise UserError(_why(error, serve.status().applications.get(NAME))) from error
        host = socket.gethostname() if config.host in OPEN_TO_ALL else config.host
        url = f"http://{f'[{host}]' if ':' in host else host}:{config.port}/"
        if config.host in OPEN_TO_ALL:
            print("serve: there is no login: whoever reaches the port may use it, see docs/serve.md", file=sys.stderr)
        print(f"serve: {url} after {time.monotonic() - began:.0f} s; Ctrl-C ends it", file=sys.stderr, flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("serve: ending", file=sys.stderr)
    finally:
        serve.shutdown()
    return {"url": url, "seconds": round(time.monotonic() - began, 1)}


def _why(error: Exception, status: "ApplicationStatusOverview | None") -> str:
    """Why the app did not start: the last line of what a deployment that failed says, else of the error."""
    name, text = "Ray Serve", str(error)
    for deployment, state in status.deployments.items() if status else ():
        if state.status == "DEPLOY_FAILED":
            name, text = deployment, state.message
    line = text.strip().splitlines()[-1].removeprefix("raydistal.errors.UserError: ")
    return f"the app did not start. {name}: {line}"


def _for_all_nodes(config: Config) -> App:
    """The app, without what only this process knows: its folder, and on which address it is to listen."""
    own_names = ("127.0.0.1", "localhost", "[::1]") if config.host in LOOPBACK else ()
    hosts = config.app.allowed_hosts or own_names
    return dataclasses.replace(config.app, detector=storage.absolute(config.app.detector), allowed_hosts=hosts)


def _check_port(host: str, port: int) -> None:
    """Raises UserError if the port is taken: Ray Serve would share it with the other server."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # allows a port that a server has just left
            probe.bind(address)
    except OSError as error:
        raise UserError(
            f"cannot listen on {host}:{port}: {error.strerror}. Choose another --port or --host."
        ) from error
