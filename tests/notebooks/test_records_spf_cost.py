"""Records of SPF's cost: relations that hold whatever was measured."""

import pandas as pd
import pytest
from test_records import records

from safebook import paths, results
from safebook import spf_cost as cost
from safebook.plots import spf_cost as figures

RUN = "spf-09-cost"


@records(RUN)
def test_every_version_is_timed_in_every_round(folder):
    r = results.load(folder)
    table = r.tables["times"]
    assert (table["seconds"] > 0).all() and set(table["version"]) == set(cost.VERSIONS)
    counts = table.groupby(["seed", "batch", "version"]).size()
    assert (counts == r.parameters["rounds"]).all()
    assert len(counts) == len(r.seeds) * len(r.parameters["rows"]) * len(cost.VERSIONS)
    assert set(r.tables["parts"]["part"]) == set(cost.PARTS)


@records(RUN)
def test_ratios_follow_from_the_rounds_and_the_measured_share(folder):
    r = results.load(folder)
    shares = r.scalars("conflict_share", data="mean")
    by_set = [r.scalars("conflict_share", data=data) for data in r.parameters["data"]]
    for (seed, batch), part in r.tables["times"].groupby(["seed", "batch"]):
        assert shares[seed] == pytest.approx(sum(s[seed] for s in by_set) / len(by_set))
        assert 0 <= shares[seed] <= 1
        for version in cost.VERSIONS[1:]:
            for conflicts, share in (("always", 1.0), ("measured", shares[seed])):
                found = r.scalars("time_ratio", version=version, batch=batch, conflicts=conflicts)[seed]
                assert found == pytest.approx(cost.time_ratio(part, version, share), rel=1e-2)


@records(RUN)
def test_a_step_that_conflicts_holds_more_than_a_plain_one(folder):
    r = results.load(folder)
    table = r.tables["memory"].pivot(index=["seed", "batch"], columns="version", values="bytes")
    assert (table["sft"] == table["sft again"]).all()
    for version in ("spf, full SVD", "spf, randomised SVD", "spf, no conflict", "surgery"):
        assert (table[version] >= table["sft"]).all()


@records(RUN)
def test_the_bar_of_the_part(folder):
    """At most one and a half times a plain step on the testbed, at the largest batch and the measured share of conflicts."""
    r = results.load(folder)
    if r.size == "smoke":
        pytest.skip("matrices so small that calls dominate")
    for version in figures.SPF:
        found = r.scalars("time_ratio", version=version, batch="largest", conflicts="measured")
        assert sum(found.values()) / len(found) < 1.5


def test_the_printed_ratio_comes_from_the_data_file():
    assert figures.reported(pd.read_csv(paths.DATA / "paper/spf/cost.csv")) == 1.28
