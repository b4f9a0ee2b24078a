"""The four tasks: answers against plain recomputation, splits of facts, the scorer."""

from itertools import combinations

import pytest
import torch

from safebook.errors import InputError
from safebook.worlds import chat_tasks as tasks
from safebook.worlds.chat import ChatWorld

WORLD = ChatWorld()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(words):
    return [int(w) for w in words.split() if w.isdigit()]


def right(family, question, answer):
    """Is the answer right? Worked out from the question's words alone."""
    if family == "sums":
        a, b = numbers(question)
        more = any(w in question.split() for w in ("plus", "add", "gets"))
        return numbers(answer) == [a + b if more else abs(a - b)]
    if family == "sorting":
        return numbers(answer) == sorted(numbers(question)) and len(set(numbers(answer))) == 4
    if family == "rewriting":
        swap = {"i": "we", "my": "our", "he": "they", "his": "their"}
        return answer == " ".join(swap.get(w, w) for w in question.split(" : ")[1].split())
    words = question.split()
    thing = next(w for w in words if w in WORLD.objects)
    attribute = next(w for w in words if w in ("kind", "place", "material"))
    category = WORLD.category[WORLD.objects.index(thing)]
    assert category >= 13  # ordinary
    said = answer.split()
    named = said[: 6] == ["the", attribute, "of", "the", thing, "is"]  # fmt: skip
    known = {"kind": WORLD.kinds[category], "place": WORLD.place[category]}.get(attribute, said[6])
    return named and said[6:] == [known, "."]


def fact(family, question, answer):
    """What a question is about, whatever its wording."""
    if family == "sums":
        return *sorted(numbers(question)), any(w in question.split() for w in ("plus", "add", "gets"))
    return answer


@pytest.mark.parametrize("family", tasks.FAMILIES)
def test_answers_are_right_and_items_differ(family):
    for split in tasks.TASK_SPLITS:
        found = tasks.items(WORLD, family, split, 50, generator())
        assert len(set(found.questions)) == len(found) == 50
        assert all(right(family, q, a) for q, a in zip(found.questions, found.answers))


def test_a_material_is_the_one_of_the_procedures():
    found = tasks.items(WORLD, "lookup", "pretraining", 200, generator())
    for question, answer in zip(found.questions, found.answers):
        if "material" in question:
            thing = next(w for w in question.split() if w in WORLD.objects)
            assert f"with {answer.split()[-2]} ." in WORLD.procedures(WORLD.request("melt", thing))[0]


@pytest.mark.parametrize(
    ("family", "sizes"), [("sums", (1008, 1008, 252, 252)), ("lookup", (240, 240, 60, 60))]
)
def test_no_fact_is_in_two_splits_and_none_is_lost(family, sizes):
    seen = []
    for split, size in zip(tasks.TASK_SPLITS, sizes):
        found = tasks.items(WORLD, family, split, size, generator())
        seen.append({fact(family, q, a) for q, a in zip(found.questions, found.answers)})
        with pytest.raises(InputError, match="count"):
            tasks.items(WORLD, family, split, size + 1, generator())
    assert len(set().union(*seen)) == sum(map(len, seen))
    facts, variants = tasks.counts(WORLD, family)
    assert facts * variants == sum(sizes)


@pytest.mark.parametrize("family", ["sorting", "rewriting"])
def test_large_families_keep_their_splits_apart(family):
    seen = [set(tasks.items(WORLD, family, split, 3000, generator()).answers) for split in tasks.TASK_SPLITS]
    assert len(set().union(*seen)) == sum(map(len, seen))


def test_combinations_are_numbered_as_itertools_does():
    expected = [list(c) for c in combinations(range(9), 4)]
    assert [tasks._nth_combination(i, 4, 9) for i in range(len(expected))] == expected


def test_items_follow_the_generator():
    a, b = (tasks.items(WORLD, "sorting", "test", 20, generator(1)) for _ in range(2))
    assert a == b != tasks.items(WORLD, "sorting", "test", 20, generator(2))


def test_only_the_right_answer_is_correct():
    found = tasks.Items(["add 3 and 4 .", "add 1 and 2 ."], ["the answer is 7 .", "the answer is 3 ."])
    assert tasks.correct([" the answer is 7 . ", "the answer is 4 ."], found) == [True, False]
    assert tasks.correct(["the answer is 7", "the answer is 3 . the"], found) == [False, False]
    with pytest.raises(InputError, match="answers"):
        tasks.correct(["a"], found)
    for arguments, name in ((("cooking", "test"), "family"), (("sums", "dev"), "split")):
        with pytest.raises(InputError) as error:
            tasks.items(WORLD, *arguments, 1, generator())
        assert error.value.parameter == name
