"""Agreement with the published order against the closed form of Spearman's rank correlation."""

from itertools import permutations

import pytest

from safebook.errors import InputError
from safebook.orders import PUBLISHED_ORDER, order_agreement


def values(ranks):
    return dict(zip(PUBLISHED_ORDER, ranks))


def test_every_order_equals_the_closed_form():
    n = len(PUBLISHED_ORDER)
    for ranks in permutations(range(n)):
        squares = sum((i - rank) ** 2 for i, rank in enumerate(ranks))
        assert order_agreement(values(ranks)) == pytest.approx(1 - 6 * squares / (n * (n**2 - 1)))


def test_only_ranks_count_and_neither_other_models_nor_the_order_of_the_mapping():
    rising = values([-5.0, 0.1, 0.2, 3.0, 1e3, 1e9])
    assert order_agreement(rising) == pytest.approx(1)
    assert order_agreement({"benign-medium": 7.0} | dict(reversed(rising.items()))) == pytest.approx(1)
    assert order_agreement({name: -value for name, value in rising.items()}) == pytest.approx(-1)


def test_equal_values_have_no_order_and_a_missing_one_is_named():
    assert order_agreement(dict.fromkeys(PUBLISHED_ORDER, 2.5)) == 0
    with pytest.raises(InputError, match="dpo-small"):
        order_agreement({name: 1.0 for name in PUBLISHED_ORDER if name != "dpo-small"})
    with pytest.raises(InputError, match="values"):
        order_agreement(values([1, 2, 3, 4, 5, float("nan")]))
