"""Records of the shared geometry: relations that hold whatever was measured."""

import pytest
from test_records import records

from safebook import results
from safebook.shared_geometry import KINDS, SAFETY, SPACES, VIEWS

RUN = "synthesis-01-shared-geometry"
PAIR = ["view", "first", "second"]


def group(table):
    return (table["first_skill"] == SAFETY).astype(int) + (table["second_skill"] == SAFETY).astype(int)


@records(RUN)
def test_overlaps_are_shares_and_chance_is_the_larger_rank_over_the_width(folder):
    r = results.load(folder)
    for name in ("pairs", "layers"):
        table = r.tables[name]
        assert table["overlap"].between(0, 1.000001).all()
        width, rank = r.frame("width")["value"].max(), r.parameters["rank"]
        assert (table["chance"] <= rank / width + 1e-6).all() and (table["chance"] >= 1 / width - 1e-6).all()
    layers = r.tables["layers"]
    assert layers["angle"].between(0, 90.0001).all() and (layers["random_low"] <= layers["random"]).all()


@records(RUN)
def test_the_smallest_angle_is_no_larger_than_the_mean_overlap_says(folder):
    """The mean squared cosine is at most the largest one."""
    import numpy as np

    layers = results.load(folder).tables["layers"]
    assert (np.cos(np.radians(layers["angle"])) ** 2 >= layers["overlap"] - 1e-4).all()


@records(RUN)
def test_only_objects_of_one_space_are_compared_and_every_pair_has_its_controls(folder):
    r = results.load(folder)
    table = r.tables["pairs"]
    assert set(table["view"]) == set(VIEWS)
    assert not table[table["view"] == "read"][["first", "second"]].isin(list(KINDS[3:])).any().any()
    for seed, part in table.groupby("seed"):
        safe = part[group(part) == 2]
        assert not safe.duplicated(PAIR).any()
        swapped = part[group(part) == 1].groupby(PAIR).size()
        assert set(swapped.index) == set(map(tuple, safe[PAIR].to_numpy())), seed
        assert (part["first"] != part["second"]).all()


@records(RUN)
def test_claims_follow_from_the_tables(folder):
    r = results.load(folder)
    table = r.tables["pairs"]
    for seed in r.seeds:
        part = table[table["seed"] == seed]
        for number, of in ((2, "safety"), (1, "swapped"), (0, "other skills")):
            best = part[group(part) == number].groupby(PAIR)["above"].max()
            for pair, value in best.items():
                found = r.scalars("above_chance", of=of, **dict(zip(PAIR, pair)))[seed]
                assert found == pytest.approx(value, abs=2e-6)
        where = {"view": "written", "first": "gradient", "second": "update"}
        mean = r.scalars("above_chance", of="swapped, mean", **where)[seed]
        assert mean <= r.scalars("above_chance", of="swapped", **where)[seed] + 1e-9


@records(RUN)
def test_layers_and_ranks_add_up_to_the_means_of_the_claims(folder):
    """Of safety pairs the mean over layers is the claim's number; of rivals the highest of every layer is no lower on average
    than the one that is highest on average."""
    r = results.load(folder)
    depth, pairs, layers = (r.tables[name] for name in ("depth", "pairs", "layers"))
    view = depth["space"].map({name: space.view for name, space in SPACES.items()})
    depth = depth[depth["k"] == r.parameters["rank"]].assign(view=view)
    assert (depth["rivals"] >= 1).all() and depth["angle"].between(0, 90.0001).all()
    keys = ["seed", *PAIR]
    mean = depth.groupby(keys)[["above", "rival"]].mean()
    own = pairs[group(pairs) == 2].set_index(keys)["above"]
    rival = pairs[group(pairs) == 1].groupby(keys)["above"].max()
    assert len(mean) == len(own) == len(rival)
    assert (mean["above"] - own).abs().max() < 1e-5
    assert (mean["rival"] - rival).min() > -1e-5
    place = ["seed", "space", "layer", "first", "second"]
    both = depth.merge(layers, on=place, suffixes=("", "_at_rank"))
    assert len(both) == len(layers) and (both["angle"] - both["angle_at_rank"]).abs().max() < 1e-4
    assert set(r.tables["depth"]["k"]) == set(r.parameters["ranks"])


@records(RUN)
def test_gradients_are_compared_at_equal_tokens(folder):
    frame = results.load(folder).frame("targets")
    assert frame.groupby("seed")["value"].nunique().eq(1).all()


@records(RUN)
def test_random_subspaces_lie_around_chance(folder):
    """The upper end of random pairs is above nought and far from the whole."""
    frame = results.load(folder).frame("above_chance")
    random = frame[frame["of"] == "random"]["value"]
    assert (random > 0).all() and random.max() < 0.4
