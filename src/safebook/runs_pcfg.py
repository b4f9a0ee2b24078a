"""Part 1's runs on the PCFG world."""

from safebook.runs import Run, drawing, groups
from safebook.zoo import ARMS, FINE_TUNED

PCFG_MODELS = ("pcfg-pretrained", *FINE_TUNED)
MEDIUM = tuple(name for name in FINE_TUNED if name.endswith("-medium"))
# How a model is trained is in its artefact's key; here stands what measures it.
_WORLD = ("profiles.py", "streams.py", "worlds/grammars.py", "worlds/pcfg.py", "worlds/instructions.py")
_MODEL = (*_WORLD, "models.py")

RUNS: tuple[Run, ...] = (
    Run(
        id="pcfg-01-world",
        template="pcfg/01_world.ipynb",
        title="The PCFG world",
        paper="pcfg",
        modules=_WORLD,
        drawing=drawing("world"),
        groups=groups(laptop={"samples": 4000}, paper={"samples": 4000}),
    ),
    Run(
        id="pcfg-02-pretraining",
        template="pcfg/02_pretraining.ipynb",
        title="Pretraining",
        paper="pcfg",
        artifacts=("pcfg-pretrained",),
        modules=(*_MODEL, "behaviour.py"),
        drawing=drawing("behaviour"),
        groups=groups(laptop={"samples": 4000}, paper={"samples": 10_000}),
    ),
    Run(
        id="pcfg-03-safety-finetuning",
        template="pcfg/03_safety_finetuning.ipynb",
        title="Safety fine-tuning",
        paper="pcfg",
        artifacts=PCFG_MODELS,
        modules=(*_MODEL, "behaviour.py", "attacks.py"),
        drawing=drawing("behaviour"),
        groups=groups(laptop={"samples": 2000}, paper={"samples": 10_000}),
    ),
    Run(
        id="pcfg-04-feature-space",
        template="pcfg/04_feature_space.ipynb",
        title="Feature space",
        paper="pcfg",
        artifacts=PCFG_MODELS,
        modules=(*_MODEL, "activations.py", "geometry.py", "orders.py"),
        drawing=drawing("features"),
        groups=groups(laptop={"samples": 1000}, paper={"samples": 1000}),
    ),
    Run(
        id="pcfg-05-column-space",
        template="pcfg/05_column_space.ipynb",
        title="Parameter space: what the update can write",
        paper="pcfg",
        artifacts=PCFG_MODELS,
        modules=(*_MODEL, "subspaces.py"),
        drawing=drawing("parameters"),
        groups=groups(laptop={"draws": 100}, paper={"draws": 100}),
    ),
    Run(
        id="pcfg-06-row-space",
        template="pcfg/06_row_space.ipynb",
        title="Parameter space: what the update reads",
        paper="pcfg",
        artifacts=PCFG_MODELS,
        modules=(*_MODEL, "activations.py", "subspaces.py"),
        drawing=drawing("parameters"),
        groups=groups(laptop={"samples": 1000, "draws": 100}, paper={"samples": 1000, "draws": 100}),
    ),
    Run(
        id="pcfg-07-sensitivity",
        template="pcfg/07_sensitivity.ipynb",
        title="Function space: local sensitivity",
        paper="pcfg",
        artifacts=PCFG_MODELS,
        modules=(*_MODEL, "sensitivity.py", "orders.py"),
        drawing=drawing("sensitivity"),
        groups=groups(laptop={"samples": 1000}, paper={"samples": 1000}),
    ),
    Run(
        id="pcfg-08-jailbreaks",
        template="pcfg/08_jailbreaks.ipynb",
        title="Jailbreaks: where they land",
        paper="pcfg",
        artifacts=PCFG_MODELS,
        modules=(
            *_MODEL,
            "behaviour.py",
            "attacks.py",
            "soft_prompts.py",
            "activations.py",
            "geometry.py",
            "subspaces.py",
            "sensitivity.py",
        ),
        drawing=drawing("jailbreaks"),
        groups=groups(
            laptop={"samples": 1000, "soft_samples": 60}, paper={"samples": 10_000, "soft_samples": 1000}
        ),
    ),
    Run(
        id="pcfg-09-interventions",
        template="pcfg/09_interventions.ipynb",
        title="Interventions on the update",
        paper="pcfg",
        artifacts=("pcfg-pretrained", *MEDIUM),
        modules=(
            *_MODEL,
            "behaviour.py",
            "attacks.py",
            "interventions.py",
            "subspaces.py",
            "activations.py",
            "geometry.py",
        ),
        drawing=drawing("interventions"),
        groups=groups(laptop={"samples": 250}, paper={"samples": 1000}),
    ),
    Run(
        id="pcfg-10-confound",
        template="pcfg/10_confound.ipynb",
        title="What survives the controls",
        paper="pcfg",
        artifacts=(*PCFG_MODELS, *ARMS),
        modules=(*_MODEL, "behaviour.py", "attacks.py", "activations.py", "geometry.py", "subspaces.py"),
        drawing=drawing("confound"),
        groups=groups(laptop={"samples": 500}, paper={"samples": 10_000}),
    ),
    Run(
        id="pcfg-11-variants",
        template="pcfg/11_variants.ipynb",
        title="Other ways to measure the clusters",
        paper="pcfg",
        artifacts=PCFG_MODELS,
        modules=(
            *_MODEL,
            "behaviour.py",
            "attacks.py",
            "activations.py",
            "geometry.py",
            "variants.py",
            "orders.py",
        ),
        drawing=drawing("variants"),
        groups=groups(laptop={"samples": 500}, paper={"samples": 1000}),
    ),
)
