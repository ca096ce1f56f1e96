"""How a verb finds its cluster."""

import socket

import pytest
import ray

from raydistal.errors import UserError
from raydistal.pipelines import connection


def test_an_address_where_nobody_listens_is_wrong_use():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "auto", "local"):
            connection.check_address(address)
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "no-such-host.invalid:6379"):
        with pytest.raises(UserError, match=f"no Ray cluster answers at RAY_ADDRESS={address}"):
            connection.check_address(address)
    with pytest.raises(UserError, match="raydistal submit"):
        connection.check_address("http://127.0.0.1:8265")


def test_what_ray_takes_for_no_address_is_wrong_use(monkeypatch):
    def refuse(**_):
        raise ValueError("Invalid address format: nonsense")

    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(UserError, match="RAY_ADDRESS is nonsense: Invalid address"):
        connection.connect()


@pytest.mark.ray
def test_who_is_connected_stays_so(cluster, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    connection.connect()
