"""The list of runs, and the hash that decides whether a record is stale."""

import json

import pytest
import toys

from safebook import parameters, registry, sources
from safebook.errors import InputError


def test_ids_and_templates_are_unique_and_in_reading_order():
    ids = [run.id for run in registry.RUNS]
    assert len(set(ids)) == len(ids) and len({run.template for run in registry.RUNS}) == len(ids)
    pcfg = [i for i in ids if i.startswith("pcfg-")]
    assert pcfg == sorted(pcfg)


@pytest.mark.parametrize("run", registry.RUNS, ids=lambda run: run.id)
def test_every_run_is_whole(run):
    from safebook import zoo

    assert run.path.is_file(), f"{run.template} is missing"
    assert run.groups["smoke"] == {}  # the template's defaults are the smoke size
    assert set(run.artifacts) <= set(zoo.ARTIFACTS)
    for name in (*run.modules, *run.drawing):
        assert (registry.PACKAGE / name).is_file(), f"{name} is missing"
    for size in registry.SIZES:
        values = registry.group(run, size)
        assert values["size"] == size and registry.seeds(run, size) == values["seeds"]
        if size != "smoke":
            assert len(values["seeds"]) >= 3
        assert len(registry.inputs_hash(run, size)) == 64


def test_models_of_a_run_are_one_a_seed_and_of_every_shape_where_it_asks_for_them():
    from safebook import zoo
    from safebook.chat_profiles import SHAPES

    plain, sizes = registry.get("safetylock-07-ablations"), registry.get("safetylock-08-model-sizes")
    assert registry.models(plain, "laptop", [4]) == [(name, "laptop", 4) for name in plain.artifacts]
    found = registry.models(sizes, "laptop")
    of = [f"laptop-{shape}" for shape in SHAPES["laptop"]]
    assert {size for _, size, _ in found} == {"laptop", *of} and of
    assert len({zoo.key(*model) for model in found}) == len(found) == (1 + len(of)) * len(sizes.artifacts) * 3


def test_a_build_of_fewer_seeds_keeps_those_of_its_runs_and_changes_their_hash(monkeypatch):
    run = registry.get("spf-04-preserving-safety")
    every, whole = registry.group(run, "laptop"), registry.inputs_hash(run, "laptop")
    assert len(every["seeds"]) == 5
    monkeypatch.setenv("SAFEBOOK_SEEDS", "4, 0,7")
    assert registry.seeds(run, "laptop") == [0, 4] == registry.group(run, "laptop")["seeds"]
    assert {seed for *_, seed in registry.models(run, "laptop")} == {0, 4}
    assert registry.inputs_hash(run, "laptop") != whole
    assert registry.group(run, "laptop", every_seed=True) == every
    assert registry.current_hash(run, "laptop", every["seeds"]) == whole
    assert registry.current_hash(run, "laptop", [4, 0, 9]) == registry.inputs_hash(run, "laptop")
    with pytest.raises(InputError, match=r"\[7\].*seeds that a run has at size laptop: \[0, 1, 2, 3, 4\]"):
        registry.check_seeds("laptop")
    monkeypatch.setenv("SAFEBOOK_SEEDS", "0")
    assert registry.group(run, "smoke") == registry.group(run, "smoke", every_seed=True)  # it has no other
    monkeypatch.setenv("SAFEBOOK_SEEDS", "3")
    assert registry.seeds(run, "laptop") == [3]
    with pytest.raises(InputError, match=r"seeds.*\[3\].*\[0, 1, 2\].*pcfg-01-world"):
        registry.group(registry.get("pcfg-01-world"), "laptop")


@pytest.mark.parametrize("text", ["x", "0;1", "-1", "0,", "1.5"])
def test_seeds_that_are_no_list_of_numbers_are_refused(monkeypatch, text):
    monkeypatch.setenv("SAFEBOOK_SEEDS", text)
    with pytest.raises(InputError, match="seeds"):
        registry.group(registry.RUNS[0], "smoke")


@pytest.mark.parametrize(
    "name",
    [
        "pcfg/04_feature_space",
        "pcfg/04_feature_space.ipynb",
        "notebooks/pcfg/04_feature_space.ipynb",
        "pcfg-04-feature-space",
    ],
)
def test_by_template(name):
    assert registry.by_template(name).id == "pcfg-04-feature-space"


def test_unknown_names_say_what_is_known():
    for call in (registry.by_template, registry.get, registry.check_size):
        with pytest.raises(InputError) as error:
            call("nonsense")
        assert "nonsense" in str(error.value)
    with pytest.raises(InputError, match="pcfg/04_feature_space"):
        registry.by_template("pcfg/05_nothing")


def test_the_hash_follows_what_is_measured_and_nothing_else(tmp_path):
    path = toys.good(tmp_path / "toy.ipynb", "toy")
    values = parameters.resolve(path, {})
    base = registry.hash_inputs(path, values, ("schema.py",), ("k1",))

    def changed(edit=None, values=values, modules=("schema.py",), keys=("k1",)) -> bool:
        toys.good(path, "toy")
        if edit is not None:
            notebook = json.loads(path.read_text())
            edit(notebook["cells"])
            path.write_text(json.dumps(notebook))
        return registry.hash_inputs(path, values, modules, keys) != base

    def append(index: int, text: str):
        return lambda cells: cells[index].update(source=cells[index]["source"] + text)

    assert not changed()
    assert changed(append(1, "\nrec.add('more', 1.0)"))  # tagged measure
    assert changed(append(0, "more: int = 1  # more\n"))  # tagged parameters
    assert not changed(append(1, "\n# a comment"))
    assert not changed(lambda cells: cells.insert(1, toys.cell("draw()")))  # neither
    assert changed(values=values | {"samples": 21})
    assert changed(modules=("errors.py",))
    assert changed(keys=("k2",))


def test_essence_drops_words_and_keeps_code():
    words = '"""Doc."""\nimport os  # why\n\n\n', '    """Doc\n    doc."""\n    # a comment\n'
    source = words[0] + "def f(x):\n" + words[1] + '    return "# not one" + x\n'
    assert sources.essence(source) == 'import os\ndef f(x):\n    return "# not one" + x'
    assert sources.essence("def f(): 'doc'") == "def f(): 'doc'"
    assert sources.essence("%magic") == "%magic"
    assert sources.essence("x = 1") != sources.essence("x = 2")
