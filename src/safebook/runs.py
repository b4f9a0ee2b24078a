"""What a run of the book is: one template x one parameter group per size. The runs themselves: `runs_pcfg` and its neighbours."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safebook import paths


@dataclass(frozen=True)
class Run:
    """One page of the book."""

    id: str
    template: str  # below notebooks/
    title: str
    paper: str  # pcfg | llama | safetylock | spf | synthesis
    artifacts: tuple[str, ...] = ()  # trained models it needs, one per seed: names of zoo.ARTIFACTS
    modules: tuple[str, ...] = ()  # what measures: a change makes the record stale
    drawing: tuple[str, ...] = ()  # what draws: a change only runs the notebook again
    groups: Mapping[str, Mapping[str, object]] = field(default_factory=dict)  # size -> parameter overrides
    reads: tuple[str, ...] = ()  # papers whose claims and committed records it reads: never its own
    every_shape: bool = False  # does it need its models of the smaller Llamas of chat_profiles.SHAPES, too?

    @property
    def path(self) -> Path:
        """The template."""
        return paths.NOTEBOOKS / self.template

    def folder(self, size: str) -> Path:
        """Where a run of this size on this machine lands."""
        return paths.RESULTS / size / self.id

    def recorded(self, size: str) -> Path:
        """Where a committed record of this size lies."""
        return paths.RECORDED / size / self.id


def groups(**laptop_and_paper: Mapping[str, object]) -> dict[str, dict[str, object]]:
    three = {"seeds": [0, 1, 2]}
    return {"smoke": {}} | {s: {"size": s} | three | dict(extra) for s, extra in laptop_and_paper.items()}


def drawing(*modules: str) -> tuple[str, ...]:
    """What draws a page: the style, the widgets, the sentences, and the page's own figures."""
    return ("plots/__init__.py", "widgets.py", "prose.py", *(f"plots/{name}.py" for name in modules))
