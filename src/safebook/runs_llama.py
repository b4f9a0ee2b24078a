"""The runs on the chat testbed: world, alignment, attacks, and part 1's check on Llama."""

from safebook.runs import Run, drawing, groups
from safebook.zoo import CHAT_ALIGNED, CHAT_ATTACKED, CHAT_BASE, CHAT_SFT

# How a model is trained is in its artefact's key; here stands what measures it.
CHAT_WORLD = (
    "chat_profiles.py",
    "streams.py",
    *(f"worlds/chat{part}.py" for part in ("", "_data", "_settings", "_tasks", "_text", "_tokens")),
    "judge.py",
)
LLAMA = (
    *CHAT_WORLD,
    "llama.py",
    "llama_activations.py",
    "messages.py",
    "generation.py",
    "chat_behaviour.py",
    "chat_objectives.py",
    "prompts_io.py",
    "subjects.py",
)

RUNS: tuple[Run, ...] = (
    Run(
        id="llama-01-chat-world",
        template="llama/01_chat_world.ipynb",
        title="The chat world",
        paper="llama",
        modules=CHAT_WORLD,
        drawing=(*drawing("chat"), "attacks.py"),
        groups=groups(laptop={}, paper={}),
    ),
    Run(
        id="llama-02-alignment",
        template="llama/02_alignment.ipynb",
        title="Alignment: refuse what is forbidden, and nothing else",
        paper="llama",
        artifacts=(CHAT_BASE, CHAT_SFT, CHAT_ALIGNED),
        modules=LLAMA,
        drawing=(*drawing("chat"), "attacks.py"),
        groups=groups(
            laptop={"samples": 520, "disguised": 66, "items": 60},
            paper={"samples": 520, "disguised": 330, "items": 200},
        ),
    ),
    Run(
        id="llama-03-finetuning-risks",
        template="llama/03_finetuning_risks.ipynb",
        title="Fine-tuning risks",
        paper="llama",
        artifacts=(CHAT_ALIGNED, *CHAT_ATTACKED),
        modules=(*LLAMA, "chat_recipes.py", "training.py", "settings.py"),
        drawing=(*drawing("risks"), "attacks.py"),
        groups=groups(
            laptop={
                "samples": 165,
                "task_items": 60,
                "dial_samples": 44,
            },
            paper={
                "samples": 520,
                "task_items": 200,
                "dial_samples": 88,
            },
        ),
    ),
    Run(
        id="llama-04-clusters-and-weights",
        template="llama/04_clusters_and_weights.ipynb",
        title="The check on Llama: clusters, and what the update writes and reads",
        paper="llama",
        artifacts=(CHAT_BASE, CHAT_ALIGNED, "chat-level3"),
        modules=(*LLAMA, "geometry.py", "subspaces.py", "llama_clusters.py", "llama_updates.py"),
        drawing=(*drawing("llama_clusters"), "attacks.py"),
        groups=groups(laptop={"samples": 110, "draws": 100}, paper={"samples": 330, "draws": 100}),
    ),
)
