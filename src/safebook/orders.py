"""The order of paper 1's models by the strength of their safety fine-tuning, and how far a measure agrees with it."""

from collections.abc import Mapping

from safebook.errors import InputError

#: Weakest first. Source: claim 1 of paper 1.
PUBLISHED_ORDER = ("pretrained", "ssft-small", "ssft-medium", "dpo-small", "dpo-medium", "unlearning-medium")


def order_agreement(values: Mapping[str, float]) -> float:
    """Spearman's rank correlation of model -> value with the published order; other models are left out.

    -1 .. 1, and 0 when all values are equal. Raises InputError if a model is missing or its value is not a number.
    """
    from scipy.stats import spearmanr

    missing = [name for name in PUBLISHED_ORDER if name not in values]
    if missing:
        raise InputError(
            "values", f"no {', '.join(missing)}", "a value of every model of the published order"
        )
    found = [float(values[name]) for name in PUBLISHED_ORDER]
    if any(value != value for value in found):
        raise InputError("values", found, "numbers")
    return float(spearmanr(range(len(found)), found).statistic) if len(set(found)) > 1 else 0.0
