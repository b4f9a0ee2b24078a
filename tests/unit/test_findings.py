"""Findings: every number comes from the scorecard, and a text whose verdict has changed says so."""

import re

import pytest
import yaml

from safebook import claims, findings, paths
from safebook.errors import InputError

ROW = {
    "id": "pcfg-1a",
    "value": 1.5,
    "interval": [1.0, 2.0],
    "control": {"value": 0.25},
    "verdict": "same direction",
}


def written(monkeypatch, tmp_path, **changes):
    finding = {
        "paper": "pcfg",
        "observation": "Clusters",
        "believe": "It grows {pcfg-1a.value:two_to}-fold ({pcfg-1a.low} to {pcfg-1a.high}; {pcfg-1a.control:percent}).",
        "verdicts": {"pcfg-1a": "same direction"},
    }
    (tmp_path / findings.FILE).write_text(yaml.safe_dump([finding | changes]))
    monkeypatch.setattr(paths, "DATA", tmp_path)


def test_numbers_come_from_the_scorecard(monkeypatch, tmp_path):
    written(monkeypatch, tmp_path)
    page = findings.page("pcfg", [ROW])
    assert "It grows 2.83-fold (1 to 2; 25 %)." in page and "### Clusters" in page
    assert "other verdicts" not in page
    assert "(not measured)" in findings.page("pcfg", [ROW | {"value": None, "interval": None}])
    assert findings.page("spf", [ROW]) == "Nothing is judged yet.\n"


def test_a_changed_verdict_is_said_above_the_text(monkeypatch, tmp_path):
    written(monkeypatch, tmp_path)
    page = findings.page("pcfg", [ROW | {"verdict": "differs"}])
    assert page.index("was *same direction*, now *differs*") < page.index("It grows")


def test_a_page_opens_with_what_was_found_there_and_how_often(monkeypatch, tmp_path):
    written(monkeypatch, tmp_path, believe="It grows {pcfg-1a.value:two_to}-fold. Twice. Left out.")
    rows = [ROW | {"run": "a", "size": "laptop"}, ROW | {"id": "pcfg-1b", "run": "a", "size": "laptop"}]
    text = findings.answer("a", rows)
    assert "**Clusters.** It grows 2.83-fold. Twice.\n" in text and "Left out" not in text
    assert "2 <span" in text and "same direction" in text and "(laptop)" in text
    other = findings.answer(
        "a", [row | {"verdict": "differs"} for row in rows]
    )  # the sentences are of another verdict
    assert "It grows" not in other and "differs" in other and "{admonition} Verdicts" in other
    assert findings.answer("b", rows) == ""
    # An observation is told where more than half of its claims are judged.
    written(monkeypatch, tmp_path, verdicts={"pcfg-1a": "same direction", "pcfg-1b": "same direction"})
    elsewhere = findings.answer("a", [rows[0], rows[1] | {"run": "b"}])
    assert "It grows" not in elsewhere and "1 <span" in elsewhere


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"believe": "{pcfg-9z.value}"}, "claim"),
        ({"believe": "{pcfg-1a.mean}"}, "number"),
        ({"believe": "{pcfg-1a.value:cubed}"}, "number"),
        ({"verdicts": {"pcfg-9z": "differs"}}, "verdicts"),
        ({"paper": "other"}, "paper"),
    ],
)
def test_mistakes_are_named(monkeypatch, tmp_path, changes, named):
    written(monkeypatch, tmp_path, **changes)
    with pytest.raises(InputError, match=named):
        findings.page("pcfg", [ROW])


def test_the_texts_were_written_for_the_committed_verdicts_and_hold_no_typed_number():
    rows = {claim.id: claims.row(claim, "laptop") for claim in claims.read()}
    for finding in findings.read():
        judged = [rows[claim]["verdict"] for claim in finding.verdicts]
        if claims.NOT_RUN not in judged:
            assert not findings.changed(finding, rows), finding.observation
        bare = findings.PLACE.sub("", finding.believe)
        typed = set(re.findall(r"(?<![\w-])\d+(?:\.\d+)?", bare))
        assert not typed, (finding.observation, typed)


def test_every_claim_is_in_a_finding():
    told = {claim for finding in findings.read() for claim in finding.verdicts}
    if told:
        assert told == {
            claim.id for claim in claims.read() if claim.paper in {f.paper for f in findings.read()}
        }


def test_a_part_is_summed_up_in_five_sentences_with_numbers_from_the_scorecard(monkeypatch, tmp_path):
    written(monkeypatch, tmp_path, observation=findings.SHORT, verdicts={})
    page = findings.short([ROW], {"spf": "Part 3", "pcfg": "Part 1"})
    assert page.startswith("## [Part 1](pcfg.md)") and "2.83-fold" in page and "Part 3" not in page
    assert findings.page("pcfg", [ROW]) == findings.summed_up("spf", [ROW]) == findings.NOTHING
    assert "2.83-fold" in findings.summed_up("pcfg", [ROW])


def test_a_summary_whose_verdict_has_changed_says_so_in_both_places(monkeypatch, tmp_path):
    written(monkeypatch, tmp_path, observation=findings.SHORT)
    now = [ROW | {"verdict": "differs"}]
    for page in (findings.summed_up("pcfg", now), findings.short(now, {"pcfg": "Part 1"})):
        assert page.index("was *same direction*, now *differs*") < page.index("It grows")


def test_the_front_page_has_the_first_sentence_of_every_summary(monkeypatch, tmp_path):
    text = "It is {pcfg-1a.value} times as large, no less. Nothing else is."
    written(monkeypatch, tmp_path, observation=findings.SHORT, believe=text)
    line = findings.headlines([ROW], {"spf": "Part 3", "pcfg": "Part 1"})
    assert line == "\n- **[Part 1](pcfg.md)** It is 1.50 times as large, no less.\n"
    assert "other verdicts" in findings.headlines([ROW | {"verdict": "differs"}], {"pcfg": "Part 1"})
    written(monkeypatch, tmp_path)
    assert findings.headlines([ROW], {"pcfg": "Part 1"}) == ""


def test_every_summary_names_the_verdicts_of_the_claims_whose_numbers_it_gives():
    for finding in findings.read():
        given = {match[0] for match in findings.PLACE.findall(finding.believe)}
        assert finding.observation != findings.SHORT or given == set(finding.verdicts), finding.paper


def test_the_committed_summaries_have_five_sentences():
    texts = {row.paper: row.believe for row in findings.read() if row.observation == findings.SHORT}
    assert {"pcfg", "llama", "safetylock", "spf", "synthesis"} == set(texts)
    for paper, text in texts.items():
        assert len(re.findall(r"[.!?](?=\s|$)", text)) == 5, paper
