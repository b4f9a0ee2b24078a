"""Records of a lock's cost: relations that hold whatever was measured."""

import math

import pandas as pd
import pytest
from test_records import records

from safebook import paths, results
from safebook.plots import lock_cost as figures

RUN = "safetylock-05-cost"
ARMS = ("response", "prompt")
METHODS = ("safety SFT", "DPO", "editing", "harm vector")


@records(RUN)
def test_steps_add_up_and_are_in_order(folder):
    r = results.load(folder)
    for arm in ARMS:
        reading, fitting, both, cold, warm = (
            r.scalars("seconds", step=step, arm=arm)
            for step in ("read activations", "fit probes", "extract", "distribute, cold", "distribute, warm")
        )
        for seed in r.seeds:
            assert reading[seed] + fitting[seed] == pytest.approx(both[seed])
            assert 0 < warm[seed] < cold[seed] < both[seed]


@records(RUN)
def test_the_bar_for_distribution(folder):
    """Under a hundredth of a second, warm: the part's own bar, on the testbed."""
    r = results.load(folder)
    for arm in ARMS:
        assert max(r.scalars("seconds", step="distribute, warm", arm=arm).values()) < 0.01


@records(RUN)
def test_training_is_stopped_at_the_first_state_as_safe_as_the_lock(folder):
    r = results.load(folder)
    table = r.tables["training"]
    assert set(table["method"]) == set(METHODS)
    for (method, seed), part in table.groupby(["method", "seed"]):
        assert part["seconds"].is_monotonic_increasing and part["step"].is_monotonic_increasing
        lowest = min(r.scalars("target", arm=arm)[seed] for arm in ARMS)
        assert (part["harm"].iloc[:-1] > lowest).all()
        for arm in ARMS:
            target = r.scalars("target", arm=arm)[seed]
            good = part[part["harm"] <= target + 1e-6]
            assert r.scalars("reached", method=method, arm=arm)[seed] == float(len(good) > 0)
            row = good.iloc[0] if len(good) else part.iloc[-1]
            found = r.scalars("seconds", step="repair", method=method, arm=arm)[seed]
            assert found == pytest.approx(row["seconds"], abs=2e-6)


@records(RUN)
def test_ratios_are_of_the_recorded_seconds(folder):
    r = results.load(folder)
    for arm in ARMS:
        for method in METHODS:
            for step, label in (("distribute, warm", "distribute"), ("extract", "extract")):
                for seed in r.seeds:
                    above = r.scalars("seconds", step=step, arm=arm)[seed]
                    below = r.scalars("seconds", step="repair", method=method, arm=arm)[seed]
                    found = r.scalars("log10_time_ratio", step=label, against=method, arm=arm)[seed]
                    assert found == pytest.approx(math.log10(above / below))


@records(RUN)
def test_slowdowns_are_medians_over_rounds_of_one_table(folder):
    r = results.load(folder)
    table = r.tables["decoding"]
    assert (table.groupby(["arm", "seed", "version"]).size() == r.parameters["rounds"]).all()
    for (arm, seed), part in table.groupby(["arm", "seed"]):
        wide = part.pivot(index="round", columns="version", values="tokens_per_second")
        for version in ("bias", "hook", "none again"):
            found = r.scalars("slowdown", version=version, arm=arm)[seed]
            assert found == pytest.approx((wide["none"] / wide[version] - 1).median(), abs=1e-3)


@records(RUN)
def test_every_method_is_tested_with_its_controls(folder):
    r = results.load(folder)
    table = r.tables["methods"]
    assert set(table["method"]) == set(figures.METHODS)
    assert not table.duplicated(["method", "seed"]).any()
    assert len(table) == len(figures.METHODS) * len(r.seeds)
    assert (table["exact"] + table["benign_broken"] <= 1 + 2e-6).all()


@records(RUN)
def test_a_lock_is_smaller_than_what_training_needs(folder):
    r = results.load(folder)
    for seed in r.seeds:
        weights = r.scalars("bytes", what="weights")[seed]
        assert r.scalars("bytes", what="training", method="safety SFT")[seed] == 3 * weights
        assert r.scalars("bytes", what="training", method="editing")[seed] < 3 * weights
        assert all(r.scalars("bytes", what="bias", arm=arm)[seed] < 0.01 * weights for arm in ARMS)


def test_stated_times_come_from_the_data_file():
    found = figures.stated(pd.read_csv(paths.DATA / "paper/safetylock/stated.csv"))
    assert found == {"distribute": (0.001, 0.01), "extract": (120.0, 600.0)}
