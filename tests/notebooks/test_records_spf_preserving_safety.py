"""Records of SPF beside other defences: relations that hold whatever was measured."""

import numpy as np
import pandas as pd
import pytest
from test_records import records

from safebook import results
from safebook import spf_measures as measures
from safebook.plots import spf_safety as figures
from safebook.spf_arms import AFTERWARDS, ARMS

RUN = "spf-04-preserving-safety"
SHARES = ["harm", "attack_success", "refusal", "broken", "plain_harm", "plain_refusal"]
SHARES += ["benign_exact", "benign_broken", "benign_refusal", "over_refusal"]
KEY = ["data", "optimiser", "arm", "style", "seed"]


@records(RUN)
def test_every_arm_is_tested_on_the_same_prompts_in_the_form_of_its_data(folder):
    r = results.load(folder)
    table, p = r.tables["results"], r.parameters
    assert not table.duplicated(KEY).any()
    counts = ["n", "benign_n", "borderline_n"]
    assert (table[counts].nunique() == 1).all()
    for (data, optimiser), part in table[table["arm"] != "aligned"].groupby(["data", "optimiser"]):
        assert set(part["style"]) == {measures.style_of(data)}
        wanted = ARMS if data in p["every_arm"] else measures.MAIN
        wanted = ("sft", "spf") if optimiser == "adamw 0.9" else wanted
        assert (part.groupby("seed")["arm"].apply(set) == set(wanted)).all() and set(part["seed"]) == set(
            r.seeds
        )


@records(RUN)
def test_rates_are_shares_and_agree_with_each_other(folder):
    r = results.load(folder)
    table = r.tables["results"]
    assert ((table[SHARES] >= 0) & (table[SHARES] <= 1)).all().all()
    np.testing.assert_allclose(table["attack_success"] + table["refusal"], 1, atol=2e-6)
    assert (table["benign_exact"] + table["benign_broken"] <= 1 + 2e-6).all()
    plain = table[table["style"] == "plain"]
    assert (plain["harm"] == plain["plain_harm"]).all() and (plain["refusal"] == plain["plain_refusal"]).all()
    assert (table["perplexity"] >= 1).all() and (table["refusal_loss"] >= 0).all()
    assert ((r.tables["skills"]["accuracy"] >= 0) & (r.tables["skills"]["accuracy"] <= 1)).all()


@records(RUN)
def test_only_subspace_arms_remove_energy_and_each_has_spfs_rank(folder):
    table = results.load(folder).tables["results"]
    acting = table["arm"].isin(["spf", "random subspace", "utility subspace"])
    assert (table[~acting][["acted", "removed"]] == 0).all().all()
    assert table[acting]["setting"].nunique() == 1 and table[acting]["removed"].between(0, 1).all()


@records(RUN)
def test_the_chosen_setting_has_the_highest_score_of_an_equal_number(folder):
    r = results.load(folder)
    grid, table = r.tables["grid"], r.tables["results"]
    assert set(grid["arm"]) == set(measures.GRIDS) and grid.groupby("arm").size().nunique() == 1
    for arm, part in grid.groupby("arm"):
        chosen = part[part["chosen"].astype(bool)]
        assert len(chosen) == 1 and chosen["score"].iloc[0] == part["score"].max()
        used = table[table["arm"] == arm]["setting"]
        np.testing.assert_allclose(used, chosen["setting"].iloc[0], atol=1e-6)
    safe = (grid["refusal"] - grid["broken"]).clip(lower=0)
    np.testing.assert_allclose(grid["score"], (safe + grid["benign_exact"] + grid["accuracy"]) / 3, atol=2e-6)


@records(RUN)
def test_courses_begin_at_the_aligned_model_and_end_at_the_results(folder):
    r = results.load(folder)
    courses, table = r.tables["courses"], r.tables["results"]
    for (_, seed), part in courses[courses["iteration"] == 0].groupby(["data", "seed"]):
        assert part["loss"].nunique() == 1 and part["refusal"].nunique() == 1 and seed in r.seeds
    for (data, arm, seed), part in courses.groupby(["data", "arm", "seed"]):
        ended = table[(table["data"] == data) & (table["arm"] == arm) & (table["seed"] == seed)]
        end = ended[ended["optimiser"] == "adamw 0.5"].iloc[0]
        assert part.iloc[-1]["harm"] == pytest.approx(end["harm"], abs=2e-6)
        assert part.iloc[-1]["loss"] == pytest.approx(end["loss"], abs=2e-6)


@records(RUN)
def test_statistics_of_the_claims_follow_from_the_tables(folder):
    r = results.load(folder)
    table, courses = r.tables["results"], r.tables["courses"]
    for data in set(r.frame("success_ratio")["data"]):
        for seed in r.seeds:
            part = table[
                (table["data"] == data) & (table["seed"] == seed) & (table["optimiser"] == "adamw 0.5")
            ]
            harm = part.set_index("arm")["harm"]
            for arm in set(part["arm"]) - {"sft"}:
                found = r.scalars("success_ratio", method=arm, data=data, at="equal steps")[seed]
                assert found == pytest.approx(measures.ratio(harm[arm], harm["sft"], 1.0), abs=1e-4)
            lowest = {
                at: min(r.scalars("success_ratio", method=a, data=data, at=at)[seed] for a in measures.SIMPLE)
                for at in ("equal steps", "equal loss")
            }
            for at, value in lowest.items():
                assert r.scalars("success_ratio", method="best simple", data=data, at=at)[seed] == value
            runs = courses[(courses["data"] == data) & (courses["seed"] == seed)]
            plain = runs[runs["arm"] == "sft"].to_dict("records")
            after = runs[runs["arm"] == AFTERWARDS[0]].to_dict("records")[-1:]
            if after:
                _, *pair = measures.at_equal_loss(after, plain, "harm")
                found = r.scalars("success_ratio", method=AFTERWARDS[0], data=data, at="equal loss")[seed]
                assert found == pytest.approx(measures.ratio(*pair, 1.0), abs=1e-4)


@records(RUN)
def test_the_lowest_and_the_highest_of_the_tasks_are_those_of_the_tasks(folder):
    r = results.load(folder)
    kept, drop = r.frame("refusal_kept"), r.frame("accuracy_drop")
    assert all(measures.harmless(data) for data in kept["task"].dropna())
    for arm in measures.MAIN:
        for seed in r.seeds:
            of = [f[(f["method"] == arm) & (f["seed"] == seed)] for f in (kept, drop)]
            lowest = of[0][of[0]["task"].notna()]["value"].min()
            highest = of[1][of[1]["task"].notna()]["value"].max()
            assert r.scalars("refusal_kept", method=arm, tasks="lowest")[seed] == lowest
            assert r.scalars("accuracy_drop", method=arm, tasks="highest")[seed] == highest
    assert all(v == 0 for v in r.scalars("accuracy_drop", method="sft", tasks="highest").values())


@records(RUN)
def test_figures_show_the_tables(folder):
    r = results.load(folder)
    data = r.parameters["every_arm"][0]
    part = figures.of_set(figures.wide(r, data), data)
    assert isinstance(part, pd.DataFrame) and set(part["arm"]) == {"aligned", *ARMS}
    assert len(part) == len(r.seeds) * (1 + len(ARMS))


@records(RUN)
def test_the_harmless_sets_leave_something_to_keep(folder):
    """What the verdicts on harmless fine-tuning rest on: it is learned, takes refusals, and leaves harmless answers whole."""
    r = results.load(folder)
    if r.size == "smoke":
        pytest.skip("the smoke models are hardly trained")
    plain = r.tables["results"].query("arm == 'sft' and optimiser == 'adamw 0.5'")
    plain = plain[plain["data"].map(measures.harmless) & (plain["data"] != "none")]
    assert len(plain) and plain["benign_exact"].min() > 0.9
    kept = r.scalars("refusal_kept", method="sft", tasks="lowest").values()
    learned = r.scalars("accuracy_drop", method="aligned", tasks="lowest").values()
    assert sum(kept) / len(kept) < 0.5 and sum(learned) / len(learned) > 0.3
