"""A node that vanishes in the middle takes no row with it and doubles none."""

import json
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

CLUSTER = """
import json, time
from ray.cluster_utils import Cluster
small = {"num_cpus": 1, "object_store_memory": 100 << 20}
cluster = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
workers = [cluster.add_node(**small) for _ in range(2)]
raylets = [worker.all_processes["raylet"][0].process.pid for worker in workers]
print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
time.sleep(3600)
"""


def test_one_of_three_nodes_is_lost(arena, clips, descendants):
    gates = [arena.gate(f"gate{number}.mp4") for number in range(3)]  # keep it from ending too early
    arena.index([*clips[:8], *(gate.path for gate in gates), *clips[8:20]])
    cluster = arena.start(sys.executable, "-c", CLUSTER)
    cluster.until(lambda: cluster.out_path.read_text().endswith("\n"))
    nodes = json.loads(cluster.out_path.read_text())
    program = arena.extract(RAY_ADDRESS=nodes["address"])
    program.until(lambda: len(arena.parts()) >= 4)
    for gate in gates:
        gate.become(clips[20])

    processes = arena.processes()
    on_node = {raylet: descendants(raylet) for raylet in nodes["raylets"]}
    # The node that computes features, if it is not the head: that one cannot be lost.
    victim = max(on_node, key=lambda raylet: sum("FeatureStage" in processes.get(pid, "") for pid in on_node[raylet]))
    arena.kill(on_node[victim])  # its raylet first, so that nothing is done again there
    program.until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in on_node[victim][1:]))
    waited = {gate.path.name: gate.release() for gate in gates}
    assert program.summary()["done_before"] == 0
    # Those that waited found an empty file; the one that was lost with its node was done again.
    assert arena.statuses() == {
        **{clip.name: "ok" for clip in clips[:20]},
        **{name: "decode_error" if there else "ok" for name, there in waited.items()},
    }
