"""What the interventions and the variants recorded: relations that hold whatever the numbers are."""

import numpy as np
import pandas as pd
from test_records import records

from safebook import results

SHARES = ("alpha", "added", "paths", "directions", "patching")


def by(table, **where):
    for key, value in where.items():
        table = table[table[key] == value]
    return table


@records("pcfg-09-interventions")
def test_shares_are_shares_and_no_prompt_is_counted_twice(folder):
    r = results.load(folder)
    for name in SHARES:
        table = r.tables[name]
        for column in [c for c in table if c.endswith(" comply")]:
            assert table[column].between(0, 1).all()
            null = column.replace(" comply", " null")
            if null in table:
                assert (table[column] + table[null]).max() <= 1 + 1e-6
        assert set(table["seed"]) == set(r.seeds)


@records("pcfg-09-interventions")
def test_every_intervention_of_no_size_is_the_model_itself(folder):
    r = results.load(folder)
    alpha, added, paths, cut, patched = (r.tables[name] for name in SHARES)
    for seed in r.seeds:
        base = by(alpha, seed=seed, alpha=0.0)
        assert base["unsafe null"].nunique() == 1  # all start from one model
        for model in set(added["recipient"]):
            columns = ["safe comply", "safe null", "unsafe comply", "unsafe null"]
            trained = by(alpha, seed=seed, model=model, alpha=1.0)[columns].to_numpy()
            alone = by(added, seed=seed, recipient=model, direction="nothing")[columns].to_numpy()
            np.testing.assert_array_equal(alone, trained)
            everything = max(cut["count"])
            for what, count in (("removed", 0), ("kept", everything)):
                row = by(cut, seed=seed, model=model, what=what, choice="leading", count=count)[columns]
                np.testing.assert_array_equal(row.to_numpy(), trained)
            nothing = [
                by(cut, seed=seed, model=model, what=what, choice="leading", count=count)[columns].to_numpy()
                for what, count in (("removed", everything), ("kept", 0))
            ]
            np.testing.assert_array_equal(*nothing)
            unpatched = by(patched, seed=seed, model=model, fraction=0.0)[columns]
            assert (unpatched == base[columns].iloc[0]).all(axis=None)
            assert len(by(patched, seed=seed, model=model, fraction=1.0)[columns].drop_duplicates()) == 1
        for _, row in by(paths, seed=seed, position=0.0).iterrows():
            trained = by(alpha, seed=seed, model=row["start"], alpha=1.0).iloc[0]
            assert row["jailbreaks comply"] == trained["jailbreaks comply"]


@records("pcfg-09-interventions")
def test_claims_of_the_sweep_follow_from_its_table(folder):
    r = results.load(folder)
    table, safety = r.tables["alpha"], ("ssft-medium", "dpo-medium", "unlearning-medium")
    for seed in r.seeds:
        near = by(table[table["alpha"] <= 1.5], seed=seed).sort_values("alpha")
        rises, falls = [], []
        for model in safety:
            curve = by(near, model=model)
            step = np.diff(curve["unsafe null"])
            rises.append(step.sum() - np.clip(-step, 0, None).sum())
            steps = [np.diff(curve[c]) for c in ("jailbreaks comply", "safe comply")]
            falls.append([-s.sum() - np.clip(s, 0, None).sum() for s in steps])
        assert abs(r.scalars("steady_rise", models="protocols")[seed] - min(rises)) < 1e-9
        least = min(falls, key=lambda pair: pair[0] - pair[1])
        found = [r.scalars("steady_fall", prompts=p)[seed] for p in ("jailbreaks", "safe")]
        np.testing.assert_allclose(found, least, atol=1e-9)
        assert r.scalars("largest_rise", prompts="jailbreaks")[seed] >= 0
        jailbreaks = table[["JB-CO-Task comply", "JB-CO-Text comply", "JB-MisGen comply"]].mean(axis=1)
        pd.testing.assert_series_equal(jailbreaks, table["jailbreaks comply"], check_names=False, atol=2e-6)


@records("pcfg-11-variants")
def test_variants_tell_the_same_story_where_they_must(folder):
    r = results.load(folder)
    table, kinds = r.tables["variants"], r.tables["tau_by_prompts"]
    assert table["nearest_mean_accuracy"].between(0, 1).all()
    assert not table.duplicated(["seed", "model", "variant"]).any()
    # S of the window mean is the difference of the mean tau of its two kinds
    mean = kinds.pivot_table("mean", ["model", "seed"], "prompts")
    index = table[table["variant"] == "window mean"].set_index(["model", "seed"])["S"].sort_index()
    pd.testing.assert_series_equal(index, (mean["safe"] - mean["unsafe"]).sort_index(), check_names=False)
    # distances between unit vectors of the kernel's space are bounded
    assert (table[table["variant"] == "kernel"]["S"].abs() <= 2 * np.sqrt(2)).all()
    assert (table[table["variant"] == "cosine"]["S"].abs() <= 4).all()


@records("pcfg-11-variants")
def test_shuffled_labels_are_near_chance_and_no_agreement_is_below_it(folder):
    r = results.load(folder)
    frame = r.frame("k_means_agreement")
    assert frame["value"].between(0.5, 1).all()
    shuffled = frame[frame["labels"] == "shuffled"]
    assert (shuffled["value"] < 0.5 + 4.5 * 0.5 / np.sqrt(shuffled["n"])).all()
    group = r.scalars("clusters_found", models="protocols", distance="Euclidean")
    for seed in r.seeds:
        part = frame.query("labels == 'true' and distance == 'Euclidean' and seed == @seed").set_index(
            "model"
        )
        mean = part["value"][["ssft-medium", "dpo-medium", "unlearning-medium"]].mean()
        assert abs(group[seed] - mean) < 1e-9
