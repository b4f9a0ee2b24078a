"""The static book: `assemble` writes the pages that are made from runs, `build` makes HTML of everything."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from safebook import (
    book_code,
    book_figures,
    book_math,
    book_node,
    book_pages,
    book_post,
    book_state,
    book_tables,
    paths,
)

BUILD_TIMEOUT_S = 900


class BookError(RuntimeError):
    """The book could not be built, or was built with warnings."""


def assemble(size: str) -> list[book_state.RunView]:
    """Write book/executed/ from what this machine's runs of `size` left and from the committed records.

    Every registered run gets a page: its executed notebook, the failure that stopped it, or a page that
    says it was not run. Returns what is known about each run, in reading order.
    """
    from safebook import claims, findings, registry, reproduction

    registry.check_size(size)
    check_toc()
    best, here = claims.scorecard(), claims.scorecard(size)
    views = [book_state.view(run, size) for run in registry.RUNS]
    others = {run.id: book_state.elsewhere(run, size) for run in registry.RUNS}
    recorded = [other for run in registry.RUNS for other in others[run.id]]
    judged = book_code.by_run()
    pages: dict[str, str | bytes] = {}
    for view in views:
        metrics = [claim.value.metric for claim in judged.get(view.run.id, ())]
        table = book_tables.on_page(best, view.run.id)
        answer = findings.answer(view.run.id, best)
        suffix, text = book_pages.page(view, others[view.run.id], table, metrics, answer)
        pages[view.run.template.removesuffix(".ipynb") + suffix] = text
        if view.notebook is not None:
            # The download is the page itself, that is the cleaned notebook with its facts.
            pages["files/" + book_pages.download_name(view, view.notebook)] = text
    for view in (*views, *recorded):
        for path in book_state.files(view):
            pages["files/" + book_pages.download_name(view, path)] = path.read_bytes()
    pages["scorecard.md"] = book_tables.scorecard(
        best, here, size, reproduction.column(size), book_code.links(views, judged)
    )
    pages["status.md"] = book_tables.status(views, recorded, size)
    pages["summary.md"] = book_tables.summary(best, size) + findings.headlines(best, book_tables.PAPERS)
    pages["checkpoints.md"] = book_tables.checkpoints(_with_model())
    images, figures = book_figures.pages()
    pages |= images
    pages["in_short.md"] = findings.short(best, book_tables.PAPERS, figures)
    # Every part has its findings, also before the first claim: its chapter includes them.
    for paper in dict.fromkeys([*(run.paper for run in registry.RUNS), *(row["paper"] for row in best)]):
        pages[f"findings_{paper}.md"] = findings.page(paper, best)
        pages[f"short_{paper}.md"] = findings.summed_up(paper, best)
    _write(paths.BOOK / "executed", pages)
    return views


def _with_model() -> list[tuple[str, str, str]]:
    """Title, page and first text of every run that takes a checkpoint."""
    import nbformat

    from safebook import parameters, registry

    found = []
    for run in registry.RUNS:
        if run.path.exists() and "model" in parameters.read(run.path):
            text = nbformat.read(run.path, as_version=4).cells[0].source
            found.append((run.title, "executed/" + run.template.removesuffix(".ipynb"), text))
    return found


def check_toc() -> None:
    """Raise BookError unless the table of contents names the registry's runs, all of them and in order."""
    from safebook import registry

    toc = yaml.safe_load((paths.BOOK / "_toc.yml").read_text(encoding="utf-8"))
    named = [name for name in _files(toc) if name.startswith("executed/") and name.count("/") > 1]
    wanted = ["executed/" + run.template.removesuffix(".ipynb") for run in registry.RUNS]
    if named != wanted:
        raise BookError(f"book/_toc.yml names the runs' pages {named}, the registry {wanted}")


def build(size: str, say=print) -> Path:
    """Build the HTML of what `assemble` wrote, unless nothing has changed. Returns the front page's path.

    Raises BookError if Sphinx fails or warns; the book is still put in place, as far as there is one.
    """
    live = book_node.vendor(say)
    html = paths.BUILD / "html"
    stamp = paths.BUILD / "book-stamp.txt"
    wanted = _inputs_hash() + (" live" if live else " plain")
    if stamp.exists() and stamp.read_text() == wanted and (html / "index.html").exists():
        say("book: nothing has changed")
        return html / "index.html"
    stamp.unlink(missing_ok=True)
    # A whole build every time, beside the old book: an incremental one would not repeat the warnings of
    # unchanged pages, and an interrupted one must not leave half a book.
    fresh = paths.BUILD / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    say(f"book: building the pages ({size})")
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()",
               "build", str(paths.BOOK),
               "--config", str(paths.ROOT / "_config.yml"), "--path-output", str(fresh),
               "-W", "-n", "--keep-going", "--quiet"]  # fmt: skip
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "NO_COLOR": "1"}
    done = subprocess.run(
        command, cwd=paths.ROOT, env=environment, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S
    )
    built = fresh / "_build" / "html"
    if not (built / "index.html").exists():
        raise BookError(f"the book could not be built:\n{_tail(done)}")
    book_math.typeset(built, say)
    book_post.finish(built)
    old = paths.BUILD / "old"
    shutil.rmtree(old, ignore_errors=True)
    if html.exists():
        html.rename(old)
    built.rename(html)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(fresh, ignore_errors=True)
    if done.returncode != 0:
        raise BookError(f"the book was built, but with warnings:\n{_tail(done)}")
    stamp.write_text(wanted)
    return html / "index.html"


def _tail(done: subprocess.CompletedProcess) -> str:
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    named = [line for line in lines if "WARNING" in line or "ERROR" in line]
    return "\n".join(named[-20:] or lines[-30:])


def _inputs_hash() -> str:
    """sha256 over everything that the HTML is made from; vendored scripts have their own stamp."""
    digest = hashlib.sha256()
    sources = [path for path in paths.BOOK.rglob("*") if path.is_file() and "vendor" not in path.parts]
    sources += [
        *(paths.DATA / "tuning").glob("*.csv"),
        *(paths.DATA / "paper").rglob("*.csv"),
    ]  # shown by chapters
    code = Path(__file__).parent.glob("book*.py")
    for path in sorted([*sources, *code, paths.ROOT / "_config.yml", paths.ROOT / "package-lock.json"]):
        content = path.read_bytes()
        digest.update(f"{path.name} {path.parent.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def _files(node: object) -> list[str]:
    """Every `file:` of a table of contents, in order."""
    if isinstance(node, list):
        return [name for item in node for name in _files(item)]
    if isinstance(node, dict):
        own = [str(node["file"])] if "file" in node else []
        return own + [name for value in node.values() for name in _files(value)]
    return []


def _write(folder: Path, pages: dict[str, str | bytes]) -> None:
    """Make the folder hold exactly these files. A file with the same content keeps its time."""
    wanted = {folder / name: text.encode() if isinstance(text, str) else text for name, text in pages.items()}
    for path in [path for path in folder.rglob("*") if path.is_file() and path not in wanted]:
        path.unlink()
    for path, content in wanted.items():
        if path.exists() and path.read_bytes() == content:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
