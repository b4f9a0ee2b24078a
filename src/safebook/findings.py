"""What a reader should believe about each observation of a paper: written by hand, with every number from the scorecard.

A row of data/findings.yaml holds the observation, the text, and the verdicts for which the text was written. Where a
verdict has changed since, the page says so above the text, and a test fails.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from safebook import book_html as h
from safebook import data_rows
from safebook.errors import InputError

FILE = "findings.yaml"
NOTHING = "Nothing is judged yet.\n"
#: The observation that sums a part up, for the page of all parts.
SHORT = "In five sentences"
#: Of an observation, how many sentences open the page on which its claims are judged.
SENTENCES = 2
PLACE = re.compile(r"\{([a-z]+-\w+)\.(\w+)(?::(\w+))?\}")
FIELDS = ("value", "low", "high", "control")
#: How a number may be shown: a share as percent, a logarithm as the factor that it stands for.
FORMS = {
    None: h.number,
    "percent": lambda x: f"{h.number(100 * x)} %",
    "points": lambda x: h.number(100 * x),
    "two_to": lambda x: h.number(2**x),
    "ten_to": lambda x: h.number(10**x),
}


class Finding(BaseModel):
    """One observation of a paper and what to believe about it."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    paper: data_rows.Part
    observation: str
    believe: str  # Markdown; {pcfg-1a.value} stands for a number of the scorecard
    verdicts: dict[str, str]  # claim -> the verdict that the text was written for


def read() -> list[Finding]:
    """The rows of data/findings.yaml; raises InputError that names what is wrong with them."""
    return data_rows.read(FILE, Finding)


def fill(text: str, rows: Mapping[str, dict]) -> str:
    """The text with its numbers. Raises InputError for an unknown claim, field or form."""

    def number(match: re.Match) -> str:
        claim, field, form = match.groups()
        if claim not in rows:
            raise InputError(f"{FILE}: claim", claim, "an id of claims.yaml")
        if field not in FIELDS or form not in FORMS:
            raise InputError(f"{FILE}: number", match[0], f"one of {FIELDS}, in one of {list(FORMS)[1:]}")
        row = rows[claim]
        low, high = row["interval"] or (None, None)
        control = (row["control"] or {}).get("value")
        value = {"value": row["value"], "low": low, "high": high, "control": control}[field]
        return "(not measured)" if value is None else FORMS[form](value)

    return PLACE.sub(number, text)


def changed(finding: Finding, rows: Mapping[str, dict]) -> list[str]:
    """Sentences on the verdicts that are not those the text was written for."""
    return [
        f"{claim} was *{was}*, now *{rows[claim]['verdict']}*"
        for claim, was in finding.verdicts.items()
        if rows[claim]["verdict"] != was
    ]


def _text(finding: Finding, rows: Mapping[str, dict]) -> str:
    """Markdown: the text with its numbers, below a warning if it was written for other verdicts."""
    if unknown := set(finding.verdicts) - set(rows):
        raise InputError(f"{FILE}: verdicts", sorted(unknown), "ids of claims.yaml")
    text = fill(finding.believe.strip(), rows)
    if different := changed(finding, rows):
        return f":::{{warning}}\nThis text was written for other verdicts: {'; '.join(different)}.\n:::\n\n{text}"
    return text


def page(paper: str, scorecard: Sequence[dict]) -> str:
    """Markdown: what to believe about each observation of the paper, with the verdicts that it rests on."""
    rows = {row["id"]: row for row in scorecard}
    parts = []
    for finding in read():
        if finding.paper != paper or finding.observation == SHORT:
            continue
        parts += [f"### {finding.observation}", _text(finding, rows)]
        if marks := [f"{h.esc(claim)} {h.verdict(rows[claim]['verdict'])}" for claim in finding.verdicts]:
            parts.append(f'<p class="sb-source">{" · ".join(marks)}</p>')
    return "\n\n".join(parts) + "\n" if parts else NOTHING


def summed_up(paper: str, scorecard: Sequence[dict]) -> str:
    """Markdown: the part in five sentences, for the top of its chapter."""
    summary = _summaries().get(paper)
    return _text(summary, {row["id"]: row for row in scorecard}) + "\n" if summary else NOTHING


def answer(run_id: str, scorecard: Sequence[dict]) -> str:
    """Markdown for the top of a run's page: the first sentences of what to believe, where most of an observation's claims are
    judged there, and how many claims got which verdict. Empty where none is."""
    rows = {row["id"]: row for row in scorecard}
    own = [row for row in scorecard if row["run"] == run_id]
    if not own:
        return ""
    lines = []
    for finding in read():
        here = [claim for claim in finding.verdicts if claim in rows and rows[claim]["run"] == run_id]
        if finding.observation == SHORT or 2 * len(here) <= len(finding.verdicts):
            continue
        if changed(finding, rows):  # its sentences may be wrong now; the chapter shows them with a warning
            continue
        said = re.split(r"(?<=[.!?])\s+", fill(finding.believe.strip(), rows))
        stop = "" if finding.observation.endswith("?") else "."
        lines.append(f"**{finding.observation}{stop}** {' '.join(said[:SENTENCES])}")
    counts = Counter(row["verdict"] for row in own)
    marks = " · ".join(f"{counts[word]} {h.verdict(word)}" for word in h.VERDICT_CLASS if counts[word])
    sizes = ", ".join(dict.fromkeys(row.get("size") or "no record" for row in own))
    link = h.link("#judged-on-this-page", "Claims judged on this page")
    lines.append(f"{link} ({sizes}): {marks}")
    title = "What was found" if len(lines) > 1 else "Verdicts"
    body = "\n\n".join(lines)
    return f":::{{admonition}} {title}\n:class: sb-answer\n{body}\n:::"


def _summaries() -> dict[str, Finding]:
    """Part -> its five sentences."""
    return {finding.paper: finding for finding in read() if finding.observation == SHORT}


def headlines(scorecard: Sequence[dict], papers: Mapping[str, str]) -> str:
    """Markdown for the front page: the first sentence of every summary, under a link to its chapter."""
    rows, lines, summaries = {row["id"]: row for row in scorecard}, [], _summaries()
    for paper, name in papers.items():
        if paper in summaries:
            first = re.split(r"(?<=[.!?])\s", fill(summaries[paper].believe.strip(), rows))[0]
            old = " (Written for other verdicts; see there.)" if changed(summaries[paper], rows) else ""
            lines.append(f"- **[{name}]({paper}.md)** {first}{old}")
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def short(
    scorecard: Sequence[dict], papers: Mapping[str, str], figures: Mapping[str, str] | None = None
) -> str:
    """Markdown: every part that has been summed up, in five sentences and a figure, under a link to its chapter.

    papers: the name of each part, in the order of the book; a part's chapter is the page of its key.
    figures: part -> Markdown of its figure, for those that have one.
    """
    rows = {row["id"]: row for row in scorecard}
    texts = {paper: _text(summary, rows) for paper, summary in _summaries().items()}
    parts = [
        "\n\n".join([f"## [{name}]({paper}.md)", texts[paper], (figures or {}).get(paper, "")]).strip()
        for paper, name in papers.items()
        if paper in texts
    ]
    return "\n\n".join(parts) + "\n" if parts else NOTHING
