"""The README's results: a table between two marks, written from the scorecard and never by hand."""

import html
from collections import Counter

from safebook import claims, paths

START, END = "<!-- results: written by `safebook record`, never by hand -->", "<!-- end of results -->"
#: Why a claim differs -> in the words of the summary.
DIFFERING = {
    claims.UNCERTAIN: "have their mean on the claimed side, with an interval too wide to be sure",
    claims.OTHER_SIDE: "have it short of the value that the claim must exceed, which for some is a bar and not zero",
    claims.SHORT_OF: "go the claimed way, but not as far as the bar",
}


def table(size: str) -> str:
    """The scorecard of the committed records of one size as a Markdown table, with the command behind it."""
    rows = claims.scorecard(size)
    counts = Counter(row["verdict"] for row in rows)
    verdicts = ", ".join(f"{counts[v]} **{v}**" for v in claims.VERDICTS if counts[v])
    differing = [row["reason"] for row in rows if row["verdict"] == claims.DIFFERS]
    why = Counter(start for start in DIFFERING for reason in differing if reason.startswith(start))
    parts = ", ".join(f"{why[start]} {words}" for start, words in DIFFERING.items() if why[start])
    lines = [
        f"`make book SIZE={size}`. Of {len(rows)} claims: {verdicts}."
        if rows
        else f"`make book SIZE={size}`.",
        "",
        *([f"*Differs* means: not shown here. {parts}.", ""] if differing else []),
        "<details><summary>Every claim, with mean over seeds, 95 % interval and control</summary>",
        "",
        "| Claim | Measured | Control | Reported | Verdict |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            f"{row['id']}: {row['statement']}",
            *claims.shown(row),
            f"**{row['verdict']}**" + (f": {row['reason']}" if row["reason"] else ""),
        )
        lines.append(
            "| " + " | ".join(html.escape(cell, quote=False).replace("|", "\\|") for cell in cells) + " |"
        )
    return "\n".join([*lines, "", "</details>"])


def split(text: str) -> tuple[str, str, str]:
    """README text before, between and after the marks; ValueError if they are not there."""
    before, found, rest = text.partition(START)
    between, closed, after = rest.partition(END)
    if not (found and closed):
        raise ValueError(f"README.md lacks the lines {START!r} and {END!r}")
    return before, between.strip(), after


def update(size: str) -> None:
    """Write the table of this size into README.md."""
    path = paths.ROOT / "README.md"
    before, _, after = split(path.read_text(encoding="utf-8"))
    path.write_text(f"{before}{START}\n{table(size)}\n{END}{after}", encoding="utf-8")
