"""Names of the fine-tuning attacks on an aligned Llama: three levels of risk. Source: paper 2, after Qi et al. (2023)."""

#: Explicitly harmful dialogues of level 1. Qi et al. use up to 100, paper 2 up to 10,000.
HARMFUL_ROWS = (10, 50, 100, 1000, 10_000)
#: Level 1 by its number of dialogues, level 2 (obedient persona), level 3 (harmless data).
RISKS = (*(f"level1_{rows}" for rows in HARMFUL_ROWS), "level2", "level3")
#: The same attacks with low-rank adapters in place of all parameters.
LORA_RISKS = tuple(f"{risk}_lora" for risk in ("level1_100", "level2", "level3"))
