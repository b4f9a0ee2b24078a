"""The pages that need no computation say what the code says: glossary, picture, citation, cards."""

import re
import tomllib
import unicodedata
from xml.etree import ElementTree

import nbformat
import pytest
import yaml
from pybtex.database import parse_string

from safebook import attacks, claims, paths, plots, registry

BOOK = paths.BOOK
ROOT = paths.ROOT


def text(name: str) -> str:
    return (BOOK / name).read_text(encoding="utf-8")


# --- glossary ---


def terms() -> dict[str, str]:
    """Every term with its definition."""
    found = {}
    for block in re.findall(r"^```\{glossary\}\n(.*?)^```", text("glossary.md"), re.M | re.S):
        for entry in block.strip().split("\n\n"):
            term, definition = entry.split("\n", 1)
            assert term not in found, term
            found[term] = definition.strip()
    return found


def meanings() -> dict[str, str]:
    """First column of every table with the last but the links: symbols and measures."""
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", text("glossary.md"), re.M)
    return {first: rest for first, rest in rows if not rest.startswith(("---", "Symbol", "Used", "Meaning"))}


def test_every_definition_is_one_sentence():
    for term, definition in terms().items():
        assert definition.endswith(".") and not re.search(r"[.?!] [A-Z]", definition), term
        assert "\n" not in definition, term
    assert len({term.lower() for term in terms()}) == len(terms())


def test_words_of_the_code_are_explained():
    known = " ".join(terms()).lower()
    for verdict in claims.VERDICTS:
        assert verdict in terms()
    for attack in (*attacks.CONDITIONS, *attacks.MORE):
        assert (attack if attack.startswith("JB") else attack.split()[0].lower()) in " ".join(
            terms()
        ) + known, attack
    for protocol in ("SSFT", "DPO", "Standard DPO", "Unlearning", "Benign training"):
        assert protocol in terms()
        word = protocol.split()[0].lower()
        assert any(word in name.lower() for name in plots.MODELS.values()), protocol
    for size in registry.SIZES:
        assert f"*{size}*" in terms()["Size"]


def test_measures_name_functions_that_exist():
    import importlib

    measures = re.findall(
        r"^\| (M\d), .*\]\((executed/\S+)\) \| `(\w+)\.(\w+)` \|$", text("glossary.md"), re.M
    )
    assert [name for name, *_ in measures] == [f"M{n}" for n in range(1, 8)]
    pages = {"executed/" + run.template.removesuffix(".ipynb") for run in registry.RUNS}
    for name, page, module, function in measures:
        assert page in pages, name
        assert callable(getattr(importlib.import_module(f"safebook.{module}"), function)), name


def greek(name: str) -> str | None:
    """The letter that a TeX command stands for, if it is one."""
    case = "CAPITAL" if name[0].isupper() else "SMALL"
    try:
        return unicodedata.lookup(f"GREEK {case} LETTER {name}")
    except KeyError:
        return None


@pytest.mark.parametrize("part", ["pcfg", "llama", "safetylock", "spf", "synthesis"])
def test_every_symbol_is_explained(part):
    """Of the formulas in the notebooks' prose: Greek letters, and single Latin ones that are no index."""
    known = text("glossary.md")
    for path in sorted((paths.NOTEBOOKS / part).glob("*.ipynb")):
        prose = "\n".join(
            c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "markdown"
        )
        for formula in re.findall(r"\$([^$]+)\$", prose):
            for name in re.findall(r"\\([a-zA-Z]+)", formula):
                if letter := greek(name):
                    assert f"*{letter}" in known, (path.name, formula)
            bare = re.sub(r"\\[a-zA-Z]+|_\{[^}]*\}|_\w", " ", formula)
            for letter in set(re.findall(r"(?<![\w\\])[A-Za-z](?![\w])", bare)) - {"L", "j", "i", "T"}:
                assert re.search(rf"\*{letter}\*|\*Δ{letter}\*|\*{letter}\*\(|\*{letter}\*ᵢ", known), (
                    path.name,
                    formula,
                    letter,
                )


def test_letters_of_later_parts_say_whose_they_are():
    _, later = text("glossary.md").split("(later-parts)=")
    for heading in ("| Symbol | Used by part 2 for |", "| Symbol | Used by part 3 for |"):
        assert heading in later
    letters = [f"*{letter}*" for letter in (*map(greek, ("alpha", "sigma", "rho", "phi")), *"uKrU")]
    for symbol in (*letters, "*k*/*m*", "CER("):
        assert f"| {symbol}" in later, symbol


# --- the picture ---

SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_is_accessible_and_stands_alone():
    root = ElementTree.parse(BOOK / "assets" / "architecture.svg").getroot()
    assert root.get("role") == "img" and root.get("width") and root.get("height")
    ids = {element.get("id") for element in root.iter()}
    assert set(root.get("aria-labelledby").split()) <= ids
    assert len(root.find(f"{SVG}title").text) > 10 and len(root.find(f"{SVG}desc").text) > 50
    assert all(int(e.get("font-size", "15")) >= 14 for e in root.iter())
    for element in root.iter():
        assert element.tag.removeprefix(SVG) not in ("script", "image", "use", "foreignObject", "style")
        assert not any("href" in name or name.startswith("on") for name in element.attrib)


def test_the_picture_names_what_exists():
    root = ElementTree.parse(BOOK / "assets" / "architecture.svg").getroot()
    words = " ".join("".join(e.itertext()) for e in root.iter(f"{SVG}text"))
    built = {"artifacts/", "results/", "_build/html/"}
    for name in re.findall(r"[\w/]+(?:\.py|\.yaml)\b|\b[\w/]+/(?= |$|,)|Snakefile", words):
        places = (ROOT / name, ROOT / "src" / "safebook" / name)
        assert name in built or any(place.exists() for place in places), name


def test_text_of_the_picture_stays_in_its_box():
    """A letter is about 0.56 of the font's size wide: no line may be longer than its box."""
    root = ElementTree.parse(BOOK / "assets" / "architecture.svg").getroot()
    boxes = [
        tuple(float(r.get(k)) for k in ("x", "y", "width", "height"))
        for r in root.iter(f"{SVG}rect")
        if r.get("x")
    ]
    for element in root.iter(f"{SVG}text"):
        x, y, words = float(element.get("x")), float(element.get("y")), "".join(element.itertext())
        box = next(b for b in boxes if b[0] <= x <= b[0] + b[2] and b[1] <= y <= b[1] + b[3])
        assert x + 0.56 * 15 * len(words) <= box[0] + box[2] + 2, words


# --- citing ---


def cff() -> dict:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def fields(entry) -> dict[str, str]:
    return {name: value.replace("{", "").replace("}", "") for name, value in entry.fields.items()}


def test_the_citation_file_is_whole_and_has_the_version_of_the_package():
    found = cff()
    assert found["cff-version"] == "1.2.0" and {"message", "title", "authors", "license"} <= set(found)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found["version"] == project["version"]


def test_the_bibtex_of_the_book_is_that_of_the_citation_file():
    block = re.search(r"^```bibtex\n(.*?)^```", text("cite.md"), re.M | re.S)[1]
    (entry,) = parse_string(block, "bibtex").entries.values()
    found, year = cff(), re.search(r"Copyright \(c\) (\d{4})", (ROOT / "LICENSE").read_text())[1]
    assert fields(entry) == {"title": found["title"], "version": found["version"], "year": year}
    assert [str(person).strip("{}") for person in entry.persons["author"]] == [
        a["name"] for a in found["authors"]
    ]


def test_the_papers_are_the_same_in_both_files():
    bibliography = parse_string(text("references.bib"), "bibtex").entries
    papers = [bibliography[key] for key in ("jain2024", "zhu2024", "zhang2026")]
    assert list(bibliography)[:3] == ["jain2024", "zhu2024", "zhang2026"]  # those that the page shows
    for reference, entry in zip(cff()["references"], papers, strict=True):
        assert reference["title"] == fields(entry)["title"] and str(reference["year"]) == entry.fields["year"]
        assert reference["identifiers"][0]["value"] == entry.fields["note"]
        names = [" ".join(person.last_names) for person in entry.persons["author"]]
        assert [author["family-names"] for author in reference["authors"]] == names


# --- cards ---


def test_cards_name_files_that_exist_and_a_licence():
    cards = re.split(r"^### ", text("cards.md"), flags=re.M)[1:]
    assert len(cards) >= 8
    for card in cards:
        assert re.search(r"^\| Licence \| .+ \|$", card, re.M), card.splitlines()[0]
        for name in re.findall(r"`((?:src|data)/[\w./-]+)`", card):
            assert (ROOT / name).exists(), name
        for name in re.findall(r"`((?:worlds/)?\w+\.py)`", card):
            assert (ROOT / "src" / "safebook" / name).exists(), name


@pytest.mark.parametrize(
    "name", ["glossary", "responsible_use", "maintainers", "add-an-experiment", "cards", "cite"]
)
def test_pages_are_in_the_contents_and_of_one_voice(name):
    assert f"- file: {name}\n" in (BOOK / "_toc.yml").read_text()
    prose = re.sub(r"^```.*?^```", "", text(f"{name}.md"), flags=re.M | re.S)
    assert "\u2014" not in prose and " \u2013 " not in prose
    measured = re.findall(r"(?<![\w.-])\d+\.\d+(?!\.\d)(?![\w-])", re.sub(r"`[^`]*`|CC BY 4\.0", "", prose))
    assert not measured, measured  # numbers of runs come from records, never from a keyboard


#: What may hold a digit in a chapter's running text: names, and settings that no run measures. Results come from records.
NAMED = [
    r"[Pp]arts? \d(?:(?: and| to|, part) \d)*", r"[Oo]utput \d", r"M1 to M7", r"GSM8K", r"[Ss]teps? \d", r"#+ \d+\. ",
    r"Python 3(?:\.11)?", r"number is 99", r"CC BY 4\.0|Attribution 4\.0 International|Apache 2\.0", r"width 192",
    r"Llama(?:-3\.1-8B| 2, 3, 3\.1, 3\.2 or 3\.3| 2| 3)", r"UTF-8|bfloat16|float32", r"an 8B", r"from 1 to 7",
]  # fmt: skip
#: Further sentences, whole: definitions of statistics, bars that were written down, and what a test computes anew.
SAID = {
    "how-to-read": ["n ≥ 3", "97.5 % point", "1 degrees of freedom", "√(1 + 1/n)", "three seeds t is 4.3"],
    "safetylock": ["at least 95 % of the harmless answers", "at most 10 % of the answers"],
    "running-on-real-llama": ["(2023)", "on 8 GPUs", "15.0 GiB", "239.3 GiB", "to 1e-5"],
}


def running_text(text: str) -> str:
    """A page without code, formulas, tables, references, links and the numbers of lists."""
    for pattern, flags in (
        (r"^---\n.*?\n---\n", re.S), (r"^(`{3,}|:{3,}).*?^\1\s*$", re.S | re.M), (r"\$\$.*?\$\$|\$[^$\n]*\$", re.S),
        (r"\{[\w:]+\}`[^`]*`", 0), (r"`[^`\n]*`", 0), (r"(?<=\])\([^)]*\)", 0), (r"^\s*\|.*$", re.M), (r"<[^>]*>", 0),
        (r"^\s*\d+\. ", re.M), (r"https?://\S+", 0),
    ):  # fmt: skip
        text = re.sub(pattern, "", text, flags=flags)
    return text


@pytest.mark.parametrize("page", sorted(path.stem for path in paths.BOOK.glob("*.md")))
def test_no_number_is_typed_into_a_chapter(page):
    text = running_text((paths.BOOK / f"{page}.md").read_text(encoding="utf-8"))
    for said in SAID.get(page, ()):
        assert said in text, f"{page} no longer says {said!r}: take it off the list"
        text = text.replace(said, "")
    for pattern in NAMED:
        text = re.sub(pattern, "", text)
    assert not re.findall(r".{0,30}\d.{0,20}", text)


def test_what_is_left_of_a_page_still_holds_its_numbers():
    assert "took 12 %" in running_text(
        "# A\n\nIt took 12 % of it.\n\n| 3 |\n\n1. `4` [5](6.md) $7$\n\n```\n8\n```\n"
    )
    assert not re.search(r"\d", running_text("| 3 |\n\n1. `4` [x](6.md) $7$\n\n```\n8\n```\n"))
