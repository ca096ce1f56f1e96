"""Clusters that grow for a job and shrink after it: Ray's autoscaler with nodes that are processes of this machine.

Not part of the suite, as it takes minutes: pytest tests/faults/autoscaler.py
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq
import pytest
import yaml

from raydistal.pipelines import epochs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

HEAD = "f" * 51 + "00000"
WATCH = """
import json, sys, time, ray
while not ray.is_initialized():
    try:
        ray.init(sys.argv[1], logging_level="ERROR", log_to_driver=False)
    except Exception:  # it is not up yet
        time.sleep(1)
began, last = time.monotonic(), None
while True:
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    now = [len(alive), sum(node.get("CPU", 0) for node in alive), sum(node.get("GPU", 0) for node in alive)]
    if now != last:
        print(json.dumps([round(time.monotonic() - began, 1), *now]), flush=True)
    last = now
    time.sleep(0.3)
"""
# Logical GPUs have no CUDA, so the actor that got one computes on a CPU; slowly, so that videos wait for it.
ON_LOGICAL_GPUS = """
import sys, time
from raydistal import cli
from raydistal.pipelines import extract, scaling
extract.VIDEOS_PER_PART, scaling.VIDEOS_PER_ACTOR = 1, 2
class OnLogicalGpu(extract.FeatureStage):
    def __init__(self, *given):
        import ray
        assert ray.get_gpu_ids()
        ray.get_gpu_ids = lambda: []
        super().__init__(*given)
    def __call__(self, rows):
        time.sleep(1)
        return super().__call__(rows)
extract.FeatureStage = OnLogicalGpu
cli.main(sys.argv[1:])
"""


class Seen(NamedTuple):
    """The cluster at a moment."""

    second: float
    nodes: int
    cpus: float
    gpus: float


class Elastic:
    """A cluster of a head that does not work, to which the autoscaler adds up to two nodes of each of these types."""

    def __init__(self, arena: Any, ports: Any, worker_types: dict[str, dict[str, Any]]) -> None:
        from ray._private.services import get_node_ip_address

        free_ports, is_listening = ports
        gcs, agent, client = free_ports(3)
        ip = get_node_ip_address()
        self.arena, self.environment = arena, {"RAY_ADDRESS": f"{ip}:{gcs}"}
        config = arena.folder / "autoscaling.yaml"
        config.write_text(yaml.safe_dump(autoscaling(f"{ip}:{gcs}", worker_types)))
        arena.environment |= {"RAY_enable_autoscaler_v2": "1"}
        arena.start(
            *("ray", "start", "--head", "--block", "--num-cpus=0", f"--port={gcs}", f"--temp-dir={arena.folder}"),
            *("--object-store-memory=150000000", "--include-dashboard=false", f"--autoscaling-config={config}"),
            *(f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}"),
            RAY_FAKE_CLUSTER="1",
            RAY_CLOUD_INSTANCE_ID=HEAD,
            RAY_OVERRIDE_RESOURCES="{}",
            RAY_OVERRIDE_NODE_ID_FOR_TESTING=HEAD,
            AUTOSCALER_UPDATE_INTERVAL_S="1",
        ).until(lambda: all(is_listening(port) for port in (gcs, agent)))
        self.watcher = arena.start(sys.executable, "-c", WATCH, self.environment["RAY_ADDRESS"])
        self.watcher.until(lambda: self.seen())

    def seen(self) -> list[Seen]:
        """How the cluster changed until now."""
        whole = self.watcher.out_path.read_text().rpartition("\n")[0]
        return [Seen(*json.loads(line)) for line in whole.splitlines() if line.startswith("[")]  # Ray prints others

    def most(self) -> Seen:
        """The largest that each of its numbers was."""
        return Seen(*map(max, zip(*self.seen(), strict=True)))

    def shrinks(self) -> None:
        """Waits until the head is alone again."""
        self.watcher.until(lambda: self.seen()[-1].nodes == 1)
        print(*self.seen(), sep="\n")


def autoscaling(address: str, worker_types: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What `ray start` takes: `--autoscaling-config`."""
    empty_lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    types = {"ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}}
    for name, resources in worker_types.items():
        resources = resources | {"object_store_memory": 100_000_000}
        types[name] = {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": 2}
    return {
        "cluster_name": "elastic",
        "max_workers": 4,
        "idle_timeout_minutes": 0.4,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD,
        },
        "available_node_types": types,
        "head_node_type": "ray.head.default",
        **{f"{name}_commands": [] for name in empty_lists},
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }


@pytest.fixture
def elastic(arena: Any, ports: Any) -> Callable[..., Elastic]:
    return lambda **worker_types: Elastic(arena, ports, worker_types or {"cpu": {"CPU": 1}})


@contextlib.contextmanager
def held(arena: Any, num: int, clip: Path) -> Iterator[list[Path]]:
    """Paths of videos whose decoding waits for the end of the block."""
    gates = [arena.gate(f"gate{number}.mp4") for number in range(num)]
    yield [gate.path for gate in gates]
    for gate in gates:
        gate.become(clip)
        gate.release()


def test_extract(arena, clips, elastic):
    cluster = elastic()
    with held(arena, 2, clips[0]) as gates:
        arena.index([*gates, *clips[1:]])
        program = arena.extract(**cluster.environment)
        program.until(lambda: cluster.most().nodes == 3)
    assert program.summary()["videos"] == len(arena.statuses()) == 25
    assert "the job needs 1 CPUs, the cluster has 0: waiting for it to grow" in program.err_path.read_text()
    cluster.shrinks()


def test_max_nodes(arena, clips, elastic):
    cluster = elastic()
    arena.index(clips)
    assert arena.extract("--max-nodes", "2", **cluster.environment).summary()["ok"] == len(clips)
    assert len(arena.statuses()) == len(clips)
    assert cluster.most().nodes == 2
    cluster.shrinks()


def test_extract_on_gpus(arena, clips, elastic):
    """There is none when the job starts, and one too few for it when it begins to work."""
    cluster = elastic(cpu={"CPU": 1}, gpu={"CPU": 1, "GPU": 1})
    arena.index(clips)
    command = (sys.executable, "-c", ON_LOGICAL_GPUS, "extract", *arena.options, "--device", "cuda")
    assert arena.start(*command, **cluster.environment).summary()["ok"] == len(clips)
    assert len(arena.statuses()) == len(clips)
    assert cluster.most().gpus == 2
    cluster.shrinks()


def asked(arena: Any) -> list[str]:
    """Of a tiny training."""
    options = {"--data": arena.run, "--architecture": "timm:test_resnet", "--weights": "random", "--recipe": "finetune"}
    options |= {"--input-px": 32}
    return [str(word) for option in options.items() for word in option]


def test_train(arena, write_run, elastic):
    """Told to end in the middle, as a spot machine under the driver is, it goes on where it was."""
    cluster = elastic()
    write_run(arena.run)
    main = "from raydistal.cli import main; main()"
    command = ("train", "--out", arena.folder / "d", *asked(arena), "--epochs", "6", "--num-workers", "2")
    program = arena.start(sys.executable, "-c", main, *command, **cluster.environment)
    program.until((arena.folder / "d" / epochs.CHECKPOINT).exists)
    program.terminate()
    code, _, err = program.ended()
    assert code == 3
    assert "waiting for it to grow" in err
    assert "stopped, as it got SIGTERM" in err
    cluster.shrinks()
    program = arena.start(sys.executable, "-c", main, *command, **cluster.environment)
    assert program.summary()["epochs"] == 6
    assert cluster.most().nodes >= 2
    cluster.shrinks()


def test_search(arena, write_run, elastic):
    cluster = elastic()
    write_run(arena.run)
    main = "from raydistal.cli import main; main()"
    command = (
        "search",
        "--out",
        arena.folder / "s",
        *asked(arena),
        "--space",
        "bits=32",
        "--seeds",
        "4",
        "--epochs",
        "2",
    )
    program = arena.start(sys.executable, "-c", main, *command, **cluster.environment)
    assert program.summary()["ok"] == 4
    rows = [row for part in (arena.folder / "s" / "trials").glob("part-*") for row in pq.read_table(part).to_pylist()]
    assert sorted(row["seed"] for row in rows) == [0, 1, 2, 3]
    assert cluster.most().nodes == 3
    cluster.shrinks()


def test_spot_node(arena, clips, head):
    """A node that is told to end takes no more work; what it could not finish until then is done elsewhere."""
    gates = [arena.gate(f"gate{number}.mp4") for number in range(2)]
    arena.index([*(gate.path for gate in gates), *clips])
    node = arena.start(
        *("ray", "start", "--block", "--num-cpus=1", f"--address={head['RAY_ADDRESS']}"),
        *("--object-store-memory=100000000", "--disable-usage-stats"),
        RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S="5",
    )
    watcher = arena.start(sys.executable, "-c", WATCH, head["RAY_ADDRESS"])
    watcher.until(lambda: ", 2.0, 0]\n" in watcher.out_path.read_text())
    program = arena.extract(**head)
    program.until(lambda: sum("look_stage" in line for line in arena.processes().values()) == 1)
    node.terminate()
    node.wait()
    for gate in gates:
        gate.become(clips[0])
        gate.release()
    summary = program.summary()
    assert summary["done_before"] == 0
    assert len(arena.statuses()) == len(clips) + 2
