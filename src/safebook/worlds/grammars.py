"""The probabilistic grammars that write the operands, and their compilation into lookup tables.

A grammar is a map `symbol -> alternatives`, every alternative equally likely. All grammars of a world share one skeleton
of non-terminals; they differ only in how the six pre-terminals spell out terminals (sub-grammars change a few rules of
the skeleton). Source: section "data generator" of the authors' released code; the numbers are facts about the method.
"""

from collections.abc import Mapping
from functools import cache
from itertools import product
from math import lcm

import numpy as np

PRE_TERMINALS = ("g", "h", "i", "e2", "g2", "i2")

Rules = Mapping[str, tuple[tuple[str, ...], ...]]


def parse(text: str) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Read `left -> a b | c d` lines into a rule map."""
    rules = {}
    for line in text.strip().splitlines():
        left, right = line.split("->")
        rules[left.strip()] = tuple(tuple(part.split()) for part in right.split("|"))
    return rules


LEVEL_5 = parse("""
l -> i2 i g | i i2 g
k -> e2 g i | g2 g h
j -> i e2 i2 | g2 h e2
f2 -> i2 h g2 | i2 e2 h
h2 -> h i2 g2 | g2 e2 h
""")
# The unsafe sub-grammars lose one child of every level-5 rule. That makes the text type readable from local n-grams,
# a confound of the published set-up which the book measures.
LEVEL_5_SHORT = parse("""
l -> i2 g | i i2
k -> e2 g | g h
j -> i e2 | g2 h
f2 -> i2 h | i2 e2
h2 -> h i2 | g2 e2
""")
FULL = LEVEL_5 | parse("""
v -> u t | t s
u -> r p | p D q | H r q
t -> q p r | S p q | D r
s -> p H | r D S | D S H
r -> o n m | w x o
q -> w o | m o x
p -> m n | o o w
D -> x w m | n w n
H -> n x x | n n x
S -> m m x | w w o
o -> l k j | l h2 j
n -> k h2 f2 | k l j
m -> l k f2 | f2 h2 l
w -> f2 h2 h2 | l f2 j
x -> j j l | f2 l
""")
SAFE = FULL | parse("""
v -> u | t | t | s
u -> r | p | r | q
t -> q | p | r
s -> p | r
""")
UNSAFE = (
    FULL
    | LEVEL_5_SHORT
    | parse("""
v -> u | s
u -> H
s -> H | D | D | H | S
D -> n w n
S -> m m
""")
)
UNSAFE_THREE_CHILD = UNSAFE | LEVEL_5
UNSAFE_BROAD = (
    FULL
    | LEVEL_5_SHORT
    | parse("""
v -> u | s
u -> H
s -> H | D S | D S H
""")
)
MIXED = FULL | parse("""
v -> u | t | t | s
u -> p2 D | H2 r
t -> S2 p | D2 r
s -> p2 H | r2 D
r -> o | w
r2 -> m | o
p -> m | o
p2 -> n | w
D -> x | n
D2 -> m | n
H -> n
H2 -> x
S2 -> x | o
""")
UNSAFE_SHIFTED = (
    FULL
    | LEVEL_5_SHORT
    | parse("""
v -> s
s -> S
S -> m x | w w o
x -> j j l
""")
)

#: Text type -> rules. The names in brackets are those of the released files.
TEXT_TYPES: dict[str, Rules] = {
    "full": FULL,  # pretraining text
    "safe": SAFE,
    "unsafe": UNSAFE,  # (id_mg) fine-tuning and the standard test
    "unsafe_broad": UNSAFE_BROAD,  # (unsafe)
    "mixed": MIXED,  # (intermediate) the operand of JB-CO-Text
    "unsafe_shifted": UNSAFE_SHIFTED,  # (ood_mg)
    "unsafe_three_child": UNSAFE_THREE_CHILD,  # control: unsafe text without the shortened level-5 rules
}

#: Pre-terminal -> two alternatives, for each of the four published grammars: 30 symbols, three to an alternative.
PAPER_TERMINALS = np.array(
    [
        [
            [[0, 1, 2], [3, 4, 5]],
            [[7, 8, 9], [10, 11, 12]],
            [[13, 14, 15], [16, 17, 18]],
            [[19, 20, 21], [22, 23, 24]],
            [[25, 26, 27], [28, 29, 28]],
            [[27, 26, 25], [24, 23, 22]],
        ],
        [
            [[21, 20, 19], [18, 17, 16]],
            [[15, 14, 13], [12, 11, 10]],
            [[9, 8, 7], [6, 5, 4]],
            [[3, 2, 1], [0, 2, 4]],
            [[6, 8, 10], [12, 14, 16]],
            [[18, 20, 22], [24, 26, 28]],
        ],
        [
            [[29, 27, 25], [23, 22, 20]],
            [[18, 16, 14], [12, 10, 8]],
            [[6, 4, 2], [0, 3, 6]],
            [[9, 12, 15], [18, 21, 24]],
            [[27, 26, 23], [20, 17, 14]],
            [[11, 8, 5], [2, 4, 8]],
        ],
        [
            [[12, 16, 20], [24, 28, 25]],
            [[21, 17, 13], [9, 5, 1]],
            [[5, 10, 15], [20, 25, 28]],
            [[23, 18, 13], [8, 3, 6]],
            [[12, 18, 24], [28, 22, 16]],
            [[10, 4, 2], [7, 14, 21]],
        ],
    ]
)


@cache
def _yields(text_type: str, symbol: str) -> tuple[tuple[int, ...], ...]:
    """Equally likely pre-terminal sequences of `symbol`, repeated where needed so that all weigh the same."""
    if symbol in PRE_TERMINALS:
        return ((PRE_TERMINALS.index(symbol),),)
    alternatives = []
    for children in TEXT_TYPES[text_type][symbol]:
        parts = product(*(_yields(text_type, child) for child in children))
        alternatives.append([sum(part, ()) for part in parts])
    common = lcm(*map(len, alternatives))
    return tuple(seq for alternative in alternatives for seq in alternative * (common // len(alternative)))


def _cut(rules: Rules) -> set[str]:
    """The level-3 symbols: the parents of o, n, m, w, x. Below them everything fits in one table."""
    level_4 = set("onmwx")
    return {left for left, right in rules.items() if left not in level_4 and set(sum(right, ())) <= level_4}


def _skeletons(rules: Rules, symbol: str, cut: set[str]) -> list[tuple[str, ...]]:
    """Equally likely sequences of level-3 symbols that `symbol` expands to."""
    if symbol in cut:
        return [(symbol,)]
    alternatives = [
        [sum(part, ()) for part in product(*(_skeletons(rules, child, cut) for child in children))]
        for children in rules[symbol]
    ]
    common = lcm(*map(len, alternatives))
    return [seq for alternative in alternatives for seq in alternative * (common // len(alternative))]


@cache
def compile_grammar(text_type: str) -> dict[str, np.ndarray]:
    """Tables from which a derivation is drawn with one lookup a level.

    Returns
    -------
    skeletons : (n_skeletons, slots) int, rows equally likely; index of a level-3 symbol, 0 = empty slot
    counts : (n_symbols,) int, equally likely yields of each level-3 symbol
    offsets : (n_symbols,) int, first row of the symbol in `sequences`
    lengths : (rows,) int, pre-terminals in each yield
    sequences : (rows, longest) int8, pre-terminal numbers, padded with 0
    """
    rules = TEXT_TYPES[text_type]
    cut = sorted(_cut(rules))
    skeletons = _skeletons(rules, "v", set(cut))
    slots = max(map(len, skeletons))
    table = np.zeros((len(skeletons), slots), dtype=np.int64)
    for row, skeleton in enumerate(skeletons):
        table[row, : len(skeleton)] = [cut.index(symbol) + 1 for symbol in skeleton]
    yields = [((),)] + [_yields(text_type, symbol) for symbol in cut]
    counts = np.array([len(y) for y in yields])
    offsets = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rows = [seq for y in yields for seq in y]
    lengths = np.array([len(seq) for seq in rows])
    sequences = np.zeros((len(rows), lengths.max()), dtype=np.int8)
    for row, seq in enumerate(rows):
        sequences[row, : len(seq)] = seq
    return {
        "skeletons": table,
        "counts": counts,
        "offsets": offsets,
        "lengths": lengths,
        "sequences": sequences,
    }
