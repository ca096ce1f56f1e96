"""kill -9 while a detector is trained: no finished epoch is lost, and the detector is that of an undisturbed run."""

import os
import sys

import pytest
import torch

from raydistal.detector import checkpoint
from raydistal.pipelines import epochs, train

pytestmark = pytest.mark.ray

EPOCHS = 4
# The command line, which stops itself when the first epoch is done.
STOPPING = """
import os, signal, sys
from raydistal import cli, storage
from raydistal.pipelines import epochs
write = storage.write_bytes
def write_and_stop(location, content):
    write(location, content)
    if location.endswith(epochs.CHECKPOINT):
        os.kill(os.getpid(), signal.SIGSTOP)
storage.write_bytes = write_and_stop
cli.main(sys.argv[1:])
"""
PLAIN = "from raydistal import cli; cli.main()"


@pytest.fixture
def begin(arena, write_run):
    """begin(...) trains a detector by the command line, until an epoch is done; it is not finished then."""
    write_run(arena.run)
    asked = ["--data", arena.run, "--architecture", "timm:test_resnet", "--weights", "random", "--recipe", "finetune"]
    asked += ["--epochs", str(EPOCHS), "--input-px", "32"]

    def start(program, *options, **environment):
        command = (sys.executable, "-c", program, "train", "--out", arena.folder / "d")
        started = arena.start(*command, *asked, *options, **environment)
        started.until((arena.folder / "d" / epochs.CHECKPOINT).exists)
        assert not (arena.folder / "d" / checkpoint.INFO).exists()
        return started

    return start


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, write_run):
    """The weights of a run of the same faces."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_run(folder / "run")
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as the programs do: rounding depends on it
    config = {"architecture": "timm:test_resnet", "weights": "random", "recipe": "finetune", "input_px": 32}
    train.run(train.Config(data=str(folder / "run"), out=str(folder / "d"), epochs=EPOCHS, **config))
    return checkpoint.load(str(folder / "d"))[0].state_dict()


def assert_same(arena, undisturbed):
    disturbed = checkpoint.load(str(arena.folder / "d"))[0].state_dict()
    assert all(torch.equal(value, undisturbed[name]) for name, value in disturbed.items())


def test_driver_killed(arena, begin, undisturbed):
    driver = begin(STOPPING)
    driver.kill()
    driver.wait()
    begin(PLAIN).summary()
    assert_same(arena, undisturbed)


def test_worker_killed(arena, begin, head, head_arena, undisturbed):
    driver = begin(PLAIN, "--num-workers", "1", **head)
    victims = [pid for pid, line in head_arena.processes().items() if "RayTrainWorker" in line]
    head_arena.kill(victims)
    assert victims
    driver.summary()
    assert_same(arena, undisturbed)
