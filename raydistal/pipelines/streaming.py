"""How Ray Data runs the stages of a pipeline: all CPUs at work, and no stage far ahead of the next one."""


def bound_queues() -> None:
    """Sets up the datasets that this process makes from now on.

    With its reservations, Ray Data lets two CPUs decode one video at a time; without them it lets decoded crops pile up
    without end. So: no reservations, and a bound of our own.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.op_resource_reservation_enabled = False
    context.set_config("backpressure_policies.enabled", [policy()])


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
