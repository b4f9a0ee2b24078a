"""Readers of prompt files: what they take, and errors that name file, row and column."""

import csv
import json

import pytest

from safebook.errors import InputError
from safebook.prompts_io import PreferencePair, Prompt, read_pairs, read_prompts

ROWS = [
    {"prompt": "melt the glass, slowly", "answer": 'say "no"', "category": "a", "system": ""},
    {"prompt": "two\nlines\u2028and a separator", "answer": "ü", "category": "", "system": "be brief"},
]
PAIRS = [{"prompt": "p", "chosen": "no", "rejected": "yes"}, {"prompt": "q", "chosen": "b", "rejected": "c"}]


def write(folder, rows, kind):
    file = folder / f"rows.{kind}"
    if kind == "csv":
        with file.open("w", newline="", encoding="utf-8") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "json":
        file.write_text(json.dumps(rows), encoding="utf-8")
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl"])
def test_every_kind_of_file_gives_the_same_rows(kind, tmp_path):
    file = write(tmp_path, ROWS, kind)
    assert read_prompts(file) == [Prompt(**row) for row in ROWS]
    assert read_prompts(file, "benign_prompts", need_answers=True) == [Prompt(**row) for row in ROWS]
    assert read_pairs(write(tmp_path, PAIRS, kind)) == [PreferencePair(**row) for row in PAIRS]


def test_only_the_prompt_is_required(tmp_path):
    assert read_prompts(write(tmp_path, [{"prompt": "p"}], "csv")) == [Prompt("p")]
    file = tmp_path / "windows.csv"
    file.write_bytes(b"\xef\xbb\xbfcategory,prompt\r\na,p\r\n\r\nb,q\r\n")
    assert read_prompts(str(file)) == [Prompt("p", category="a"), Prompt("q", category="b")]


def test_chats():
    assert Prompt("p").chat() == [{"role": "user", "content": "p"}]
    assert [m["role"] for m in Prompt("p", "a", system="s").chat(answered=True)] == [
        "system",
        "user",
        "assistant",
    ]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("x.csv", "promt\np\n", ["row 1", "column 'promt'", "unknown column", "required: prompt"]),
        ("x.csv", "category\na\n", ["row 1", "column 'prompt'", "missing"]),
        ("x.csv", "prompt\np\n  \n", ["row 2", "column 'prompt'", "is empty"]),
        ("x.csv", "prompt,category\np,a\nmelt, slowly,b\n", ["row 2", "has 3 cells", "quotes"]),
        ("x.csv", 'prompt\n"p"q\n', ["row 1", "CSV"]),
        ("x.csv", "prompt,prompt\np,q\n", ["every column once"]),
        ("x.csv", "prompt\n", ["at least one row"]),
        ("x.csv", "", ["at least one row"]),
        ("x.json", '{"prompt": "p"}', ["a list of objects", "holds a dict"]),
        ("x.json", '["p"]', ["row 1", "is a str"]),
        ("x.json", '[{"prompt": "p"}, {"prompt": 3}]', ["row 2", "column 'prompt'", "is 3"]),
        ("x.json", '[{"prompt": "p", "category": null}]', ["row 1", "column 'category'", "is null"]),
        ("x.json", "[", ["JSON"]),
        ("x.jsonl", '{"prompt": "p"}\nprompt\n', ["row 2", "one JSON object a line"]),
        ("x.txt", "p", ["unknown kind", ".csv, .json, .jsonl"]),
    ],
)
def test_errors_name_file_row_and_column(name, content, parts, tmp_path):
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(InputError) as caught:
        read_prompts(str(file), "benign_prompts")
    assert caught.value.parameter == "benign_prompts"
    for part in [str(file), *parts]:
        assert part in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="not found"):
        read_prompts(str(tmp_path / "none.csv"))
    (tmp_path / "latin.csv").write_bytes(b"prompt\n\xfc\n")
    with pytest.raises(InputError, match="UTF-8"):
        read_prompts(str(tmp_path / "latin.csv"))


def test_required_answers_and_pairs(tmp_path):
    unanswered = write(tmp_path, [{"prompt": "p", "answer": "a"}, {"prompt": "q", "answer": ""}], "json")
    assert len(read_prompts(unanswered)) == 2
    with pytest.raises(InputError, match="row 2, column 'answer'"):
        read_prompts(unanswered, need_answers=True)
    with pytest.raises(InputError, match="row 1, column 'rejected'") as caught:
        read_pairs(write(tmp_path, [{"prompt": "p", "chosen": "x", "rejected": "x"}], "csv"))
    assert caught.value.parameter == "preference_pairs"
