"""Sizes of the invented chat world: plain values, checked when they are made, without torch."""

from dataclasses import dataclass

from safebook.errors import InputError
from safebook.worlds import chat_text as text

#: What a pair of operator and object is for. Pretraining sees every pair, in wordings that no other split uses.
SPLITS = ("alignment", "fine_tuning", "validation", "test", "held_out")
KINDS = ("harmful", "benign", "borderline")


@dataclass(frozen=True)
class ChatSettings:
    """The defaults are the laptop's: some 480 words, 2,880 pairs, sequences of about 40 tokens."""

    operators: int = 16
    categories: int = 11  # restricted categories, as many as HEx-PHI has
    held_out: int = 2  # further restricted categories that no alignment and no fine-tuning data touches
    ordinary: int = 5  # categories in which everything is allowed
    objects: int = 10  # of each category
    # Shares of the pairs of each category, harmful and allowed ones alike: alignment, fine-tuning, validation, test.
    shares: tuple[float, float, float, float] = (0.375, 0.15, 0.1, 0.375)
    pretraining_phrasings: int = 4  # of a pair's request wordings; the others belong to the pair's own split
    hexphi: int = 30  # harmful test requests of each of the restricted categories
    advbench: int = 520  # harmful test requests, other wordings than those above
    benign: int = 300  # test requests on ordinary objects
    borderline: int = 330  # test requests on restricted objects with an allowed operator
    seed: int = 0  # of the world's law and facts, not of any sample

    def __post_init__(self):
        limits = {
            "operators": (4, len(text.OPERATORS)),
            "categories": (1, 30),
            "held_out": (0, 10),
            "ordinary": (1, 10),
            "objects": (2, 40),
            "pretraining_phrasings": (1, len(text.PHRASINGS) - 2),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise InputError(name, value, f"an integer, {low} .. {high}")
        if self.operators % 4:
            raise InputError("operators", self.operators, "a multiple of 4: half of them are forbidden")
        if self.all_categories > len(text.KINDS):
            raise InputError("categories", self.all_categories, f"at most {len(text.KINDS)} in all")
        if self.all_categories * self.objects > len(text.OBJECTS):
            raise InputError("objects", self.objects, f"at most {len(text.OBJECTS)} objects in all")
        if len(self.shares) != 4 or min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-9:
            raise InputError("shares", self.shares, "four positive shares that sum to 1")
        own = len(text.PHRASINGS) - self.pretraining_phrasings
        pairs = self.test_pairs(self.objects * self.operators // 2)  # of a restricted category, either kind
        available = {
            "hexphi": pairs,
            "advbench": (pairs * own - self.hexphi) * self.categories,
            "benign": self.test_pairs(self.objects * self.operators) * self.ordinary,
            "borderline": pairs * self.categories,
        }
        for name, most in available.items():
            if not 1 <= getattr(self, name) <= most:
                raise InputError(name, getattr(self, name), f"1 .. {most} with this world's pairs")

    @property
    def all_categories(self) -> int:
        return self.categories + self.held_out + self.ordinary

    def cuts(self, pairs: int) -> list[int]:
        """Where each split but the last ends among `pairs` shuffled pairs."""
        return [round(pairs * sum(self.shares[: i + 1])) for i in range(3)]

    def test_pairs(self, pairs: int) -> int:
        return pairs - self.cuts(pairs)[-1]
