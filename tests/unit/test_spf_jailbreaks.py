"""The choice of settings and the comparison at equal loss, on cases by hand."""

import pytest

from safebook.errors import InputError
from safebook.spf_jailbreaks import State, at_common_loss, chosen, spread


def point(setting, harm, grade, exact):
    return {"setting": setting, "harm": harm, "grade": grade, "exact": exact}


def test_the_safest_setting_that_keeps_the_skill_is_chosen():
    points = [point(1, 0.5, 3.0, 1.0), point(2, 0.2, 2.0, 0.95), point(3, 0.0, 1.0, 0.9)]
    assert chosen(points, 1.0)["setting"] == 2  # the third lost ten points
    assert chosen(points, 0.92)["setting"] == 3
    assert chosen([point(1, 0.2, 3.0, 1.0), point(2, 0.2, 2.5, 1.0)], 1.0)["setting"] == 2  # by grade
    assert chosen([point(1, 0.2, 2.5, 1.0), point(2, 0.2, 2.5, 1.0)], 1.0)["setting"] == 1  # the first
    assert chosen([point(1, 0.0, 1.0, 0.1), point(2, 0.9, 4.0, 0.4)], 1.0)["setting"] == 2  # none keeps it
    with pytest.raises(InputError, match="points"):
        chosen([], 1.0)


def test_the_common_loss_is_one_that_every_arm_reaches():
    courses = {
        "fast": [State(1, 2.0, {}), State(2, 1.0, {}), State(3, 0.2, {})],
        "slow": [State(1, 2.5, {}), State(2, 1.6, {}), State(3, 1.2, {})],
    }
    loss, states = at_common_loss(courses)
    assert loss == 1.2 and states["fast"].step == 2 and states["slow"].step == 3
    with pytest.raises(InputError, match="courses"):
        at_common_loss({"fast": []})


def test_spread():
    assert spread({"a": 0.2, "b": 0.6, "plain": 1.0}, ["a", "b"]) == {
        "strongest": 0.6,
        "mean": pytest.approx(0.4),
    }
