"""kill -9 while a detector is trained: no finished epoch is lost, and the detector is that of an undisturbed run."""

import sys

import pytest
import torch

from raydistal.detector import checkpoint
from raydistal.pipelines import train

pytestmark = pytest.mark.ray

EPOCHS = 30


@pytest.fixture
def start(arena, write_run):
    """start(name, ...) trains the detector `name` of the arena's run by the command line."""
    write_run(arena.run)

    def begin(name, *options):
        asked = ["--data", arena.run, "--out", arena.folder / name, "--architecture", "timm:test_resnet"]
        asked += ["--weights", "random", "--recipe", "finetune", "--epochs", str(EPOCHS), "--input-px", "32"]
        program = "from raydistal.cli import main; main()"
        return arena.start(sys.executable, "-c", program, "train", *asked, *options, OMP_NUM_THREADS="1")

    return begin


def weights(arena, name):
    return checkpoint.load(str(arena.folder / name))[0].state_dict()


def until_an_epoch_is_done(arena, name, program):
    program.until((arena.folder / name / train.CHECKPOINT).exists)
    assert not (arena.folder / name / checkpoint.INFO).exists()


def test_killed_trainings_end_as_if_nothing_had_happened(arena, start):
    assert start("whole").summary()["epochs"] <= EPOCHS
    driver = start("driver")
    until_an_epoch_is_done(arena, "driver", driver)
    driver.kill()
    driver.wait()
    assert start("driver").summary()["epochs"] <= EPOCHS
    worker = start("worker", "--num-workers", "1")
    until_an_epoch_is_done(arena, "worker", worker)
    victims = [pid for pid, line in arena.processes().items() if "RayTrainWorker" in line]
    arena.kill(victims)
    assert victims
    assert worker.summary()["epochs"] <= EPOCHS
    whole = weights(arena, "whole")
    for name in ("driver", "worker"):
        assert all(torch.equal(value, whole[key]) for key, value in weights(arena, name).items()), name
