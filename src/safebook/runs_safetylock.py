"""Part 2's runs: SafetyLock."""

from safebook.runs import Run, drawing, groups
from safebook.runs_llama import LLAMA
from safebook.zoo import CHAT_ALIGNED, CHAT_ATTACKED, CHAT_BASE, CHAT_SFT

LOCK = ("safetylock.py", "locks.py", "lock_apply.py", "lock_arms.py")
ATTACKED = tuple(name for name in CHAT_ATTACKED if not name.endswith("_lora"))

RUNS: tuple[Run, ...] = (
    Run(
        id="safetylock-01-meta-lock",
        template="safetylock/01_meta_lock.ipynb",
        title="The lock: its heads, and what they read",
        paper="safetylock",
        artifacts=(CHAT_ALIGNED, "chat-level1_10"),
        modules=(*LLAMA, *LOCK, "lock_reading.py"),
        drawing=(*drawing("lock_heads", "risks"), "attacks.py"),
        groups=groups(
            laptop={"splits": 3, "samples": 88, "chats": 100, "shuffled_pairs": 40},
            paper={"splits": 5, "samples": 330, "chats": 300, "shuffled_pairs": 100},
        ),
    ),
    Run(
        id="safetylock-02-transfer",
        template="safetylock/02_transfer.ipynb",
        title="Transfer: directions before and after fine-tuning",
        paper="safetylock",
        artifacts=(CHAT_BASE, CHAT_SFT, CHAT_ALIGNED, *ATTACKED),
        modules=(*LLAMA, *LOCK, "lock_reading.py", "densities.py"),
        drawing=(*drawing("lock_transfer", "risks"), "attacks.py"),
        groups=groups(
            laptop={"samples": 88, "benign_samples": 22, "chats": 50},
            paper={"samples": 330, "benign_samples": 100, "chats": 300},
        ),
    ),
    Run(
        id="safetylock-03-restoring-safety",
        template="safetylock/03_restoring_safety.ipynb",
        title="Restoring safety",
        paper="safetylock",
        artifacts=(CHAT_ALIGNED, *ATTACKED),
        modules=(*LLAMA, *LOCK, "lock_tests.py"),
        drawing=(*drawing("restoring", "risks"), "attacks.py"),
        groups=groups(
            laptop={"samples": 55, "harmless": 22},
            paper={"samples": 330, "harmless": 100},
        ),
    ),
    Run(
        id="safetylock-04-attacks-and-defences",
        template="safetylock/04_attacks_and_defences.ipynb",
        title="Attacks in the prompt, and defences around it",
        paper="safetylock",
        artifacts=(CHAT_BASE, CHAT_ALIGNED, "chat-level1_10"),
        modules=(
            *LLAMA,
            *LOCK,
            "lock_tests.py",
            "prompt_attacks.py",
            "suffix_search.py",
            "prompt_defences.py",
            "world_defences.py",
            "chat_recipes.py",
        ),
        drawing=(*drawing("prompt_attacks"), "attacks.py"),
        groups=groups(
            laptop={
                "samples": 44,
                "harmless": 22,
                "suffix_words": 8,
                "search_requests": 4,
                "steps": 15,
                "candidates": 32,
            },
            paper={
                "samples": 110,
                "harmless": 55,
                "suffix_words": 20,
                "search_requests": 10,
                "steps": 200,
                "candidates": 256,
            },
        ),
    ),
    Run(
        id="safetylock-05-cost",
        template="safetylock/05_cost.ipynb",
        title="The cost of a lock, and of training instead",
        paper="safetylock",
        artifacts=(CHAT_ALIGNED, "chat-level1_10", "chat-level1_100"),
        modules=(
            *LLAMA,
            *LOCK,
            "lock_cost.py",
            "lock_files.py",
            "lock_tests.py",
            "repairs.py",
            "baselines_posthoc.py",
            "chat_recipes.py",
            "training.py",
            "settings.py",
        ),
        drawing=drawing("lock_cost"),
        groups=groups(
            laptop={
                "samples": 44,
                "harmless": 22,
                "checked": 33,
                "training_steps": 32,
                "repeats": 200,
                "rounds": 9,
                "decoded": 32,
            },
            paper={
                "samples": 330,
                "harmless": 100,
                "checked": 110,
                "training_steps": 256,
                "repeats": 200,
                "rounds": 15,
                "decoded": 64,
            },
        ),
    ),
    Run(
        id="safetylock-06-utility",
        template="safetylock/06_utility.ipynb",
        title="Utility: what the lock costs",
        paper="safetylock",
        artifacts=(CHAT_ALIGNED, "chat-level1_10", "chat-level1_100", "chat-level2", "chat-level3"),
        modules=(
            *LLAMA,
            *LOCK,
            "lock_tests.py",
            "repairs.py",
            "baselines_posthoc.py",
            "chat_recipes.py",
            "training.py",
            "settings.py",
        ),
        drawing=(*drawing("lock_utility", "restoring", "risks"), "attacks.py"),
        groups=groups(
            laptop={
                "multiples": [0.5, 1.5, 2.5],
                "curve_prompts": 22,
                "curve_items": 6,
                "samples": 33,
                "task_items": 12,
                "repair_steps": 24,
            },
            paper={
                "multiples": [0.17, 0.33, 0.5, 0.67, 1.33, 1.67, 2.5],
                "curve_prompts": 88,
                "curve_items": 30,
                "samples": 330,
                "task_items": 100,
                "repaired": ["level1_10", "level2", "level3"],
                "repair_steps": 128,
            },
        ),
    ),
    Run(
        id="safetylock-07-ablations",
        template="safetylock/07_ablations.ipynb",
        title="Ablations: which part of the lock does the work?",
        paper="safetylock",
        artifacts=(CHAT_ALIGNED, "chat-level1_10", "chat-level3"),
        modules=(*LLAMA, *LOCK, "lock_sweeps.py", "chat_recipes.py", "training.py", "settings.py"),
        drawing=(*drawing("lock_ablations"), "attacks.py"),
        groups=groups(
            laptop={
                "samples": 44,
                "curve_samples": 22,
                "counts": [1, 2, 4, 8, 16, 24, 32, 48, 64],
                "alphas": [-6.0, 1.0, 2.0, 4.0, 6.0, 15.0],
                "windows": [1, 3, 5, 10],
            },
            paper={
                "samples": 110,
                "curve_samples": 44,
                "counts": [1, 2, 4, 6, 8, 16, 24, 32, 48, 64, 128, 256],
                "alphas": [-6.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 15.0],
                "windows": [1, 3, 5, 10],
            },
        ),
    ),
    Run(
        id="safetylock-08-model-sizes",
        template="safetylock/08_model_sizes.ipynb",
        title="Model size: does a larger model need a smaller share of its heads?",
        paper="safetylock",
        artifacts=(CHAT_ALIGNED,),
        every_shape=True,
        modules=(*LLAMA, *LOCK, "lock_sweeps.py", "chat_recipes.py", "training.py", "settings.py"),
        drawing=(*drawing("lock_sizes", "lock_ablations"), "attacks.py"),
        groups=groups(
            laptop={
                "samples": 165,
                "curve_samples": 40,  # and twenty harmless ones, of which one may be lost
                "factors": [0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0],
                "shares": [0.0625, 0.125, 0.25, 0.5, 1.0],  # whole heads of 16 and of 64
                "alphas": [0.4, 0.75, 1.5, 3.0, 6.0, 12.0],
                "draws": 2,
            },
            paper={
                "samples": 110,
                "curve_samples": 44,
                "factors": [0.5, 0.71, 1.0, 1.41, 2.0, 2.83, 4.0],
                "shares": [0.015625, 0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0],  # of 64 and of 256
                "alphas": [0.2, 0.4, 0.75, 1.5, 3.0, 6.0, 12.0],
                "draws": 3,
            },
        ),
    ),
)
