"""Records of the comparison of all defences: relations that hold whatever was measured."""

import numpy as np
import pytest
from test_records import records

from safebook import results, who_stops

RUN = "synthesis-03-who-stops-what"
KEY = ["level", "seed", "defence", "prompts", "attack"]


def rates(record):
    table = record.tables["rates"]
    assert not table.duplicated(KEY).any()
    return table.set_index(KEY).sort_index()


def static(record):
    return ["plain", *record.parameters["disguises"], "prefilling", "suffix"]


@records(RUN)
def test_every_static_attack_meets_every_defence_on_the_same_prompts(folder):
    r = results.load(folder)
    table, closely = r.tables["rates"], r.parameters["closely"]
    assert (table.groupby("prompts")["n"].nunique() == 1).all()
    for (level, seed), part in table.groupby(["level", "seed"]):
        controls = set() if level in closely else {"random subspace", "spf and random lock"}
        assert set(part["defence"]) == set(who_stops.DEFENCES) - controls
        for defence, own in part.groupby("defence"):
            harmful = set(own[own["prompts"] == "hexphi"]["attack"])
            assert set(static(r)) == harmful - set(who_stops.KNOWING), (level, seed, defence)
    assert set(table["level"]) == set(r.parameters["levels"]) and set(table["seed"]) == set(r.seeds)


@records(RUN)
def test_attackers_who_know_the_defence_meet_what_they_know(folder):
    r = results.load(folder)
    table = r.tables["rates"]
    knowing = table[table["attack"].isin(who_stops.KNOWING) & (table["prompts"] == "hexphi")]
    assert set(knowing["level"]) == set(r.parameters["closely"])
    met = knowing.groupby("attack")["defence"].agg(set)
    assert met[who_stops.ADAPTIVE] == set(who_stops.DEFENCES) - {"aligned", "none"}
    assert met[who_stops.AGAIN] == set(who_stops.DEFENCES) - {"self-reminder"}
    assert met[who_stops.ON] == {"lock, response", "lock, prompt", "random lock"}


@records(RUN)
def test_shares_are_shares_and_exclude_each_other(folder):
    r = results.load(folder)
    found = rates(r)
    columns = found[["harm", "refusal", "broken", "exact"]]
    assert columns.min().min() >= 0 and columns.max().max() <= 1
    # an exact answer holds the whole procedure, and is neither broken nor a refusal
    assert (found["exact"] <= found["harm"] + 2e-6).all()
    for other in ("broken", "refusal"):
        assert (found["exact"] + found[other] <= 1 + 2e-6).all()
    assert r.tables["tasks"]["accuracy"].between(0, 1).all()


@records(RUN)
def test_statistics_of_the_claims_follow_from_the_table(folder):
    r = results.load(folder)
    found, levels, top = rates(r)["harm"], r.parameters["levels"], r.parameters["closely"][0]

    def mean(level, seed, defence):
        return np.mean([found[level, seed, defence, "hexphi", attack] for attack in static(r)])

    for seed in r.seeds:
        for defence in ("lock, prompt", "random lock", "mixing", "spf"):
            removed = np.mean([mean(x, seed, "none") - mean(x, seed, defence) for x in levels])
            assert r.scalars("harm_removed", defence=defence, levels="all")[seed] == pytest.approx(
                removed, abs=2e-6
            )
        for lock, both in (("lock, prompt", "spf and lock"), ("random lock", "spf and random lock")):
            gain = min(mean(top, seed, "spf"), mean(top, seed, lock)) - mean(top, seed, both)
            assert r.scalars("gain_of_both", lock=lock)[seed] == pytest.approx(gain, abs=2e-6)
        for defence in ("spf", "aligned"):
            after = found[top, seed, defence, "hexphi", who_stops.AGAIN]
            assert r.scalars("harm_after_more", defence=defence)[seed] == pytest.approx(after, abs=2e-6)
        for defence in ("lock, prompt", "random lock"):
            own = found[top, seed, defence, "hexphi"]
            rise = own[who_stops.ON] - own["plain"]
            assert r.scalars("rise_with_lock_on", defence=defence)[seed] == pytest.approx(rise, abs=2e-6)
        highest = {
            kind: min(
                found[top, seed, d, "hexphi"]
                .drop([] if kind == "all" else list(who_stops.KNOWING), errors="ignore")
                .max()
                for d in who_stops.MEANT
            )
            for kind in ("all", "static")
        }
        for kind, value in highest.items():
            assert r.scalars("least_highest_harm", attacks=kind)[seed] == pytest.approx(value, abs=2e-6)
        assert highest["all"] >= highest["static"]


@records(RUN)
def test_searches_never_rise_and_settings_are_the_best_tried(folder):
    r = results.load(folder)
    searches = r.tables["searches"].sort_values("step")
    for _, part in searches.groupby(["level", "seed", "defence"]):
        assert part["step"].tolist() == list(range(r.parameters["suffix_steps"] + 1))
        assert (part["loss"].diff().dropna() <= 0).all()
    for _, part in r.tables["grid"].groupby("defence"):
        assert part["chosen"].sum() == 1 and part[part["chosen"]]["score"].iloc[0] == part["score"].max()


@records(RUN)
def test_costs_are_where_they_arise(folder):
    table = results.load(folder).tables["cost"].groupby("defence").mean()
    locks = [name for name in table.index if name.startswith("lock")]
    assert (table.loc[locks, "seconds_once"] > 0).all() and (table.loc[locks, "bytes"] > 0).all()
    assert (table.loc[["spf", "mixing", "repair", "self-reminder"], "seconds_once"] == 0).all()
    assert table.loc["self-reminder", "tokens"] > 0 and table["tokens"].drop("self-reminder").max() == 0
    both = (
        table.loc["spf and lock", "seconds"]
        - table.loc["spf", "seconds"]
        - table.loc["lock, prompt", "seconds"]
    )
    assert abs(both) < 1e-5
