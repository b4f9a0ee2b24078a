"""How to run one page again: the command, and links to Binder and Colab where _config.yml names the project's repository."""

import re
from collections.abc import Sequence
from urllib.parse import quote

import yaml

from safebook import book_html as h
from safebook import paths
from safebook.errors import InputError

SETTING = "sphinx.config.html_context.repository"
FORM = "https://github.com/owner/name or https://github.com/owner/name@branch, or empty"


def repository() -> tuple[str, str] | None:
    """("owner/name", branch or tag) of the one setting in _config.yml; None where it is empty. Raises InputError."""
    config = yaml.safe_load((paths.ROOT / "_config.yml").read_text(encoding="utf-8"))
    for key in SETTING.split("."):
        config = (config or {}).get(key)
    if not config:
        return None
    found = re.fullmatch(r"https://github\.com/([\w.-]+/[\w-][\w.-]*)(?:@([\w./-]+))?", str(config))
    if found is None:
        raise InputError(f"_config.yml: {SETTING}", config, FORM)
    return found[1], found[2] or "main"


def binder(template: str) -> str | None:
    """Address that opens a template, such as `pcfg/01_world.ipynb`, on Binder; its parameters are of the smoke size."""
    place = repository()
    if place is None:
        return None
    name, branch = place
    return f"https://mybinder.org/v2/gh/{name}/{quote(branch, safe='')}?labpath={quote('notebooks/' + template, safe='')}"


def colab() -> str | None:
    """Address that opens binder/colab.ipynb on Colab; it runs the page that its reader chooses, at smoke size."""
    place = repository()
    if place is None:
        return None
    name, branch = place
    return (
        f"https://colab.research.google.com/github/{name}/blob/{quote(branch, safe='/')}/binder/colab.ipynb"
    )


def command(run_id: str, size: str, seeds: Sequence[int] | None = None) -> str:
    """Runs one registered run and trains what it needs first; does nothing where it is up to date. seeds: None = all."""
    some = f"seeds={','.join(map(str, seeds))} " if seeds else ""
    return (
        f".venv/bin/snakemake --cores 2 --config size={size} {some}--rerun-triggers params input mtime "
        f"-- results/{size}/{run_id}/results.json"
    )


def block(run_id: str, template: str, size: str, seeds: Sequence[int] | None = None) -> str:
    """HTML: the exact command behind a page, and the links if there are any."""
    links = ((binder(template), "on Binder"), (colab(), f"on Colab (as {run_id})"))
    found = " or ".join(h.link(href, text) for href, text in links if href)
    more = f" Its smoke size: {found}." if found else ""
    return f'<p class="sb-downloads">Run this notebook: <code>{h.esc(command(run_id, size, seeds))}</code>.{more}</p>'
