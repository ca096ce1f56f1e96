"""What `raydistal serve` refuses before it starts a cluster."""

import json
import socket
from types import SimpleNamespace

import pytest

from raydistal.errors import UserError
from raydistal.serving import serve, settings
from raydistal.serving.serve import Config
from raydistal.serving.settings import App, Limits

ABOUT = {"format": "detector/1", "architecture": "xception", "input_px": 32, "mean": [0, 0, 0], "std": [1, 1, 1]}
ABOUT |= {"digest": "0" * 16, "threshold": {"video": 0.5}, "data": {"faces": {"detector": "haar"}}}


def test_what_cannot_be_served_starts_no_cluster(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    app = App(detector=str(tmp_path))
    with pytest.raises(UserError, match=r"detector\.json"):
        serve.check(Config(app=app))
    (tmp_path / "detector.json").write_text(json.dumps(ABOUT))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"127.0.0.1:{port}.*--port"):
            serve.check(Config(app=app, port=port))
    serve.check(Config(app=app, port=port))
    with pytest.raises(UserError, match="every:N"):
        serve.check(Config(app=App(detector=str(tmp_path), timeline="ten"), port=port))
    with pytest.raises(UserError, match="cannot listen on"):  # no address of this machine
        serve.check(Config(app=app, host="203.0.113.1"))
    (tmp_path / "detector.json").write_text(json.dumps(ABOUT | {"data": {}}))
    with pytest.raises(UserError, match="train it again"):
        serve.check(Config(app=app))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"limits": {"max_queue": 0}}, "above 0"),
        ({"limits": {"max_queue": "9"}}, "limits.max_queue"),
        ({"limits": {"timeout_s": 0}}, "--timeout-s"),
        ({"examiners": -1}, "--examiners"),
        ({"device": "tpu"}, "device"),
        ({"detectors": "x"}, "detectors"),
        ({"detector": None}, "detector"),
    ],
)
def test_wrong_args_of_a_config_file_say_what(wrong, message):
    with pytest.raises(UserError, match=message):
        settings.parse({"detector": "x"} | wrong)


def test_why_it_did_not_start_is_one_line():
    trace = "The deployment failed to start 3 times. Error:\nTraceback:\nraydistal.errors.UserError: no detector\n"
    scorer, web = SimpleNamespace(status="DEPLOY_FAILED", message=trace), SimpleNamespace(status="UPDATING", message="")
    error = RuntimeError("ray::ProxyActor.ready()\nRuntimeError: Failed to bind")
    told = serve._why(error, SimpleNamespace(deployments={"Scorer": scorer, "Web": web}))
    assert told == "the app did not start. Scorer: no detector"
    assert serve._why(error, None) == "the app did not start. Ray Serve: RuntimeError: Failed to bind"


def test_which_names_it_answers_to():
    def hosts(host, *allowed):
        return serve._for_all_nodes(Config(app=App(detector="x", allowed_hosts=allowed), host=host)).allowed_hosts

    assert hosts("localhost") == hosts("127.0.0.1") == ("127.0.0.1", "localhost", "[::1]")
    assert hosts("127.0.0.1", "*") == ("*",)
    assert hosts("0.0.0.0") == ()


@pytest.mark.parametrize("host", ["http://app.example.org", "app.example.org:8000", "app.*.org", ""])
def test_what_is_no_name(host):
    with pytest.raises(UserError, match="without scheme and port"):
        App(detector="x", allowed_hosts=(host,))


def test_a_replica_that_could_not_start_has_nothing_to_remove():
    from raydistal.serving import app

    for replica in (app.Web.__mro__[1], app.Examiner):  # of Web, what Ray Serve has wrapped
        replica.__new__(replica).__del__()


def test_args_of_a_config_file_are_options():
    told = {"detector": "x", "band": 0.2, "heatmaps": False, "limits": {"keep_minutes": 5}}
    assert settings.parse(told) == App(detector="x", band=0.2, heatmaps=False, limits=Limits(keep_minutes=5))
