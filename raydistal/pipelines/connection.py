"""The Ray cluster that a verb works on. The only place that starts one."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from raydistal.errors import UserError
from raydistal.pipelines.scaling import Stopped

CONNECT_S = 20.0


def connect() -> None:
    """Quietly connects this process to the cluster that RAY_ADDRESS names, or starts one on this machine.

    Verbs call it once they know that there is work for a cluster. If the process is connected, it does nothing.

    Raises:
        UserError: no cluster answers at RAY_ADDRESS.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # if set explicitly, Ray does not warn about its default
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # else it prints a note for every actor that may restart
    os.environ.setdefault("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")  # so that a cluster of our own ends at once
    import ray
    import ray.data

    if ray.is_initialized():
        return
    # Progress and summary are printed by us; trouble in a worker comes back as an exception or a row.
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS", "")
    if address:
        check_address(address)
    else:
        quiet |= {"address": "local", "include_dashboard": False}
    with _muted_stderr():  # Ray's C++ code prints there; errors are raised
        on_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**quiet)
        except SystemExit as error:  # Ray takes SIGTERM for itself
            raise Stopped("it got SIGTERM") from error
        except (ConnectionError, ValueError) as error:  # ValueError: not an address
            raise UserError(f"RAY_ADDRESS is {address}: {error}") from error
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # its errors only repeat the tracebacks of exceptions
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def check_address(address: str) -> None:
    """Raises UserError if a dashboard listens at HOST:PORT, or nothing does: Ray would wait many minutes."""
    if address.startswith(("http://", "https://")):
        raise UserError(
            f"RAY_ADDRESS={address} is the address of a dashboard, for raydistal submit. Give the head's HOST:PORT."
        )
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except OSError as error:
            raise UserError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({error}). Correct it, or unset it to work on this "
                "machine."
            ) from error


@contextmanager
def _muted_stderr() -> Iterator[None]:
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
