"""How far jobs go; clusters that really grow are in tests/faults/autoscaler.py."""

import os
import signal
import time

import pytest

from raydistal import progress
from raydistal.errors import UserError
from raydistal.pipelines import scaling
from raydistal.pipelines.scaling import UNLIMITED, Budget, Growth, Stopped, within
from raydistal.pipelines.streaming import network_actors

HEAD, SMALL, LARGE, GPU = {"memory": 1.0}, {"CPU": 4.0}, {"CPU": 16.0}, {"CPU": 8.0, "GPU": 1.0}


@pytest.fixture
def nodes(monkeypatch):
    """Resources of the nodes of a cluster, to be changed."""
    import ray

    there: list[dict[str, float]] = []

    def total():
        return {name: sum(node.get(name, 0) for node in there) for name in ("CPU", "GPU")}

    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "NodeID": "x", "Resources": node} for node in there])
    monkeypatch.setattr(ray, "cluster_resources", total)
    return there


def grown(nodes, *there, max_nodes=0, on_gpu=False):
    nodes[:] = there
    return Growth(max_nodes, on_gpu)


def test_cpus_are_asked_for_by_the_work(nodes):
    assert grown(nodes, SMALL).cpus_for(100) == 4
    assert grown(nodes, SMALL).cpus_for(64 * 100) == 100
    assert grown(nodes, HEAD).cpus_for(1) == 1


def test_cpus_are_asked_for_up_to_the_nodes_of_the_budget(nodes):
    assert grown(nodes, HEAD, max_nodes=5).cpus_for(10**6) == 4  # how large nodes are is not known yet
    growth = grown(nodes, HEAD, LARGE, SMALL, max_nodes=5)
    assert growth.cpus_for(10**6) == 16 + 4 + 2 * 4
    nodes += [LARGE, LARGE]
    growth.look()
    assert growth.cpus_for(10**6) == 3 * 16 + 4


def test_jobs_do_not_wait_for_the_actors_of_each_other(nodes):
    """Of what keeps them one per node each stage has its own: another job's actor would hold it for hours."""
    growth = grown(nodes, SMALL)
    one, other = (network_actors(0, 100, growth)["resources"] for _ in range(2))
    assert list(one.values()) == list(other.values()) == [1]
    assert one.keys() != other.keys()


def test_some_of_the_nodes_of_the_budget_are_for_gpus(nodes):
    growth = grown(nodes, HEAD, SMALL, max_nodes=10, on_gpu=True)
    assert growth.actors_for(10**6) == (1, 2)
    assert growth.cpus_for(10**6) == 4 + (8 - 2) * 4
    nodes += [GPU, GPU]
    growth.look()
    assert growth.cpus_for(10**6) == 4 + 8 + 8 + 6 * 4


def test_actors(nodes):
    """As many as GPUs or nodes; more may come if there is work for them."""
    assert grown(nodes, SMALL).actors_for(100) == (1, 1)
    assert grown(nodes, HEAD, SMALL, SMALL).actors_for(5000) == (2, 9)
    assert grown(nodes, HEAD, SMALL, max_nodes=4).actors_for(5000) == (1, 3)
    assert grown(nodes, GPU, GPU, GPU, on_gpu=True).actors_for(100) == (3, 3)
    assert grown(nodes, HEAD, on_gpu=True).actors_for(100) == (1, 1)


def test_trainings_at_once(nodes):
    needed = {"CPU": 2.0, "GPU": 1.0}
    assert grown(nodes, SMALL).tasks_for(needed) > 1000
    growth = grown(nodes, SMALL, max_nodes=3)
    assert growth.tasks_for(needed) == 2
    nodes += [GPU, GPU]
    assert growth.tasks_for(needed) == 2
    assert grown(nodes, SMALL, max_nodes=1).tasks_for(needed) == 1


def test_sigterm_is_the_way_out():
    earlier = signal.getsignal(signal.SIGTERM)

    def work():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # who says it twice does not disturb what is put in order

    with pytest.raises(Stopped, match="it got SIGTERM"), within(UNLIMITED):
        work()
    assert signal.getsignal(signal.SIGTERM) is earlier


@pytest.mark.slow
@pytest.mark.parametrize(
    ("budget", "why"),
    [
        (Budget(max_hours=0.1 / 3600), "it reached --max-hours 2.77778e-05"),
        (Budget(idle_minutes=0.1 / 60), "it made no progress for --idle-minutes 0.00166667 after some: 3/5 things"),
    ],
)
def test_a_budget_ends_a_job_that_waits(budget, why):
    with progress.Progress("some", 5, "things") as told:
        told.advance(3)
    with pytest.raises(Stopped) as stopped, within(budget):
        time.sleep(60)
    assert str(stopped.value) == why


def test_progress_is_not_idle(monkeypatch):
    began = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: began + 100)
    progress.sign("a step")
    monkeypatch.setattr(time, "monotonic", lambda: began + 159)
    assert Budget(idle_minutes=1).overrun(began) == ""
    monkeypatch.setattr(time, "monotonic", lambda: began + 160)
    assert "after a step" in Budget(idle_minutes=1).overrun(began)


def test_bad_budgets():
    for name in ("max_hours", "max_nodes", "idle_minutes"):
        with pytest.raises(UserError, match="--max-nodes"):
            scaling.Budget(**{name: -1})
