"""Metrics and log lines as Prometheus and a reader of logs get them, and the dashboard that shows them."""

import json
import re
import time
import urllib.request
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest

from raydistal.pipelines import extract, telemetry

DASHBOARD = json.loads((Path(__file__).parents[2] / "cluster" / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
NETWORK = extract.Features(backbone="timm:mobilenetv3_small_050", weights="random", precision="float32")


@pytest.fixture
def told(monkeypatch):
    """{(name, values of its tags): value}."""
    found = Counter()

    def metric(name):
        def add(value, tags):
            found[name, *tags.values()] += value

        def set_(value, tags):
            found[name, *tags.values()] = value

        return SimpleNamespace(inc=add, set=set_)

    monkeypatch.setattr(telemetry, "_counter", metric)
    monkeypatch.setattr(telemetry, "_gauge", metric)
    return found


def test_calls_of_an_actor_are_measured_and_counted(told, monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)

    @telemetry.measured("extract", "features")
    class Stage:
        """Takes 20 s to load and 3 s for a call."""

        def __init__(self, factor):
            nonlocal now
            now += 20
            self.factor = factor

        def __call__(self, rows):
            nonlocal now
            now += 3
            return self.factor * len(rows)

    stage = Stage(7)
    rows = pa.table({"status": ["ok", "timeout", "ok"], "frame_index": [[1, 2], [], [3]]})
    now += 1
    assert stage(rows) == 21
    assert told["raydistal_gpu_idle_fraction", "extract", "features"] == 1 / 4
    now += 5
    assert stage(rows[1:2]) == 7
    assert told == {
        ("raydistal_gpu_idle_fraction", "extract", "features"): 1 / 2,
        ("raydistal_stage_seconds_total", "extract", "features"): 6,
        ("raydistal_videos_total", "extract", "ok"): 2,
        ("raydistal_videos_total", "extract", "timeout"): 2,
        ("raydistal_faces_total", "extract"): 3,
    }


def test_a_failed_call_counts_no_video(told):
    @telemetry.measured("extract", "features")
    class Stage:
        def __init__(self):
            pass

        def __call__(self, rows):
            raise ConnectionError

    with pytest.raises(ConnectionError):
        Stage()(pa.table({"status": ["ok"], "frame_index": [[1]]}))
    assert not told


def scrape():
    """What Ray's agent serves."""
    import ray

    (node,) = ray.nodes()
    with urllib.request.urlopen(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics") as answer:
        return answer.read().decode()


def ours(text):
    """{(name, tags): value}, summed over workers."""
    found = Counter()
    for name, tags, value in re.findall(r"^ray_(raydistal_\w+)\{(.*)\} (\S+)$", text, re.MULTILINE):
        found[name, *sorted(re.findall(r'\b(?:verb|stage|status)="([^"]*)"', tags))] += float(value)
    return found


@pytest.mark.ray
def test_prometheus_and_the_logs_hear_of_an_extract(cluster, tmp_path, clip_writer, write_videos):
    import ray
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    clips = [clip_writer(tmp_path / f"clip{number}.mp4", num_frames=6, seed=number) for number in range(2)]
    write_videos(tmp_path, [*clips, tmp_path / "lost-to-the-logs.mp4"])
    before = ours(scrape())
    faces = extract.Faces(detector="none", size_px=64)
    extract.run(extract.Config(out=str(tmp_path), sample="even:3", faces=faces, features=NETWORK))
    deadline, expected = time.monotonic() + 60, {("raydistal_videos_total", "extract", "ok"): 2}
    expected |= {("raydistal_videos_total", "decode_error", "extract"): 1, ("raydistal_faces_total", "extract"): 6}
    seconds = [("raydistal_stage_seconds_total", "extract", stage) for stage in ("look", "features")]
    new = Counter()
    while time.monotonic() < deadline and not (expected.items() <= new.items() and all(new[one] for one in seconds)):
        time.sleep(0.5)
        text = scrape()
        new = ours(text) - before
    assert {name: new[name] for name in expected} == expected
    assert all(new[one] > 0 for one in seconds)
    assert ours(text)["raydistal_gpu_idle_fraction", "extract", "features"] > 0

    logs = Path(ray._private.worker._global_node.get_logs_dir_path())
    lines = [line for file in logs.glob("worker-*.err") for line in file.read_text().splitlines()]
    (line,) = [json.loads(line) for line in lines if "lost-to-the-logs.mp4" in line]
    assert (line["verb"], line["video_id"], line["status"]) == ("extract", "lost-to-the-logs.mp4", "decode_error")
    assert line["node"]

    served = set(re.findall(r"^ray_(\w+)", text, re.MULTILINE)) | set(METRICS_GAUGES)  # which has those of GPUs
    assert {name for name in names_in(EXPRESSIONS) if not name.startswith("raydistal_")} <= served


def names_in(expressions):
    return {name for one in expressions for name in re.findall(r"\bray_(\w+)", one)}


def test_the_dashboard_shows_all_of_ours_and_nothing_that_is_not_there():
    shown = {name for name in names_in(EXPRESSIONS) if name.startswith("raydistal_")}
    assert shown == {*telemetry.COUNTERS, *telemetry.GAUGES}


def test_the_dashboard_groups_by_tags_that_there_are():
    known = {"RayNodeType", "NodeAddress"} | {
        tag for _, tags in (telemetry.COUNTERS | telemetry.GAUGES).values() for tag in tags
    }
    grouped = {
        tag for one in EXPRESSIONS for tags in re.findall(r"(?:by|on) \(([^)]*)\)", one) for tag in tags.split(", ")
    }
    assert grouped <= known


def test_the_dashboard_can_be_imported():
    assert {"uid", "title", "schemaVersion", "panels", "templating", "time"} <= set(DASHBOARD)
    kinds = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert kinds == {"datasource": "datasource", "session": "query"}
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["title"]
        places = panel["gridPos"]
        assert places["x"] + places["w"] <= 24
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
    assert all('SessionName=~"$session"' in one for one in EXPRESSIONS)
    assert all(one.count("(") == one.count(")") and one.count("{") == one.count("}") for one in EXPRESSIONS)
