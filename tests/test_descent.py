"""Steps of a descent: as long as they lower the loss, in any unit."""

import pytest
import torch

from deepsimreg.descent import Adam, descend


def found(loss, start=0.0, steps=60, rate=0.15):
    losses = []
    field = descend(torch.full((1, 2, 5, 5), start), loss, steps, Adam(rate), losses, lambda field: None)
    return field, losses


@pytest.mark.parametrize("goal", [1e-3, 0.02, 0.15, 2.0])
@pytest.mark.parametrize("unit", [1e-12, 1.0, 1e6])
def test_a_goal_at_any_distance_is_reached_whatever_the_unit_of_the_loss(goal, unit):
    field, losses = found(lambda field: unit * (field - goal).square().mean())
    assert (field - goal).abs().max() < 0.2 * goal
    assert len(losses) <= 60


def test_the_best_field_is_given_back():
    seen = []

    def loss(field):
        seen.append(((field - 0.1).square() + 0.3 * (20 * field).cos()).mean())
        return seen[-1]

    field, _ = found(loss)
    assert loss(field) == min(seen)


def test_at_the_minimum_it_stays_and_ends():
    field, losses = found(lambda field: field.square().mean(), steps=500)
    assert (field == 0).all()
    assert len(losses) < 15
