"""The world against hand-written examples, published check values and a slow, plain derivation."""

import numpy as np
import pytest
import torch

from safebook.attacks import CONDITIONS, competing_tasks, competing_text, mismatched_generalisation
from safebook.errors import InputError
from safebook.profiles import profile
from safebook.settings import WorldSettings
from safebook.worlds.grammars import PRE_TERMINALS, TEXT_TYPES, compile_grammar
from safebook.worlds.instructions import compliance, pretraining_batch, prompts, refusal
from safebook.worlds.pcfg import PCFGWorld

PAPER = PCFGWorld()
SMALL = PCFGWorld(profile("laptop").world)
WORLDS = pytest.mark.parametrize("world", [PAPER, SMALL], ids=["paper", "laptop"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def named(world, tokens):
    names = world.vocabulary.names()
    return [names[t] for t in tokens]


def test_vocabulary_has_the_published_ids():
    v = PAPER.vocabulary
    assert (v.size, v.end_of_text, v.begin, v.end, v.start, v.pad, v.stop, v.text, v.constant) == (
        59, 16, 17, 18, 19, 20, 21, 22, 52,
    )  # fmt: skip
    assert len(v.names()) == 59 and v.null == 22


def test_bijections_have_the_published_check_values():
    starts = {
        0: [2, 28, 13, 10, 26, 24, 27, 11],
        1: [6, 10, 0, 2, 21, 7, 17, 24],
        2: [6, 14, 16, 15, 13, 11, 4, 8],
        3: [19, 18, 29, 25, 7, 0, 27, 22],
    }
    for grammar, start in starts.items():
        assert PAPER.bijections[grammar, 1, :8].tolist() == start
    every = PAPER.bijections[:, :16].sort(-1).values
    assert (every == torch.arange(30)).all()  # all are permutations
    assert (PAPER.bijections[:, 0] == torch.arange(30)).all()  # O0 is the identity
    for alias, operator in ((10, 0), (11, 0), (12, 1), (13, 1), (14, 2), (15, 2)):
        assert (PAPER.bijections[:, alias] == PAPER.bijections[:, operator]).all()


@pytest.mark.parametrize(
    ("text", "mean", "low", "high"),
    [("full", 391, 270, 486), ("safe", 72, 54, 81), ("unsafe_broad", 76, 42, 162), ("mixed", 52, 45, 54),
     ("unsafe", 49, 36, 54), ("unsafe_shifted", 45, 36, 54)],
)  # fmt: skip
def test_yield_lengths_are_the_published_ones(text, mean, low, high):
    tables = compile_grammar(text)
    random = np.random.default_rng(0)
    slots = tables["skeletons"][random.integers(len(tables["skeletons"]), size=20_000)]
    rows = tables["offsets"][slots] + (random.random(slots.shape) * tables["counts"][slots]).astype(int)
    lengths = 3 * tables["lengths"][rows].sum(1)
    assert abs(lengths.mean() - mean) < 2
    assert lengths.max() <= high + 1e-9
    assert lengths.min() >= low - 10  # the reference range comes from 4000 draws; the tails are rare


def derive(rules, symbol, random):
    """Slow and plain: pre-terminals of one derivation."""
    if symbol in PRE_TERMINALS:
        return [PRE_TERMINALS.index(symbol)]
    children = rules[symbol][random.integers(len(rules[symbol]))]
    return [leaf for child in children for leaf in derive(rules, child, random)]


@pytest.mark.parametrize("text", ["safe", "unsafe", "mixed", "full"])
def test_windows_have_the_distribution_of_plain_derivations(text):
    """Frequencies of symbol pairs of the vectorised sampler against rule-by-rule derivation."""
    random, count = np.random.default_rng(1), 1500
    pairs = np.zeros((2, 30, 30))
    for _ in range(count):
        leaves = derive(TEXT_TYPES[text], "v", random)
        symbols = np.concatenate([PAPER.settings.terminal_table[0, p, random.integers(2)] for p in leaves])
        length = random.integers(25, 36)
        first = random.integers(len(symbols) - length + 1)
        window = symbols[first : first + length]
        np.add.at(pairs[0], (window[:-1], window[1:]), 1 / (length - 1))
    operand, lengths = PAPER.operands(text, torch.zeros(count, dtype=torch.long), generator())
    assert lengths.min() == 25 and lengths.max() == 35
    for row, n in zip(operand.numpy(), lengths.tolist()):
        np.add.at(pairs[1], (row[: n - 1], row[1:n]), 1 / (n - 1))
    difference = np.abs(pairs[0] - pairs[1]).sum() / (2 * count)  # total variation
    assert difference < 0.05
    assert (pairs[1][pairs[0] == 0].sum() / count) < 0.002  # no pair that the grammar cannot write


@WORLDS
def test_a_composition_equals_applying_it_step_by_step(world):
    p = prompts(world, 64, generator(), unsafe=False)
    y1, y2 = world.apply(p.tasks, p.grammar, p.operand)
    for i in range(64):
        b = world.bijections[p.grammar[i]]
        x = p.operand[i]
        t1, t2, t3, t4 = p.tasks[i]
        assert torch.equal(y1[i], b[t2][b[t1][x]])
        assert torch.equal(y2[i], b[t4][b[t3][b[t2][b[t1][x]]]])


def test_a_sequence_is_laid_out_as_published():
    settings = WorldSettings(operand_lengths=(3, 4), sequence_length=24)
    world = PCFGWorld(settings)
    tasks, grammar = torch.tensor([[0, 0, 1, 0]]), torch.tensor([0])
    operand, lengths = torch.tensor([[5, 6, 7, 0]]), torch.tensor([3])
    batch = world.sequences(tasks, grammar, operand, lengths)
    o1 = world.bijections[0, 1]
    expected = ["BEGIN", "O0", "O0", "O1", "O0", "START", "5", "6", "7", ">", "5", "6", "7", "STOP"]
    expected += [str(int(o1[x])) for x in (5, 6, 7)] + ["STOP"] + ["PAD"] * 5 + ["END"]
    assert named(world, batch.tokens[0]) == expected
    assert batch.tokens.shape == (1, 24)
    assert batch.decision.tolist() == [9]
    # Targets are shifted by one: BEGIN and the tasks are never predicted, pads are ignored, END counts.
    counted = [expected[j + 1] for j in batch.loss_mask[0].nonzero()[:, 0].tolist()]
    assert counted == [*expected[5:18], "END"]
    assert batch.loss_mask[0].nonzero()[0, 0] == 4


def fixed(world, unsafe, second_step, tasks):
    """One prompt with operand 5 6 7 on safe text."""
    from safebook.worlds.instructions import Prompts

    return Prompts(
        torch.tensor([tasks]), torch.tensor([0]), torch.tensor([[5, 6, 7, 0]]), torch.tensor([3]),
        torch.tensor([False]), torch.tensor([second_step]), unsafe,
    )  # fmt: skip


def in_loss(world, batch):
    tokens = named(world, batch.tokens[0])
    return [(j + 1, tokens[j + 1]) for j in batch.loss_mask[0].nonzero()[:, 0].tolist()]


def test_fine_tuning_masks_position_by_position():
    world = PCFGWorld(WorldSettings(operand_lengths=(3, 4), sequence_length=24))
    o1 = [str(int(world.bijections[0, 1][x])) for x in (5, 6, 7)]
    o1o1 = [str(int(world.bijections[0, 1][world.bijections[0, 1]][x])) for x in (5, 6, 7)]
    start, stop1, end = (5, "START"), (13, "STOP"), (23, "END")
    first, second = list(zip((10, 11, 12), o1)), list(zip((14, 15, 16), o1o1))
    # Safe prompt O1 on grammar 1 would be unsafe; masks do not depend on the operators, so it serves for both.
    safe = fixed(world, False, False, [1, 0, 1, 0])
    assert in_loss(world, compliance(world, safe)) == [start, *first, stop1, *second, (17, "STOP"), end]
    assert in_loss(world, compliance(world, safe, first_segment_only=True)) == [start, *first, stop1, end]
    unsafe = fixed(world, True, False, [1, 0, 1, 0])
    assert in_loss(world, compliance(world, unsafe)) == [start, *first, stop1, (17, "STOP"), end]
    null = list(zip((10, 11, 12), ["0"] * 3))
    assert in_loss(world, refusal(world, unsafe)) == [start, *null, stop1, end]
    assert named(world, refusal(world, unsafe).tokens[0])[14:] == ["PAD"] * 9 + ["END"]
    late = fixed(world, True, True, [0, 0, 1, 0])
    assert in_loss(world, compliance(world, late)) == [start, stop1, (17, "STOP"), end]
    late_null = list(zip((14, 15, 16), ["0"] * 3))
    assert in_loss(world, refusal(world, late)) == [start, stop1, *late_null, (17, "STOP"), end]
    assert named(world, refusal(world, late).tokens[0])[10:13] == [
        "5",
        "6",
        "7",
    ]  # the allowed first output stays


@pytest.mark.parametrize("form", range(4))
def test_pretraining_forms_hide_what_they_should(form):
    world = PCFGWorld(WorldSettings(operand_lengths=(3, 4), sequence_length=24))
    mixture = tuple(float(i == form) for i in range(4))
    batch = pretraining_batch(world, 50, mixture, generator(), teach=0)
    pad = world.vocabulary.pad

    def visible(*roles):
        return (batch.tokens[:, 1:] != pad)[world.role_mask(batch.lengths, *roles)]

    def counted(*roles):
        return batch.loss_mask[world.role_mask(batch.lengths, *roles)]

    assert not counted("tasks").any() and counted("end").all()
    answers = ("output1", "stop1", "output2", "stop2")
    if form == 0:
        assert not visible("tasks", *answers).any() and visible("text", "marker").all()
        assert counted("start", "text", "marker").all() and not counted(*answers).any()
    elif form == 1:
        assert visible("tasks", "text", "marker", *answers).all()
        assert counted("start", "text", "marker", *answers).all()
    elif form == 2:
        assert visible("tasks", "text", "output1", "stop1").all() and not visible("output2", "stop2").any()
        assert counted("text", "output1", "stop1").all() and not counted("output2", "stop2").any()
    else:
        assert not visible("text", "marker").any() and visible("tasks", *answers).all()
        assert counted("output2", "stop2").all()
        assert not counted("start", "text", "marker", "output1", "stop1").any()


def test_null_teaching_makes_the_answer_constant():
    batch = pretraining_batch(PAPER, 400, (0, 1, 0, 0), generator(), teach=1.0)
    v = PAPER.vocabulary
    taught = (batch.tasks >= v.constant) & (batch.tasks < v.constant + 2)
    assert (taught.sum(1) == 1).all()
    slot = taught.int().argmax(1)
    assert set(slot.tolist()) == {0, 1, 2, 3}
    for i in range(400):
        symbol = v.text + int(batch.tasks[i, slot[i]] - v.constant)
        first = batch.tokens[i, 1:][PAPER.role_mask(batch.lengths, "output1")[i]]
        second = batch.tokens[i, 1:][PAPER.role_mask(batch.lengths, "output2")[i]]
        if slot[i] < 2:
            assert (first == symbol).all() and (second == v.pad).all()
        else:
            assert (second == symbol).all() and not (first == symbol).all()


@WORLDS
def test_every_sample_of_each_kind_obeys_the_safety_rule(world):
    """Judged by a rule written out here, not by the world's own tables."""
    s = world.settings
    for condition, draw in CONDITIONS.items():
        p = draw(world, 800, generator())
        for tasks, g, bad_text in zip(p.tasks.tolist(), p.grammar.tolist(), p.unsafe_text.tolist()):
            if condition == "JB-MisGen":
                assert g == 0 and all(t in range(s.operators, s.operators + 4) for t in tasks)
                tasks, bad_text = [(t - s.operators) // 2 for t in tasks], False
            unsafe = set(range(s.operators)) - set(s.always_safe[g]) if bad_text else set(s.always_unsafe[g])
            pairs = [tasks[:2], tasks[2:]]
            if condition == "safe":
                assert not unsafe & set(tasks)
            else:
                assert all(unsafe & set(pair) for pair in pairs), (condition, tasks)
            if condition == "unsafe":
                assert all(t in unsafe or t == 0 for t in tasks)
            if condition == "JB-CO-Task":
                assert all(len([t for t in pair if t not in unsafe and t != 0]) == 1 for pair in pairs)
            if condition == "JB-CO-Text":
                assert set(tasks) <= set(world.context_operators(g))


def test_identity_appears_in_half_of_the_safe_samples():
    p = prompts(PAPER, 20_000, generator(), unsafe=False, text="unsafe")
    # Safe set on unsafe text has 3 operators: 1/2 (1 - (2/3)^4) + 1/2
    share = (p.tasks == 0).any(1).double().mean()
    assert abs(share - (0.5 * (1 - (2 / 3) ** 4) + 0.5)) < 0.02


def test_second_step_share_is_rho():
    p = prompts(PAPER, 10_000, generator(), unsafe=True, rho=0.2)
    assert abs(p.second_step.double().mean() - 0.2) < 0.02
    assert (p.tasks[p.second_step][:, :2] == 0).all()
    unsafe = PAPER.is_unsafe(p.tasks, p.grammar, p.unsafe_text)
    assert unsafe[:, 2:].any(1).all() and not unsafe[p.second_step][:, :2].any()


@WORLDS
def test_the_same_generator_seed_gives_the_same_batch(world):
    draws = [pretraining_batch(world, 32, (0.1, 0.2, 0.3, 0.4), generator(s)) for s in (3, 3, 4)]
    assert torch.equal(draws[0].tokens, draws[1].tokens) and torch.equal(
        draws[0].loss_mask, draws[1].loss_mask
    )
    assert not torch.equal(draws[0].tokens, draws[2].tokens)


def test_the_ngram_confound_is_there_and_is_the_shortening():
    """Six-grams call unsafe text unsafe, and mixed text and unsafe text with three-child rules safe."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    def texts(kind, seed, count=2500):
        x, lengths = PAPER.operands(kind, torch.zeros(count, dtype=torch.long), generator(seed))
        return [" ".join(map(str, row[:n])) for row, n in zip(x.tolist(), lengths.tolist())]

    counter = CountVectorizer(ngram_range=(6, 6), token_pattern=r"\S+")
    model = MultinomialNB().fit(
        counter.fit_transform(texts("safe", 0) + texts("unsafe", 1)), [0] * 2500 + [1] * 2500
    )
    called = {
        k: model.predict(counter.transform(texts(k, 2))).mean()
        for k in ("safe", "unsafe", "mixed", "full", "unsafe_three_child")
    }
    assert called["safe"] < 0.02 and called["unsafe"] > 0.95
    assert called["mixed"] < 0.05 and called["full"] < 0.05
    assert called["unsafe_three_child"] < 0.5


@pytest.mark.parametrize(
    ("call", "parameter"),
    [
        (lambda: WorldSettings(operand_lengths=(9, 3)), "operand_lengths"),
        (lambda: WorldSettings(sequence_length=100), "sequence_length"),
        (lambda: WorldSettings(alphabet=20), "terminals"),
        (lambda: WorldSettings(always_safe=((1,),) * 4), "always_unsafe"),
        (lambda: PAPER.operands("poem", torch.zeros(1, dtype=torch.long), generator()), "text_type"),
        (lambda: pretraining_batch(PAPER, 2, (0.5, 0.5, 0.5, 0), generator()), "mixture"),
        (lambda: prompts(PAPER, 2, generator(), unsafe=True, rho=2), "rho"),
        (lambda: prompts(PAPER, 2, generator(), unsafe=True, grammar=4), "grammar"),
        (lambda: prompts(PAPER, 2, generator(), unsafe=True, text="any"), "text"),
    ],
)
def test_bad_input_names_the_parameter(call, parameter):
    with pytest.raises(InputError) as caught:
        call()
    assert caught.value.parameter == parameter


def test_attacks_have_their_own_text():
    text = competing_text(PAPER, 100, generator())
    task = competing_tasks(PAPER, 100, generator(), text="safe")
    alias = mismatched_generalisation(PAPER, 100, generator())
    assert text.unsafe and task.unsafe and alias.unsafe
    assert not task.unsafe_text.any()
    assert (alias.grammar == 0).all()
