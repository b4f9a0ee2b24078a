"""The reported numbers of papers 2 and 3: tidy, and consistent with each other but for the slips that their READMEs list.

What is recomputed here would fail on a typing error in a table.
"""

import math

import numpy as np
import pandas as pd
import pytest

from safebook import paths

PARTS = {name: paths.DATA / "paper" / name for name in ("safetylock", "spf")}
TABLES = [path for folder in PARTS.values() for path in sorted(folder.glob("*.csv"))]
BOUNDS = {"is", "about", "above", "below", "at least", "at most"}
WORKS = {"paper", "sister", "replication", "code below"}
NOT_IDENTITY = ["value", "n", "source", "trust"]

#: (table, value as printed, n): shares that are no whole number of n prompts. Each stands in the README, too.
IMPOSSIBLE = {
    ("safety", "70.01", 330),
    ("safety", "3.33", 520),
    ("utility", "98.1", 500),
    ("attack_reference", "93.9", 520),
}


def read(part: str, table: str) -> pd.DataFrame:
    """A table with numbers as text in `printed`, so that their decimals are known."""
    path = PARTS[part] / f"{table}.csv"
    return pd.read_csv(path).assign(printed=pd.read_csv(path, dtype=str)["value"])


def pick(table: pd.DataFrame, **where) -> float:
    """The one value of these columns."""
    found = table.query(" and ".join(f"{name} == {value!r}" for name, value in where.items()))["value"]
    assert len(found) == 1, where
    return float(found.iloc[0])


def possible(printed: str, n: int, whole: float) -> bool:
    """Is `printed` k / n, in units of which `whole` is all, rounded as printed?"""
    half = 0.5 * 10.0 ** -len(printed.partition(".")[2])
    nearest = round(float(printed) / whole * n) / n * whole
    return abs(nearest - float(printed)) <= half + 1e-9


@pytest.mark.parametrize("path", TABLES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_tables_are_tidy(path):
    table = pd.read_csv(path)
    assert np.isfinite(pd.to_numeric(table["value"])).all()
    assert not table[["value", "unit", "source", "trust"]].isna().any().any()
    assert list(table.columns[-2:]) == ["source", "trust"]
    identity = [name for name in table.columns if name not in NOT_IDENTITY]
    if path.stem == "locked_heads":  # one head a row: the value is what is listed
        identity.append("value")
    assert not table.duplicated(identity).any(), table[table.duplicated(identity, keep=False)]
    assert table["trust"].str.match("exact|high|medium|low").all()
    assert set(table.get("bound", pd.Series(["is"]))) <= BOUNDS
    readme = (path.parent / "README.md").read_text()
    assert f"`{path.name}`" in readme
    if path.parent.name == "spf" and "work" in table and path.stem != "neighbours":
        assert set(table["work"]) <= WORKS and all(f"`{work}`" in readme for work in set(table["work"]))


def test_shares_are_whole_numbers_of_prompts_but_for_the_known_ones():
    found, checked = set(), 0
    for path in TABLES:
        table = read(path.parent.name, path.stem)
        if "n" not in table:
            continue
        for row in table[table["n"].notna() & (table["unit"] == "%")].itertuples():
            checked += 1
            if not possible(row.printed, int(row.n), 100):
                found.add((path.stem, row.printed, int(row.n)))
    assert checked > 80 and found == IMPOSSIBLE
    readme = (PARTS["safetylock"] / "README.md").read_text()
    assert all(f"{printed} % of {n}" in readme for _, printed, n in IMPOSSIBLE)


def test_sister_values_are_counts_of_hex_phi_and_two_of_the_paper_are_not():
    table = read("spf", "attack_success")
    whole = table["unit"].map({"%": 100, "fraction": 1})
    bad = [not possible(p, 330, w) for p, w in zip(table["printed"], whole)]
    assert set(table.loc[bad, "printed"]) == {"0.019", "0.240"}
    readme = (PARTS["spf"] / "README.md").read_text()
    assert "0.019 and 0.240" in readme


def test_category_means_give_the_printed_scores():
    safety, categories = read("safetylock", "safety"), read("safetylock", "categories")
    groups = categories.groupby(["model", "defence"])["value"]
    assert len(groups) == 4 and (groups.count() == 11).all()
    for (model, defence), mean in groups.mean().items():
        printed = pick(safety, model=model, defence=defence, measure="harmfulness score")
        assert mean == pytest.approx(printed, abs=0.03)


@pytest.mark.parametrize("table, count", [("safety", 4), ("attack_reference", 12)])
def test_scores_lie_where_the_rate_of_fives_allows(table, count):
    """A mean of scores 1 to 5 with a share p of fives lies between 1 + 4 p and 4 + p."""
    rows = read("safetylock", table).astype(object).fillna("")
    same = [name for name in rows.columns if name not in (*NOT_IDENTITY, "printed", "measure", "unit")]
    wide = rows.pivot(index=same, columns="measure", values="value")
    wide = wide[["harmfulness score", "harmful rate"]].dropna().astype(float)
    rate, score = wide["harmful rate"] / 100, wide["harmfulness score"]
    assert len(wide) == count and (score >= 1 + 4 * rate - 0.01).all() and (score <= 4 + rate + 0.01).all()


def test_only_the_drop_of_gsm8k_is_significant():
    table = read("safetylock", "utility").query("fine_tuned_on == 'alpaca' and n == n")
    z = {}
    for measure, rows in table.groupby("measure"):
        before, after = (rows.set_index("defence").loc[d, "value"] / 100 for d in ("none", "safetylock"))
        mean, n = (before + after) / 2, rows["n"].iloc[0]
        z[measure] = (before - after) / math.sqrt(2 * mean * (1 - mean) / n)
    assert z.pop("GSM8K accuracy") == pytest.approx(3.05, abs=0.01)
    assert len(z) == 3 and max(map(abs, z.values())) < 0.7


def test_self_examination_equals_no_defence_and_the_lock_is_best_but_once():
    table = read("safetylock", "prompt_attacks").pivot(index="attack", columns="defence", values="value")
    assert table.shape == (4, 8) and (table["self-examination"] == table["none"]).all()
    others = table.drop(columns="safetylock").min(axis=1)
    assert list(table.index[others < table["safetylock"]]) == ["GCG"]
    assert table.loc["GCG"].idxmin() == "perplexity filter"


def test_released_locks_agree_with_their_own_arithmetic():
    wide = read("safetylock", "locks").pivot(index="lock", columns="quantity", values="value")
    assert len(wide) == 9 and not wide.isna().any().any()
    assert (wide["median shift at alpha 6"] - 6 * wide["sigma, median"]).abs().max() < 0.0081
    low, middle, high = (wide[f"sigma, {name}"] for name in ("lowest", "median", "highest"))
    half = wide["locked heads"] / 2  # at least half of the sigmas lie on each side of the median
    length = wide["displacement at alpha 6"]
    assert (length > 6 * np.sqrt(half * (low**2 + middle**2))).all()
    assert (length < 6 * np.sqrt(half * (middle**2 + high**2))).all() and (length > 6 * high).all()
    depth = ["lowest", "first quartile", "median", "third quartile", "highest"]
    assert (wide[[f"depth, {name}" for name in depth]].diff(axis=1).iloc[:, 1:] > 0).all().all()
    assert wide["depth, lowest"].min() == 0.18
    share = 100 * wide["locked heads"] / (wide["layers"] * wide["heads a layer"])
    assert share["llama-3-8b-24"] == pytest.approx(2.34, abs=0.005)
    assert share["llama-3-70b-48"] == pytest.approx(0.94, abs=0.005)


def test_locked_heads_have_the_depths_of_their_lock():
    heads = read("safetylock", "locked_heads")
    locks = read("safetylock", "locks").query("lock == 'llama-3-8b-24'").set_index("quantity")["value"]
    assert len(heads) == locks["locked heads"] and heads["layer"].nunique() == 12
    assert heads["layer"].between(0, 31).all() and heads["value"].between(0, 31).all()
    depth = (heads["layer"] + 0.5) / locks["layers"]
    ours = depth.quantile([0, 0.25, 0.5, 0.75, 1])
    names = ("lowest", "first quartile", "median", "third quartile", "highest")
    assert list(ours) == pytest.approx([locks[f"depth, {name}"] for name in names], abs=0.006)


def test_shared_heads_by_chance():
    table = read("safetylock", "lock_agreement")
    chance = pick(table, first="llama-3-8b-24", quantity="shared heads expected by chance")
    assert chance == pytest.approx(24 * 24 / 1024, abs=0.005)
    wide = table.pivot(index="first", columns="quantity", values="value").dropna(subset="cosine, mean")
    assert (wide["cosine, lowest"] < wide["cosine, mean"]).all() and (
        wide["cosine, mean"] < wide["cosine, highest"]
    ).all()
    assert (wide["cosine, highest"] < 0.99).all()  # the vendor's re-alignment moves directions further


def test_the_reference_attack_agrees_with_its_plot():
    table = read("safetylock", "attack_reference").query("data == 'alpaca' and batch == 128")
    plot = pick(table, learning_rate=2e-5, measure="harmful rate, read off a plot")
    assert plot == pytest.approx(pick(table, learning_rate=2e-5, measure="harmful rate"), abs=1)


def test_the_ends_of_released_pairs_add_up():
    table = read("safetylock", "released_pairs")
    assert table[table["quantity"].str.contains("punctuation")]["value"].sum() == 100
    assert pick(table, quantity="harmful requests") < 50


def test_steps_follow_from_the_rows():
    for _, rows in read("spf", "data_sets").groupby("name"):
        values = rows.set_index("quantity")["value"]
        assert values["steps an epoch"] == math.ceil(values["training rows"] / 64)
        assert values["steps in five epochs"] == 5 * values["steps an epoch"]


def test_the_replications_numbers_agree_with_each_other():
    settings = read("spf", "settings").query("work == 'replication'").set_index("quantity")["value"]
    assert settings["steps"] == settings["epochs"] * settings["training rows"] / settings["batch"]
    geometry = read("spf", "geometry")
    share = pick(geometry, quantity="share of steps in conflict")
    steps = pick(geometry, quantity="steps in conflict")
    assert share == pytest.approx(100 * steps / settings["steps"], abs=0.05)
    cost = read("spf", "cost").query("work == 'replication'").set_index("quantity")["value"]
    assert cost["anchor tokens in the run"] == settings["steps"] * cost["response tokens of the anchor"]
    end = read("spf", "replication").query("measure == 'harmful help' and step in (0, 625)")
    order = end.sort_values("value")[["method", "beta1", "learning_rate"]].fillna(0).values.tolist()
    assert order == [
        ["none", 0, 0],
        ["loss mixing", 0, 1e-5],
        ["spf", 0.5, 5e-6],
        ["spf", 0.5, 1e-5],
        ["spf", 0.9, 1e-5],
        ["sft", 0, 1e-5],
    ]


def test_the_cost_ratio_is_that_of_the_two_times():
    table = read("spf", "cost").query("work == 'paper'")
    times = table.query("quantity == 'training time'").set_index("method")["value"]
    ratio = pick(table, quantity="training time over that of SFT")
    assert times["spf"] / times["sft"] == pytest.approx(ratio, abs=0.005)


def test_spf_after_harm_is_within_half_a_point_of_the_untouched_models():
    table = read("spf", "attack_success").query("attack == 'none'")
    for model, gap in (("mistral-7b", 0.4), ("qwen2.5-7b", 0.3)):
        spf = pick(table, work="paper", model=model, method="spf")
        untouched = pick(table, work="sister", model=model, method="none")
        assert 100 * spf - untouched == pytest.approx(gap, abs=0.001)


def test_the_sister_table_is_whole():
    wide = read("spf", "sister_baselines").pivot(index="method", columns="measure", values="value")
    assert len(wide) == 9 and wide.isna().sum().sum() == 2  # no additional time for the first two
    assert wide["additional time"].isna().pipe(lambda none: set(none.index[none])) == {"none", "sft"}
    safe, harmful = wide.loc["one-shot repair"], wide.loc["sft"]
    assert safe["attack success rate"] == 0 < harmful["attack success rate"] and safe["SQL"] == harmful["SQL"]
