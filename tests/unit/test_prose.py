"""Numbers in sentences that a page writes."""

from safebook import prose
from safebook.prose import mean_range


def test_a_mean_stands_with_its_range_and_a_single_number_alone():
    assert mean_range({0: 0.1, 1: 0.3, 2: 0.5}) == "0.300 (0.100 to 0.500)"
    assert mean_range({0: 0.25}, 0, percent=True) == "25 %"


def test_nothing_is_negative_nought():
    assert mean_range({0: -0.02, 1: 0.017}, 0, percent=True) == "0 % (-2 to 2)"


def test_beside_a_checkpoint_no_record_of_the_testbed_is_shown(capsys):
    assert prose.committed("pcfg-01-world", "smoke") is not None
    assert prose.committed("pcfg-01-world", "smoke", "owner/model") is None
