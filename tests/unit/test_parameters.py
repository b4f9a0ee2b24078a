"""A template's parameters: read, checked, parsed from the command line."""

import pytest
import toys

from safebook import parameters
from safebook.errors import InputError


@pytest.fixture
def template(tmp_path):
    def write(source: str = toys.PARAMETERS):
        return toys.template(tmp_path / "toy.ipynb", toys.cell(source, "parameters"))

    return write


def test_reads_name_type_default_meaning_and_limits(template):
    known = parameters.read(template())
    assert list(known) == ["size", "seeds", "samples", "rate", "kind"]
    assert (
        known["size"].choices == ("smoke", "laptop", "paper") and known["size"].help == "which profile to run"
    )
    seeds = known["seeds"]
    assert (seeds.type, seeds.default, seeds.low, seeds.high) == ("list[int]", [0], 0, 999)
    assert seeds.allowed == "list[int], each in [0 .. 999]" and known["rate"].limits == "0 .. 1"


def test_open_ranges_and_any(template):
    source = "a: int = 1  # from [0 ..]\nb: float = 1.0  # to [.. 2.5]\n"
    source += 'c: str = "x, y"  # any\nd: bool = True  # yes or no'
    known = parameters.read(template(source))
    assert known["a"].limits == "0 .." and known["b"].limits == ".. 2.5" and known["c"].limits == ""
    assert (
        known["a"].parse("7") == 7 and known["b"].parse("-1e9") == -1e9 and known["d"].parse("false") is False
    )
    for name, text in (("a", "-1"), ("b", "2.6"), ("b", "nan"), ("d", "1"), ("a", "1.0")):
        with pytest.raises(InputError, match=name):
            known[name].parse(text)


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("seeds=0,1,2", [0, 1, 2]),
        ("seeds=[3, 4]", [3, 4]),
        ("samples= 50 ", 50),
        ("rate=1", 1.0),
        ("rate=5e-1", 0.5),
        ("kind=direct", "direct"),
        ("kind='direct'", "direct"),
    ],
)
def test_parses(template, assignment, value):
    parsed = parameters.parse(template(), [assignment])
    assert list(parsed.values()) == [value] and type(next(iter(parsed.values()))) is type(value)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("sampels=3", ["sampels", "samples"]),
        ("samples", ["samples", "name=value"]),
        ("samples=many", ["samples", "'many'", "int in [10 .. 1000]"]),
        ("samples=50.0", ["samples", "int"]),
        ("samples=9", ["samples", "10 .. 1000"]),
        ("samples=1001", ["samples", "10 .. 1000"]),
        ("rate=nan", ["rate", "0 .. 1"]),
        ("rate=inf", ["rate", "0 .. 1"]),
        ("size=large", ["size", "smoke | laptop | paper"]),
        ("seeds=", ["seeds", "at least one"]),
        ("seeds=0,,1", ["seeds", "0,,1"]),
        ("seeds=0,1000", ["seeds", "0 .. 999"]),
        ("seeds=1,1", ["seeds", "none twice"]),
    ],
)
def test_refuses_and_says_what_is_allowed(template, assignment, words):
    with pytest.raises(InputError) as error:
        parameters.parse(template(), [assignment])
    assert all(word in str(error.value) for word in words)


def test_a_parameter_given_twice_is_refused(template):
    with pytest.raises(InputError, match="given once"):
        parameters.parse(template(), ["samples=20", "samples=30"])


@pytest.mark.parametrize(
    "bad", [{"samples": True}, {"seeds": 0}, {"seeds": [True]}, {"rate": "0.5"}, {"size": None}]
)
def test_values_of_another_type_are_refused(template, bad):
    with pytest.raises(InputError, match=next(iter(bad))):
        parameters.resolve(template(), bad)


def test_resolve_gives_all_and_turns_ints_into_floats(template):
    values = parameters.resolve(template(), {"rate": 1, "seeds": (4,)})
    assert values == {"size": "smoke", "seeds": [4], "samples": 20, "rate": 1.0, "kind": "null"}
    assert isinstance(values["rate"], float)


@pytest.mark.parametrize(
    "line",
    [
        "a = 1  # no type",
        "a: int = 1",
        "a: dict = {}  # no such type",
        "import os",
        "a: int = 3  # too small [5 .. 9]",
    ],
)
def test_a_malformed_cell_is_an_error(template, line):
    with pytest.raises(InputError):
        parameters.read(template(line))


def test_a_wrapped_line_keeps_its_comment(template):
    known = parameters.read(template("a: int = (\n    7  # a [5 .. 9]\n)\nb: int = 1  # b"))
    assert known["a"].limits == "5 .. 9" and known["b"].help == "b"


def test_a_template_has_exactly_one_parameters_cell(tmp_path):
    with pytest.raises(InputError, match="exactly 1"):
        parameters.read(toys.template(tmp_path / "none.ipynb", toys.cell("a: int = 1  # a")))
