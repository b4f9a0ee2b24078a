"""Records of the parameter space and of the controls: relations that hold whatever was measured."""

import numpy as np
import pytest
from test_records import records

from safebook import results
from safebook.profiles import profile

MEDIUM = ("ssft-medium", "dpo-medium", "unlearning-medium")


@records("pcfg-05-column-space")
def test_random_updates_lie_outside_as_dimensions_demand(folder):
    """A share 1 - k/n of a random direction's energy lies outside k of n dimensions; the median's square nearly so."""
    r = results.load(folder)
    table, model = r.tables["by_layer"], profile(r.size).model
    outputs = table["matrix"].map({"c_fc": model.hidden, "c_proj": model.width})
    share = 1 - table["basis"] / outputs
    assert np.abs(table["random_energy"] - share).max() < 0.06
    assert np.abs(table["random_median"] ** 2 - share).max() < 0.12
    assert table[["median", "energy", "random_median", "random_energy"]].stack().between(0, 1).all()
    for measure in ("median", "energy"):
        above = table[measure] - table[f"random_{measure}"]
        clear = above.abs() > 0.001  # the table is rounded
        assert (np.sign(above[clear]) == np.sign(table[f"{measure}_z"][clear])).all()
    assert (table["stable_rank"] >= 1 - 1e-6).all() and (table["kept"] <= model.width).all()


@records("pcfg-05-column-space")
def test_the_updates_length_grows_and_the_claim_takes_the_least_favourable(folder):
    r = results.load(folder)
    table = r.tables["by_layer"].query("matrix == 'c_fc'")
    length = table.groupby(["model", "seed", "part"])["relative_norm"].mean().unstack()
    medium = length.loc[list(MEDIUM)]
    assert (medium.iloc[:, 0] < medium.iloc[:, -1]).all()
    for metric, worst in (("median_z", min), ("energy_z", min), ("median", min), ("relative_norm", max)):
        judged = r.scalars(metric, model="medium protocols")
        for seed in r.seeds:
            assert judged[seed] == worst(r.scalars(metric, model=m)[seed] for m in MEDIUM)
    energy = r.tables["spectra"].groupby(["model", "seed", "layer"])["energy"]
    assert energy.apply(
        lambda e: e.is_monotonic_increasing and e.iloc[0] > 0 and e.iloc[-1] <= 1 + 1e-6
    ).all()


@records("pcfg-06-row-space")
def test_ratios_are_those_of_the_means_and_random_updates_prefer_nothing(folder):
    r = results.load(folder)
    table = r.tables["layers"]
    assert set(r.tables["variants"]["variant"]) == {"pretrained inputs", "as released"}
    big = table[(table["safe"] > 1e-3) & (table["unsafe"] > 1e-3)]
    np.testing.assert_allclose(big["log2_ratio"], np.log2(big["unsafe"] / big["safe"]), atol=3e-3)
    main = table
    assert (main["random_low"] <= main["random_high"]).all()
    assert np.abs((main["random_low"] + main["random_high"]) / 2).mean() < 0.35
    last = profile(r.size).model.layers
    upper = main[(main["measure"] == "projection") & (2 * (main["layer"] - 1) >= last)]
    lowest = upper.groupby(["model", "seed"])["log2_ratio"].min()
    for model in MEDIUM:
        for seed, value in r.scalars(
            "log2_ratio", model=model, measure="projection", variant="main", arm="measured"
        ).items():
            assert value == pytest.approx(lowest[model, seed], abs=1e-5)


@records("pcfg-06-row-space")
def test_the_update_acts_more_strongly_the_longer_it_was_trained(folder):
    table = results.load(folder).tables["training"].query("measure == 'gain'")
    strength = table.groupby(["model", "seed", "part"])["unsafe"].mean().unstack().loc[list(MEDIUM)]
    assert (strength.iloc[:, 0] < strength.iloc[:, -1]).all()


@records("pcfg-10-confound")
def test_differences_by_text_are_differences_of_refusals(folder):
    r = results.load(folder)
    for seed in r.seeds:
        share = {
            (m, t): r.scalars("outcome_share", model=m, operators="context", text=t, outcome="null")[seed]
            for m in MEDIUM
            for t in ("safe", "unsafe")
        }
        smallest = min(share[m, "unsafe"] - share[m, "safe"] for m in MEDIUM)
        found = r.scalars("refused_by_text", arm="faithful", operators="context", text="unsafe")[seed]
        assert found == pytest.approx(smallest)


@records("pcfg-10-confound")
def test_nobody_refuses_before_safety_training_and_cosines_are_cosines(folder):
    r = results.load(folder)
    frame = r.frame("outcome_share")
    before = frame[(frame["model"] == "pretrained") & (frame["outcome"] == "null")]
    assert before["value"].max() < 0.02
    cosines = r.frame("update_cosine")["value"]
    assert cosines.between(-1, 1).all()
    growth = r.frame("log10_growth")
    assert (growth[growth["model"] == "pretrained"]["value"] == 0).all()  # measured against itself
