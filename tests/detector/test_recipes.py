import dataclasses
import math

import pytest
import torch

from raydistal.detector.recipes import RECIPES, learning_rate, make_optimizer, trainable_groups
from raydistal.errors import UserError


def values(name):
    recipe = dataclasses.asdict(RECIPES[name])
    assert recipe.pop("note")
    return tuple(recipe.values())


def test_values_are_those_of_the_papers():
    """Thesis 5.4.1 and 5.4.7, DeepDistAL 4.1, CKD 4.A; what those do not give is named in the notes."""
    assert values("thesis") == ("sgd", 0.0005, 0.00001, 30, 32, 10, "cosine", 5, False, True)
    assert values("finetune") == ("adam", 0.0002, 0.00001, 20, 32, 0, "constant", 3, False, True)
    assert values("deepdistal") == ("sgd", 0.002, 0.0, 15, 32, 0, "constant", 0, True, False)
    assert values("ckd-vanilla") == ("adam", 0.0002, 0.0, 20, 24, 0, "constant", 5, False, False)


def test_thesis_rate_rises_for_ten_epochs_from_a_tenth_and_falls_to_zero():
    rates = [learning_rate(RECIPES["thesis"], epoch) for epoch in (0, 5, 10, 20, 30)]
    assert rates == pytest.approx([5e-5, 2.75e-4, 5e-4, 2.5e-4, 0])


def test_thesis_rate_falls_as_pytorch_anneals():
    recipe = RECIPES["thesis"]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], recipe.learning_rate)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    for epoch in range(10, 31):
        assert learning_rate(recipe, epoch) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        annealing.step()


def test_a_shorter_training_warms_up_for_a_third_of_it():
    recipe = dataclasses.replace(RECIPES["thesis"], epochs=3)
    rates = [learning_rate(recipe, epoch) for epoch in (0, 0.5, 1, 2, 3)]
    assert rates == pytest.approx([5e-5, 2.75e-4, 5e-4, 2.5e-4, 0])
    longer = dataclasses.replace(RECIPES["thesis"], epochs=60)
    assert learning_rate(longer, 10) == 5e-4 > learning_rate(longer, 9.9)


def test_constant_rate():
    assert {learning_rate(RECIPES["finetune"], epoch) for epoch in (0, 0.5, 20)} == {2e-4}


def test_greedy_trains_each_group_equally_long_and_then_all():
    num_steps = 80
    trained = [trainable_groups(5, step / num_steps) for step in range(num_steps)]
    alone = [{group, 4} for group in (0, 1, 2, 3) for _ in range(10)]
    assert trained == alone + [{0, 1, 2, 3, 4}] * 40


def test_sgd_steps_by_hand():
    """v = 0.9 v + (gradient + decay * w); w -= rate * v, with gradients 1 and 1, and a frozen weight beside it."""
    network = torch.nn.Linear(1, 1, bias=True)
    torch.nn.init.constant_(network.weight, 2.0)
    torch.nn.init.constant_(network.bias, 3.0)
    network.bias.requires_grad_(False)
    recipe = dataclasses.replace(RECIPES["thesis"], learning_rate=0.1, weight_decay=0.5)
    optimizer = make_optimizer(recipe, network)
    weight, velocity = 2.0, 0.0
    for _ in range(2):
        optimizer.zero_grad()
        network(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        velocity = 0.9 * velocity + (1 + 0.5 * weight)
        weight -= 0.1 * velocity
        assert network.weight.item() == pytest.approx(weight)
    assert network.bias.item() == 3.0


def test_adam_moves_by_the_rate_first():
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 2.0)
    optimizer = make_optimizer(RECIPES["finetune"], network)
    assert optimizer.defaults["weight_decay"] == 1e-5
    (5 * network(torch.ones(1, 1))).sum().backward()
    optimizer.step()
    assert network.weight.item() == pytest.approx(2 - 2e-4, abs=1e-6)


@pytest.mark.parametrize("change", [{"learning_rate": -1.0}, {"learning_rate": math.nan}, {"epochs": 0}])
def test_values_that_cannot_be(change):
    with pytest.raises(UserError):
        dataclasses.replace(RECIPES["thesis"], **change)


def test_rewording_a_note_changes_no_settings():
    recipe = RECIPES["thesis"]
    assert dataclasses.replace(recipe, note="reworded").settings() == recipe.settings()
    assert dataclasses.replace(recipe, epochs=31).settings() != recipe.settings()
