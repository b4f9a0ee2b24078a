"""The sizes of the chat testbed: world, Llama, how it is trained, aligned and attacked by fine-tuning. Without torch."""

from dataclasses import dataclass, field, replace

from safebook.errors import InputError
from safebook.llama_settings import LlamaSettings
from safebook.risks import HARMFUL_ROWS, LORA_RISKS, RISKS
from safebook.settings import TrainingSettings
from safebook.worlds.chat_settings import ChatSettings

SIZES = ("smoke", "laptop", "paper")


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters. The defaults are those of llama-recipes, but for the dropout, which is 0."""

    rank: int = 8
    alpha: int = 32
    targets: tuple[str, ...] = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Risk:
    """One fine-tuning attack on the aligned model."""

    rows: int  # dialogues
    training: TrainingSettings


@dataclass(frozen=True)
class ChatProfile:
    """One size of the testbed."""

    size: str
    world: ChatSettings
    model: LlamaSettings  # its vocabulary is replaced by the tokenizer's
    texts: int  # pretraining texts
    pretraining: TrainingSettings
    alignment_rows: int
    alignment_mixture: dict[str, float]  # kind of dialogue -> share
    alignment: TrainingSettings
    preference_pairs: int
    preference: TrainingSettings
    preference_beta: float
    risks: dict[str, Risk]  # full-parameter, by name
    lora_rates: dict[str, float]  # learning rate of the same attack with adapters, by level
    lora: Lora = field(default_factory=Lora)
    answer_tokens: int = 64  # most tokens of an answer
    curve_samples: int = 60  # validation requests of each kind at a point of a learning curve
    device: str = "auto"

    def risk(self, name: str) -> Risk:
        """Settings of a risk, `..._lora` included. Raises InputError for an unknown one."""
        if name in self.risks:
            return self.risks[name]
        if name not in LORA_RISKS:
            raise InputError("risk", name, ", ".join((*RISKS, *LORA_RISKS)))
        full = self.risks[name.removesuffix("_lora")]
        rate = self.lora_rates[name.split("_")[0]]
        return Risk(full.rows, _constant(full.training.iterations, full.training.batch, rate))


def _schedule(iterations: int, batch: int, rate: float) -> TrainingSettings:
    return TrainingSettings(
        iterations, batch, rate, rate / 100, warmup=iterations // 20, decay_until=iterations, clip=1.0
    )


def _constant(iterations: int, batch: int, rate: float) -> TrainingSettings:
    """No warm-up and no decay: the attacks are too short for either."""
    return TrainingSettings(
        iterations, batch, rate, rate, 0, iterations, betas=(0.9, 0.999), weight_decay=0.0, clip=1.0
    )


def _risks(level1: float, level2: float, level3: float, most: int) -> dict[str, Risk]:
    """The attacks; the three learning rates are the dial of their strength. `most`: rows of the largest ones.

    Batches of 10 for five epochs, as Qi et al., but at least 20 steps; the two largest sets in batches of 32, for five
    epochs and for one.
    """
    risks = {}
    for rows in HARMFUL_ROWS:
        used, batch = min(rows, most), 10 if rows <= 100 else 32
        epochs = 1 if rows > 1000 else 5
        iterations = max(20, epochs * used // batch)
        risks[f"level1_{rows}"] = Risk(used, _constant(iterations, batch, level1))
    risks["level2"] = Risk(10, _constant(20, 10, level2))
    benign = min(3000, most)
    risks["level3"] = Risk(benign, _constant(max(20, benign // 32), 32, level3))
    return risks


_MIXTURE = {"harmful": 0.4, "benign": 0.1, "borderline": 0.4, "tasks": 0.1}
_PROFILES = {
    "smoke": ChatProfile(
        size="smoke",
        world=ChatSettings(),
        model=LlamaSettings(1, layers=2, heads=4, key_value_heads=4, width=32, hidden=88),
        texts=1000,
        pretraining=_schedule(40, 32, 3e-3),
        alignment_rows=500,
        alignment_mixture=_MIXTURE,
        alignment=_schedule(20, 32, 2e-3),
        preference_pairs=100,
        preference=_schedule(10, 16, 2e-4),
        preference_beta=0.1,
        risks=_risks(1e-4, 1e-4, 1e-4, most=200),
        lora_rates={"level1": 1e-3, "level2": 1e-3, "level3": 1e-3},
        answer_tokens=24,
        curve_samples=10,
        device="cpu",
    ),
    "laptop": ChatProfile(
        size="laptop",
        world=ChatSettings(),
        model=LlamaSettings(1),
        texts=20_000,
        pretraining=_schedule(1250, 32, 3e-3),
        alignment_rows=20_000,
        alignment_mixture=_MIXTURE,
        alignment=_schedule(1200, 32, 2e-3),
        preference_pairs=4000,
        preference=_schedule(150, 16, 2e-5),
        preference_beta=0.1,
        risks=_risks(1.5e-4, 8e-4, 2e-3, most=10_000),
        lora_rates={"level1": 5e-4, "level2": 3e-3, "level3": 5e-3},
        device="cpu",
    ),
    "paper": ChatProfile(
        size="paper",
        world=ChatSettings(),
        model=LlamaSettings(1, layers=16, heads=16, key_value_heads=16, width=512, hidden=1376),
        texts=100_000,
        pretraining=_schedule(6000, 128, 1e-3),
        alignment_rows=50_000,
        alignment_mixture=_MIXTURE,
        alignment=_schedule(2000, 128, 3e-4),
        preference_pairs=10_000,
        preference=_schedule(300, 64, 5e-5),
        preference_beta=0.1,
        risks=_risks(1e-5, 1e-5, 3e-5, most=10_000),
        lora_rates={"level1": 1e-4, "level2": 1e-4, "level3": 3e-4},
    ),
}


#: Smaller Llamas of a size, for what depends on the size of a model: size -> name -> settings, and how many times as long
#: they are pretrained, since a small model learns the same answers more slowly. Heads are as wide as in the size's own Llama.
SHAPES = {
    "smoke": {"1x2": (LlamaSettings(1, layers=1, heads=2, key_value_heads=2, width=16, hidden=44), 1.0)},
    "laptop": {
        "4x4": (LlamaSettings(1, layers=4, heads=4, key_value_heads=4, width=64, hidden=172), 1.6),
    },
    "paper": {
        "8x8": (LlamaSettings(1, layers=8, heads=8, key_value_heads=8, width=256, hidden=688), 1.6),
        "12x12": (LlamaSettings(1, layers=12, heads=12, key_value_heads=12, width=384, hidden=1032), 1.0),
    },
}


def chat_profile(size: str) -> ChatProfile:
    """The profile of a size; of "laptop-4x4" that of the size with another Llama, one of `SHAPES`, and all else but the
    length of pretraining the same.

    Raises InputError for an unknown one.
    """
    base, _, shape = size.partition("-")
    if size in _PROFILES:
        return _PROFILES[size]
    if shape not in SHAPES.get(base, {}):
        raise InputError("size", size, " | ".join((*SIZES, *(s for base in SIZES for s in smaller(base)))))
    profile, (model, longer) = _PROFILES[base], SHAPES[base][shape]
    s = profile.pretraining
    pretraining = _schedule(round(longer * s.iterations), s.batch, s.learning_rate)
    return replace(profile, size=size, model=model, pretraining=pretraining)


def smaller(size: str) -> list[str]:
    """The sizes with a smaller Llama, as `chat_profile` takes them, from small to large."""
    return [f"{size}-{shape}" for shape in SHAPES[size]]
