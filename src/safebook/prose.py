"""Sentences and notes of a page. Their numbers come from the record, so that no number is ever typed into prose."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from safebook.results import Record


def say(text: str) -> None:
    """Display a sentence (Markdown)."""
    from IPython.display import Markdown, display

    display(Markdown(text))


def mean_range(values: dict[int, float], digits: int = 3, percent: bool = False) -> str:
    """`mean (lowest to highest)` over seeds; one number where there is one seed."""
    numbers = sorted(values.values())
    scale, unit = (100, " %") if percent else (1, "")
    shown = [f"{scale * v:z.{digits}f}" for v in (sum(numbers) / len(numbers), numbers[0], numbers[-1])]
    return shown[0] + unit if len(numbers) == 1 else f"{shown[0]}{unit} ({shown[1]} to {shown[2]})"


def heading(record: "Record") -> str:
    """What a record is: size, seeds, device and date, for the label above what is drawn from it."""
    p = record.provenance
    seeds = ", ".join(map(str, record.seeds))
    return (
        f"**{record.size} size**, seeds {seeds}, on {p.device} ({p.cpu}), {p.date[:10]}" if p else record.size
    )


def committed(run_id: str, size: str, model: str = "testbed") -> "Record | None":
    """The best committed record of a larger size, announced in a sentence; None, with a sentence, if there is none.

    model: the page's; beside a checkpoint's numbers those of the testbed would be out of place, so then there is none.
    """
    from safebook import results

    if model != "testbed":
        say("*Left out for a checkpoint:* the committed record, which is the testbed's.")
        return None
    record = results.committed(run_id, above=size)
    if record is None:
        say(
            f"No record larger than the {size} size has been committed for this page."
            if size != "paper"
            else ""
        )
    else:
        say(f"The same figures, drawn by the same functions from the committed record: {heading(record)}.")
    return record
