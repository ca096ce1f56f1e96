"""kill -9 while a detector is trained: no finished epoch is lost, and the detector is that of an undisturbed run."""

import os
import sys

import pytest
import torch

from raydistal.detector import checkpoint
from raydistal.pipelines import train

pytestmark = pytest.mark.ray

EPOCHS = 12


@pytest.fixture
def begin(arena, write_run):
    """begin(...) trains a detector by the command line, until an epoch is done; it is not finished then."""
    write_run(arena.run)
    asked = ["--data", arena.run, "--architecture", "timm:test_resnet", "--weights", "random", "--recipe", "finetune"]
    asked += ["--epochs", str(EPOCHS), "--input-px", "32"]

    def start(*options, **environment):
        command = (sys.executable, "-c", "from raydistal.cli import main; main()", "train", "--out", arena.folder / "d")
        started = arena.start(*command, *asked, *options, **environment)
        started.until((arena.folder / "d" / train.CHECKPOINT).exists)
        assert not (arena.folder / "d" / checkpoint.INFO).exists()
        return started

    return start


def assert_as_undisturbed(arena):
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as the programs do: rounding depends on it
    config = {"architecture": "timm:test_resnet", "weights": "random", "recipe": "finetune", "input_px": 32}
    train.run(train.Config(data=str(arena.run), out=str(arena.folder / "whole"), epochs=EPOCHS, **config))
    disturbed, whole = (checkpoint.load(str(arena.folder / name))[0].state_dict() for name in ("d", "whole"))
    assert all(torch.equal(value, whole[name]) for name, value in disturbed.items())


def test_driver_killed(arena, begin):
    driver = begin()
    driver.kill()
    driver.wait()
    begin().summary()
    assert_as_undisturbed(arena)


def test_worker_killed(arena, begin, head, head_arena):
    driver = begin("--num-workers", "1", **head)
    victims = [pid for pid, line in head_arena.processes().items() if "RayTrainWorker" in line]
    arena.kill(victims)
    assert victims
    driver.summary()
    assert_as_undisturbed(arena)
