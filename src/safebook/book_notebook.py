"""Make an executed notebook fit for the book: parameters folded, figures named, no build stopped."""

import re
from pathlib import Path

import nbformat

from safebook import paths

# Outputs that the book can show; anything else would stop a build in which warnings are errors.
SHOWN = re.compile(
    r"^(image/(png|svg\+xml|jpeg)|text/(html|plain|markdown|latex)"
    r"|application/(json|vnd\.jupyter\.widget-view\+json|papermill\.record/.*))$"
)
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
GLUE_ROLE = re.compile(r"\{glue:?[\w-]*\}`([^`]*)`")
GLUE_BLOCK = re.compile(r"^(```+|:::+)\{glue:?[\w-]*\}[ \t]*(\S+).*?^\1[ \t]*$", re.M | re.S)
MAX_TEXT = 20_000  # characters of one text output; a page may weigh 1.5 MB


def clean(notebook, failed: bool) -> None:
    """Fold parameters, name figures, keep only outputs that the book can show, and forget the machine."""
    state = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    keep = ("kernelspec", "language_info", "widgets")
    notebook.metadata = nbformat.from_dict(
        {key: notebook.metadata[key] for key in keep if key in notebook.metadata}
    )
    notebook.cells = [
        cell for cell in notebook.cells if "papermill-error-cell-tag" not in cell.metadata.get("tags", [])
    ]
    glued: set[str] = set()
    heading = "figure"
    for cell in notebook.cells:
        tags = list(cell.metadata.get("tags", []))
        cell.metadata = nbformat.from_dict(
            {key: cell.metadata[key] for key in ("tags", "mystnb") if key in cell.metadata}
        )
        if cell.cell_type == "markdown":
            titles = re.findall(r"^#+ +(.+)$", cell.source, re.M)
            heading = titles[-1].strip() if titles else heading
        if cell.cell_type != "code":
            continue
        if {"parameters", "injected-parameters"} & set(tags):
            cell.metadata["tags"] = sorted({*tags, "hide-input"})
            own = "injected-parameters" in tags
            _mystnb(cell)["code_prompt_show"] = (
                "Show this run's parameters" if own else "Show the default parameters"
            )
        cell.outputs = [shown for output in cell.outputs if (shown := _output(output, state)) is not None]
        _alt(cell, heading)
        glued |= {
            name
            for output in cell.outputs
            if (name := output.get("metadata", {}).get("scrapbook", {}).get("name"))
        }
    if failed:
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = unglue(cell.source, glued)


def _output(output, widget_state: dict):
    """The output as the book can show it, or None. Errors become text: the top of the page tells them."""
    if output.output_type == "error":
        text = "\n".join(output.get("traceback") or [f"{output.get('ename')}: {output.get('evalue')}"])
        return nbformat.v4.new_output("stream", name="stderr", text=_text(text))
    if output.output_type == "stream":
        output.text = _text(output.text)
        return output if output.text.strip() else None
    output.data = {mime: data for mime, data in output.data.items() if SHOWN.match(mime)}
    view = output.data.get(WIDGET_VIEW)
    if view is not None and view.get("model_id") not in widget_state:
        return None  # the run ended before the state was stored; the default figure beside it stays
    if view is not None and _progress(widget_state, view["model_id"]):
        return None  # a bar was for who ran it
    return output if output.data else None


def _progress(widget_state: dict, model: str) -> bool:
    """Whether this widget is a progress bar or a box that holds one."""
    known = widget_state.get(model, {})
    children = known.get("state", {}).get("children", [])
    return known.get("model_name") in ("FloatProgressModel", "IntProgressModel") or any(
        _progress(widget_state, child.removeprefix("IPY_MODEL_")) for child in children
    )


def _text(text: str) -> str:
    """Terminal text as a page shows it: no colours, a progress bar's last state, not too long."""
    text = ANSI.sub("", text).replace("\r\n", "\n").replace(str(paths.ROOT) + "/", "")
    text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n"))
    text = text.replace(str(Path.home()), "~") if str(Path.home()) != "/" else text
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT // 2] + "\n[...]\n" + text[-MAX_TEXT // 2 :]


def _alt(cell, heading: str) -> None:
    """Alternative text of the cell's figures: from the output (widgets.figure), else the heading."""
    texts = []
    for output in cell.outputs:
        data, metadata = output.get("data", {}), output.get("metadata", {})
        for mime in ("image/png", "image/svg+xml", "image/jpeg"):
            if mime in data:
                texts.append(
                    str(metadata.get(mime, {}).get("alt") or metadata.get("alt") or f"Figure: {heading}")
                )
                break
    if texts:
        image = _mystnb(cell).setdefault("image", {})
        image.setdefault("alt", " ".join(dict.fromkeys(texts)))


def _mystnb(cell) -> dict:
    return cell.metadata.setdefault("mystnb", nbformat.from_dict({}))


def unglue(source: str, glued: set[str]) -> str:
    """Replace numbers that the run never reached: a missing one would stop the build."""
    source = GLUE_BLOCK.sub(lambda m: m.group(0) if m.group(2) in glued else "*(not measured)*", source)
    return GLUE_ROLE.sub(
        lambda m: m.group(0) if m.group(1).split(":")[0] in glued else "*(not measured)*", source
    )
