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
        wanted = ("sft", "spf", *measures.SIMPLE) if optimiser != "adamw 0.5" else wanted
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
def test_the_chosen_setting_has_the_highest_mean_score_of_an_equal_number(folder):
    r = results.load(folder)
    grid, table = r.tables["grid"], r.tables["results"]
    assert set(grid["arm"]) == set(measures.GRIDS) and set(grid["data"]) == set(r.parameters["choose_on"])
    for arm, part in grid.groupby("arm"):
        means = part.groupby("setting")["score"].mean()
        (chosen,) = set(part[part["chosen"].astype(bool)]["setting"])
        assert len(means) == 3 and means[chosen] == pytest.approx(means.max(), abs=2e-6)
        np.testing.assert_allclose(table[table["arm"] == arm]["setting"], chosen, atol=1e-6)
    safe = (grid["refusal"] - grid["broken"]).clip(lower=0)
    np.testing.assert_allclose(grid["score"], (safe + grid["benign_exact"] + grid["accuracy"]) / 3, atol=2e-6)


@records(RUN)
def test_sgd_has_the_tried_rate_that_harms_most_like_adamw(folder):
    r = results.load(folder)
    dial, first = r.tables["dial"], r.parameters["every_arm"][0]
    used = dial["used"].astype(bool)
    aim = dial[(dial["data"] == first) & used]["harm"].iloc[0]
    sgd = dial[dial["data"] == f"{first}, SGD"]
    assert set(sgd["rate"]) == set(r.parameters["sgd_rates"]) and used[sgd.index].sum() == 1
    descent = r.tables["descent"]
    assert set(descent["arm"]) == {"sft", *measures.SIMPLE} and set(descent["rate"]) == set(sgd["rate"])
    assert (descent["falls"].astype(bool) == (descent["after"] < descent["before"])).all()
    accepted = descent.groupby("rate")["falls"].min().astype(bool)
    accepted = set(accepted[accepted].index) or {min(sgd["rate"])}
    far = (sgd["harm"] - aim).abs()
    far = far[sgd["rate"].isin(accepted)]
    assert used[far.index].sum() == 1 and far[used[far.index]].iloc[0] == pytest.approx(far.min(), abs=1e-9)


@records(RUN)
def test_loss_mixing_is_swept_on_the_first_set_and_agrees_with_the_table_at_its_own_weight(folder):
    r = results.load(folder)
    sweep, table = r.tables["sweep"], r.tables["results"]
    assert sweep.groupby("weight")["seed"].apply(set).map(lambda s: s == set(r.seeds)).all()
    assert set(sweep["weight"]) == set(r.parameters["weights"])
    own = table[(table["arm"] == "mixing") & (table["optimiser"] == "adamw 0.5")]
    own = own[own["data"] == r.parameters["every_arm"][0]].set_index("seed")
    for _, row in sweep.iterrows():
        if row["weight"] == own["setting"].iloc[0]:
            assert row["harm"] == pytest.approx(own["harm"][row["seed"]], abs=2e-6)
            assert row["loss"] == pytest.approx(own["loss"][row["seed"]], abs=2e-6)


@records(RUN)
def test_other_optimisers_are_compared_with_plain_fine_tuning_by_the_same_one(folder):
    r = results.load(folder)
    table, first = r.tables["results"], r.parameters["every_arm"][0]
    for optimiser in ("adamw 0.9", "sgd"):
        part = table[(table["data"] == first) & (table["optimiser"] == optimiser)]
        for seed in r.seeds:
            harm = part[part["seed"] == seed].set_index("arm")["harm"]
            for arm in ("spf", *measures.SIMPLE):
                where = {"method": arm, "optimiser": optimiser, "at": "equal steps"}
                found = r.scalars("success_by_optimiser", **where)[seed]
                assert found == pytest.approx(measures.ratio(harm[arm], harm["sft"], 1.0), abs=1e-4)
                usual = r.scalars("success_ratio", method=arm, data=first, at="equal steps")[seed]
                assert r.scalars("success_over_adamw", **where)[seed] == pytest.approx(found - usual)


@records(RUN)
def test_courses_begin_at_the_aligned_model_and_end_at_the_results(folder):
    r = results.load(folder)
    courses, table = r.tables["courses"], r.tables["results"]
    for (_, seed), part in courses[courses["iteration"] == 0].groupby(["data", "seed"]):
        assert part["loss"].nunique() == 1 and part["refusal"].nunique() == 1 and seed in r.seeds
    for (data, optimiser, arm, seed), part in courses.groupby(["data", "optimiser", "arm", "seed"]):
        ended = table[(table["data"] == data) & (table["arm"] == arm) & (table["seed"] == seed)]
        end = ended[ended["optimiser"] == optimiser].iloc[0]
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
            runs = runs[runs["optimiser"] == "adamw 0.5"]
            plain = runs[runs["arm"] == "sft"].to_dict("records")
            after = runs[runs["arm"] == AFTERWARDS[0]].to_dict("records")[-1:]
            if after:
                _, *pair = measures.at_equal_loss(after, plain, "harm")
                found = r.scalars("success_ratio", method=AFTERWARDS[0], data=data, at="equal loss")[seed]
                assert found == pytest.approx(measures.ratio(*pair, 1.0), abs=1e-4)


def reached(course, loss, column):
    """Value where a run first reaches a loss: linear between the points before and after, in numpy's words."""
    points = course.sort_values("iteration")
    first = int(np.argmax(points["loss"].to_numpy() <= loss + 1e-12))
    if first == 0:
        return points[column].iloc[0]
    two = points.iloc[first - 1 : first + 1].sort_values("loss")
    return np.interp(loss, two["loss"], two[column])


@records(RUN)
def test_numbers_at_equal_loss_follow_from_the_courses(folder):
    """The lowest loss that an arm and plain fine-tuning both reach; of the arms that act afterwards, their end."""
    r = results.load(folder)
    courses, first = r.tables["courses"], r.parameters["every_arm"][0]
    aligned, leads = r.tables["results"].query("arm == 'aligned'").set_index(["seed", "style"])["refusal"], {}
    for (data, optimiser, seed), part in courses.groupby(["data", "optimiser", "seed"]):
        runs = dict(iter(part.groupby("arm")))
        for arm in set(runs) - {"sft"}:
            run = runs[arm].nlargest(1, "iteration") if arm in AFTERWARDS else runs[arm]
            loss = max(run["loss"].min(), runs["sft"]["loss"].min())
            harm, plain = (reached(course, loss, "harm") for course in (run, runs["sft"]))
            if not measures.harmless(data):
                where = {"method": arm, "at": "equal loss"}
                usual = optimiser == "adamw 0.5"
                where |= {"data": data} if usual else {"optimiser": optimiser}
                found = r.scalars("success_ratio" if usual else "success_by_optimiser", **where)[seed]
                assert found == pytest.approx(measures.ratio(harm, plain, 1.0), abs=1e-3), (data, arm, seed)
                assert usual or data == first
            elif arm in measures.MAIN:
                whole = aligned[seed, measures.style_of(data)]
                refused, plainly = (reached(course, loss, "refusal") for course in (run, runs["sft"]))
                found = r.scalars("refusal_kept", method=arm, task=data, at="equal loss")[seed]
                assert found == pytest.approx(measures.ratio(refused, whole, 0.0), abs=1e-3)
                ahead = measures.ratio(refused - plainly, whole, 0.0)
                leads[arm, seed] = min(ahead, leads.get((arm, seed), ahead))
    for (arm, seed), ahead in leads.items():
        found = r.scalars("refusal_lead", method=arm, tasks="lowest")[seed]
        assert found == pytest.approx(ahead, abs=1e-3), (arm, seed)
    assert {arm for arm, _ in leads} == set(measures.MAIN) - {"sft"}


@records(RUN)
def test_the_lowest_and_the_highest_of_the_tasks_are_those_of_the_tasks(folder):
    r = results.load(folder)
    kept, drop = r.frame("refusal_kept"), r.frame("accuracy_drop")
    assert all(measures.harmless(data) for data in kept["task"].dropna())
    for arm in measures.MAIN:
        for seed in r.seeds:
            of = [f[(f["method"] == arm) & (f["seed"] == seed)] for f in (kept, drop)]
            highest = of[1][of[1]["task"].notna()]["value"].max()
            for at in ("equal steps", "equal loss"):
                lowest = of[0][of[0]["task"].notna() & (of[0]["at"] == at)]["value"].min()
                assert r.scalars("refusal_kept", method=arm, tasks="lowest", at=at)[seed] == lowest
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
    kept = r.scalars("refusal_kept", method="sft", tasks="lowest", at="equal steps").values()
    learned = r.scalars("accuracy_drop", method="aligned", tasks="lowest").values()
    assert sum(kept) / len(kept) < 0.5 and sum(learned) / len(learned) > 0.3
