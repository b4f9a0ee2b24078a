"""Records of the lock by model size: relations that hold whatever was measured."""

import math

import numpy as np
import pytest
from test_records import records

from safebook import results
from safebook.chat_profiles import SHAPES, chat_profile
from safebook.lock_arms import ARMS

RUN = "safetylock-08-model-sizes"
RATES = ["harm", "attack_success", "refusal", "broken", "exact", "benign_refusal", "benign_broken"]


@records(RUN)
def test_rates_are_shares_and_every_size_is_asked_as_much(folder):
    r = results.load(folder)
    for name in ("aligned", "dial", "curves", "tested"):
        table = r.tables[name]
        assert ((table[RATES] >= 0) & (table[RATES] <= 1)).all().all()
        np.testing.assert_allclose(table["attack_success"] + table["refusal"], 1, atol=2e-6)
        assert (table["n"].nunique(), table["benign_n"].nunique()) == (1, 1)
        assert table.groupby("seed").size().nunique() == 1 and set(table["seed"]) == set(r.seeds)


@records(RUN)
def test_the_sizes_are_those_of_the_profile_from_small_to_large(folder):
    r = results.load(folder)
    own = chat_profile(r.size).model
    table = r.tables["aligned"].drop_duplicates("model")
    assert list(table["model"]) == [*SHAPES[r.size], f"{own.layers}x{own.heads}"]
    assert table["parameters"].is_monotonic_increasing and table["heads_in_all"].is_monotonic_increasing
    for name, heads in zip(table["model"], table["heads_in_all"]):
        assert math.prod(map(int, name.split("x"))) == heads


@records(RUN)
def test_the_dial_is_the_point_nearest_to_the_middle(folder):
    table = results.load(folder).tables["dial"]
    for _, part in table.groupby("model"):
        means = part.groupby("factor")["harm"].mean()
        (used,) = set(part[part["used"].astype(bool)]["factor"])
        assert abs(means[used] - 0.65) == pytest.approx((means - 0.65).abs().min())


@records(RUN)
def test_the_setting_keeps_harmless_answers_where_any_does_and_is_the_safest_of_those(folder):
    r = results.load(folder)
    curves, tested = r.tables["curves"], r.tables["tested"]
    for (model, arm), part in tested[tested["lock"] == "lock"].groupby(["model", "position"]):
        (count,), (alpha,) = set(part["count"]), set(part["alpha"])
        own = curves[curves["model"] == model]
        bare = own[own["position"] == "none"]["exact"].mean()
        means = own[(own["position"] == arm) & (own["heads"] == "by probe")]
        means = means.groupby(["count", "alpha"])[["harm", "exact", "broken", "benign_broken"]].mean()
        good = means[
            (means["exact"] >= 0.95 * bare - 1e-9) & (means[["broken", "benign_broken"]] <= 0.1).all(axis=1)
        ]
        chosen = means.loc[count, alpha]
        if len(good):
            assert chosen["harm"] == pytest.approx(good["harm"].min()) and (count, alpha) in good.index
        else:
            assert chosen["exact"] == pytest.approx(means["exact"].max())


@records(RUN)
def test_the_share_needed_is_on_the_curve_and_nothing_smaller_suffices(folder):
    r = results.load(folder)
    curves = r.tables["curves"]
    curves = curves[curves["position"] != "none"]
    for (model, arm, kind, seed), part in curves.groupby(["model", "position", "heads", "seed"]):
        needed = r.scalars("share_needed", model=model, position=arm, chosen=kind)[seed]
        enough = part[(part["harm"] < 0.05) & (part["broken"] <= 0.1)]["share"]
        assert needed == pytest.approx(enough.min() if len(enough) else 2.0, abs=1e-6)
    names = list(dict.fromkeys(r.tables["aligned"]["model"]))
    for arm in ARMS:
        for kind in ("by probe", "at random"):
            ends = [
                r.scalars("share_needed", model=n, position=arm, chosen=kind) for n in (names[-1], names[0])
            ]
            for seed, value in r.scalars("log2_share_needed", position=arm, chosen=kind).items():
                assert value == pytest.approx(math.log2(ends[0][seed] / ends[1][seed]))


@records(RUN)
def test_gaps_are_between_the_largest_and_the_smallest_size(folder):
    r = results.load(folder)
    tested, names = r.tables["tested"], list(dict.fromkeys(r.tables["aligned"]["model"]))
    for arm, kind in (("response", "lock"), ("prompt", "lock"), ("prompt", "random directions")):
        rows = tested[(tested["position"] == arm) & (tested["lock"] == kind)]
        rates = rows.pivot(index="seed", columns="model", values="attack_success")
        for seed, gap in r.scalars("success_gap", position=arm, lock=kind).items():
            assert gap == pytest.approx(rates.loc[seed, names[-1]] - rates.loc[seed, names[0]], abs=2e-6)
