"""How Ray Data runs the stages of a pipeline: all CPUs at work, and no stage far ahead of the next one."""

import os
import warnings
from typing import Any

ATTEMPTS = 4  # finite, so that a task that always dies stops the job; several, because a lost node takes one


def bound_queues() -> None:
    """Sets up the datasets that this process makes from now on.

    With its reservations, Ray Data lets two CPUs decode one video at a time; without them it lets decoded crops pile up
    without end. So: no reservations, and a bound of our own.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.op_resource_reservation_enabled = False
    context.set_config("backpressure_policies.enabled", [policy()])
    # Retries have no other way in yet; Ray 2.64, which our range excludes, wants one.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")


def network_actors(num_workers: int) -> dict[str, Any]:
    """Options of `map_batches` for a stage whose actors hold networks; 0: one per GPU, without GPUs one per node."""
    import ray
    import ray.data

    num_gpus = int(ray.cluster_resources().get("GPU", 0))
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    return {
        # All at once: pools do not grow by themselves.
        "compute": ray.data.ActorPoolStrategy(size=num_workers or num_gpus or num_nodes),
        # On CPUs the networks share the cores with decoding: reserving some would idle them half of the time.
        "num_cpus": 0,
        "num_gpus": 1 if num_gpus else 0,
        "max_restarts": ATTEMPTS,
        "max_task_retries": -1,  # tries fail by the moment until the loss of a node is noticed; max_restarts ends them
    }


def start_torch() -> str:
    """Loads torch in such an actor; returns its device. Call it before anything else imports torch."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait would spin where others decode
    import ray
    import torch

    node = next(node for node in ray.nodes() if node["NodeID"] == ray.get_runtime_context().get_node_id())
    torch.set_num_threads(max(1, int(node["Resources"].get("CPU", 1))))  # Ray sets 1 for an actor without CPUs
    return "cuda" if ray.get_gpu_ids() else "cpu"


def policy() -> type:
    """A Ray Data policy: how far a stage may run ahead of the next one.

    It submits at most two tasks per CPU, and none while its output fills a quarter of the object store, unless the next
    stage stands still (it may be waiting for a whole batch). Two, not one: unmet demand makes a cluster grow.
    """
    from ray.data._internal.execution.backpressure_policy import BackpressurePolicy
    from ray.data._internal.execution.interfaces import PhysicalOperator

    class BoundQueues(BackpressurePolicy):
        def can_add_input(self, op: PhysicalOperator) -> bool:
            limits = self._resource_manager.get_global_limits()  # its object_store_memory is a quarter of the store
            if op.num_active_tasks() >= 2 * max(1, limits.cpu):
                return False
            is_full = self._resource_manager.get_mem_op_outputs(op) >= limits.object_store_memory > 0
            return not (is_full and any(following.num_active_tasks() for following in op.output_dependencies))

    return BoundQueues
