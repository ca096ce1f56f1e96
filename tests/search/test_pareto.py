"""Fronts against brute force, bisections against every order that they may meet."""

import itertools

import numpy as np
import pytest

from raydistal.search.pareto import Step, bisect, front


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4])
def test_front_against_brute_force(num_objectives):
    loss_PD = np.random.default_rng(num_objectives).integers(0, 6, (60, num_objectives)).astype(float)
    by_hand = [
        row
        for row, mine in enumerate(loss_PD)
        if not any(all(other <= mine) and any(other != mine) for other in loss_PD)
    ]
    assert front(loss_PD) == by_hand
    assert front(np.empty((0, num_objectives))) == []


def finish(held):
    """Answers every question of a bisection; returns its end and how many answers it took."""
    holds = {}
    while (step := bisect(holds, len(held))).todo:
        assert step.answer is None
        assert set(step.todo).isdisjoint(holds)
        holds |= {number: held[number] for number in step.todo}
    return step, len(holds)


@pytest.mark.parametrize("num", [1, 2, 3, 8, 33])
def test_bisection_finds_the_last_that_holds(num):
    for num_held in range(num + 1):
        step, num_asked = finish([number < num_held for number in range(num)])
        assert step == Step([], num_held - 1 if num_held else None, [])
        assert num_asked <= 2 + np.ceil(np.log2(num))


def test_bisection_of_any_order_stops_and_tells_what_contradicts_it():
    for held in itertools.product([True, False], repeat=7):
        step, _ = finish(held)
        assert step.contradictions == ([6] if held[6] and not held[0] else [])
        if step.answer is None:
            assert not held[0]
        else:
            assert held[step.answer]
            assert step.answer == 6 or not held[step.answer + 1]


def test_bisection_uses_what_is_known():
    known = {0: True, 2: True, 3: False, 5: True, 7: False}
    assert bisect(known, 8) == Step([], 2, [5])
    assert bisect({0: True, 7: False, 4: False}, 8) == Step([2], None, [])
