"""What a sample of videos takes, and what follows from it."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raydistal import storage, tables
from raydistal.errors import UserError
from raydistal.pipelines import extract, plan, pricing
from raydistal.pipelines.pricing import Node, Prices, Sample

CPU, GPU = Node("cpu", 4, 0, 0.5, 0.2), Node("gpu", 2, 1, 1.0, 0.4)
PRICES = Prices((CPU, GPU), "EUR", head_price=0.1, storage_price=0.02)
EXAMPLE = Path(__file__).parents[2] / "cluster" / "prices.toml"


def sample(look_s=(2, 2, 2, 2), cpu_feature_s=(6, 6, 6, 6), gpu_feature_s=(0.25,) * 4, startup_s=0.0):
    arrays = [None if values is None else np.array(values, float) for values in (look_s, cpu_feature_s, gpu_feature_s)]
    return Sample(look_s_V=arrays[0], cpu_feature_s_V=arrays[1], gpu_feature_s_V=arrays[2], startup_s=startup_s)


def test_on_cpus_the_stages_add_up_on_gpus_the_slower_one_counts():
    assert pricing.seconds(sample(startup_s=30), 100, 4, 0) == (230, 230, 230)
    assert pricing.seconds(sample(startup_s=30), 100, 4, 1)[0] == 30 + 100 * 2 / 4
    assert pricing.seconds(sample(startup_s=30), 100, 16, 1)[0] == 30 + 100 * 0.25
    assert pricing.seconds(dataclasses.replace(sample(startup_s=30), overhead=1.5), 100, 4, 0)[0] == 30 + 1.5 * 200


def test_a_gpu_node_gets_the_cpu_nodes_that_keep_it_busy():
    # 0.25 s of a GPU, 2 s of a CPU: 8 CPUs for each GPU, of which its node has 2, and 4 are in a CPU node
    assert pricing.cpu_nodes_per_gpu_node(PRICES, sample()) == 1.5
    assert pricing.cpu_nodes_per_gpu_node(PRICES, sample(gpu_feature_s=(8,) * 4)) == 0
    assert pricing.cpu_nodes_per_gpu_node(PRICES, sample(gpu_feature_s=None)) == 0
    assert pricing.cpu_nodes_per_gpu_node(PRICES, sample(gpu_feature_s=(0,) * 4)) == 0


def test_offers():
    cheap, dear, grown = (
        pricing.offers(PRICES, sample(), 3600, [1, 3])[:2] + pricing.offers(PRICES, sample(), 3600, [3])[1:]
    )
    assert (cheap.nodes, cheap.cpus, cheap.gpus, cheap.hours) == ("1 cpu", 4, 0, 8 / 4)
    assert cheap.price == pytest.approx(2 * (0.1 + 0.5))
    assert cheap.spot_price == pytest.approx(2 * (0.1 + 0.2))
    assert (dear.nodes, dear.cpus, dear.hours) == ("3 cpu", 12, pytest.approx(8 / 12))
    assert (grown.nodes, grown.cpus, grown.gpus) == ("5 cpu + 3 gpu", 26, 3)
    assert grown.hours == pytest.approx(0.25 / 3)
    assert grown.price == pytest.approx(grown.hours * (0.1 + 5 * 0.5 + 3 * 1.0))


def test_nothing_is_offered_that_was_not_measured():
    assert {one.gpus for one in pricing.offers(PRICES, sample(gpu_feature_s=None), 10, [1, 2])} == {0}
    assert all(one.gpus for one in pricing.offers(PRICES, sample(cpu_feature_s=None), 10, [1, 2]))
    (as_here,) = pricing.offers(Prices((Node("as here", 4, 1),)), sample(cpu_feature_s=None), 10, [2])
    assert (as_here.nodes, as_here.cpus, as_here.price) == ("2 as here", 8, None)


def test_the_interval_is_that_of_a_mean():
    rng = np.random.default_rng(0)
    look_s = rng.exponential(2.0, 400)
    mean, low, high = pricing.seconds(sample(look_s, np.zeros(400), None), 1, 1, 0)
    error = 1.96 * look_s.std() / math.sqrt(400)
    assert mean == pytest.approx(look_s.mean())
    assert (low, high) == (pytest.approx(mean - error, rel=0.03), pytest.approx(mean + error, rel=0.03))


def test_the_example_of_a_price_list():
    prices = pricing.read_prices(str(EXAMPLE))
    assert prices.cpu_node == Node("cpu-16", 16, 0, 0.8, 0.3)
    assert prices.gpu_node == Node("gpu-1", 8, 1, 1.0, 0.4)
    assert (prices.currency, prices.head_price, prices.storage_price) == ("USD", 0.1, 0.02)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cpus = 16", "cpu = 16", "unknown cpu of node cpu-16"),
        ("head_price_per_hour", "head_price", "unknown head_price"),
        ("price_per_hour = 0.80", "", "price_per_hour"),
        ("cpus = 16", "cpus = 0", "at least 1"),
        ("cpus = 16", "cpus = 16\ngpus = 2", "no node without GPUs"),
        ("[nodes.cpu-16]", "[nodes.cpu-16", "cannot read"),
    ],
)
def test_a_price_list_that_is_not_understood(old, new, message, tmp_path):
    (tmp_path / "prices.toml").write_text(EXAMPLE.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        pricing.read_prices(str(tmp_path / "prices.toml"))


def test_what_was_seen_scales_what_the_stages_take_alone(monkeypatch):
    """(2 s + 3 faces of 2 s) / 4 CPUs are 2 s for each video, but 3 were seen."""
    monkeypatch.setattr(plan, "_node_here", lambda: Node("as here", 4))
    looked = pa.table({"look_s": [2.0] * 10, "cpu_s": [1.0] * 10, "status": ["ok"] * 10, "num_faces": [3] * 10})
    measured = plan.Measured(looked, 1.0, 2.0, 5e3, 1e6, on_gpu=False, end_s=100.0, work_s=3.0)
    found = plan._sample(plan.Config(out="x", gpu_speedup=4), measured)
    assert (found.startup_s, found.overhead) == (70, 1.5)
    assert pricing.seconds(found, 1000, 4, 0)[0] == 70 + 3 * 1000
    assert found.gpu_feature_s_V.tolist() == [3 / 4] * 10
    burst = plan._sample(plan.Config(out="x"), measured._replace(work_s=0.1))
    assert (burst.startup_s, burst.overhead) == (80, 1)
    told = plan._tell(PRICES, measured, found, 3600)
    assert told["cpu_hours"] == {"look": 2, "look_busy": 1, "features": 6}
    assert told["gpu_hours"] == 0.75
    assert told["storage_price_per_month"] == pytest.approx(3600 * 5e3 / 1e9 * 0.02)


def test_the_sample_has_as_much_of_each_label():
    labels = [0] * 30 + [1] * 60 + [None] * 10
    videos = pa.table({"video_id": [str(number) for number in range(100)], "label": pa.array(labels, pa.int8())})
    chosen = plan.choose(videos, 20, seed=1)
    assert tables.count_values(chosen["label"]) == {"1": 12, "0": 6, "None": 2}
    assert len(set(chosen["video_id"].to_pylist())) == 20
    assert chosen.equals(plan.choose(videos, 20, seed=1))
    assert not chosen.equals(plan.choose(videos, 20, seed=2))
    assert len(plan.choose(videos, 1000, seed=1)) == 100


@pytest.mark.ray
def test_a_plan_is_made_of_what_extract_does(cluster, tmp_path, clip_writer, write_videos, capsys):
    clips = [clip_writer(tmp_path / f"clip{number}.mp4", num_frames=8, seed=number) for number in range(5)]
    write_videos(tmp_path, [*clips, tmp_path / "absent.mp4"])
    features = extract.Features(backbone="timm:mobilenetv3_small_050", weights="random", precision="float32")
    faces = extract.Faces(detector="none", size_px=64)
    options = {"total": 1_000_000, "prices": str(EXAMPLE), "gpu_speedup": 10, "sample": "even:4", "num_videos": 6}
    found = plan.run(plan.Config(out=str(tmp_path), faces=faces, features=features, **options))
    assert found["tried"] == {"videos": 6, "ok": 5, "decode_error": 1}
    assert found["per_video"]["faces"] == pytest.approx(20 / 6)
    assert found["output_gb"] == pytest.approx(found["per_video"]["bytes"] / 1000)
    assert 4 * 1024 * 2 < found["per_video"]["bytes"] < 1e6  # features of 4 faces alone are 8 kB
    assert found["object_store_mb"]["per_cpu"] > 4 * 2 * 4 * 64 * 64 * 3 * 5 / 6 / 1e6
    mean_s = found["per_video"]["look_s"] + found["per_video"]["faces"] * found["per_face"]["feature_cpu_s"]
    assert found["overhead"] == 1  # six videos are one part
    assert found["here"]["wall_s"] == pytest.approx(found["startup_s"] + 1e6 * mean_s / 4)
    assert found["here"]["low_s"] < found["here"]["wall_s"] < found["here"]["high_s"]
    assert 0 < found["cpu_hours"]["look_busy"] < 3 * found["cpu_hours"]["look"]
    assert [one["gpus"] for one in found["offers"]] == [0, 0, 0, 1, 4, 16]
    assert tables.read_table(str(tmp_path / "plan"), "plan")["hours"].to_pylist() == [
        one["hours"] for one in found["offers"]
    ]
    assert storage.list_files(str(tmp_path / "plan")) == ["_table.json", "part-0.parquet"]
    assert not storage.exists(str(tmp_path / "faces"))
    printed = capsys.readouterr().err.splitlines()
    assert any("CPU hours" in line for line in printed)
    assert max(map(len, printed)) <= 80


def test_bad_settings(tmp_path):
    with pytest.raises(UserError, match="price list"):
        plan.run(plan.Config(out=str(tmp_path), prices=str(tmp_path / "absent.toml")))
    with pytest.raises(UserError, match="--nodes of 1 or more"):
        plan.Config(out=str(tmp_path), nodes=(0,))
