"""An arm in words: its title, and what it does."""

from collections.abc import Sequence

from wisca_core.comparison.spec import Arm
from wisca_core.methods import method
from wisca_core.pairs import LABELS
from wisca_core.words import join_names

_TITLES = {
    "baseline": "Baseline",
    "wisca": "QK + VO",
    "init_only": "QK + VO, at the start only",
    "qk_only": "QK only",
    "vo_only": "VO only",
    "group": "QK + VO by KV group",
    "channel": "QK + VO by channel",
    "l2": "QK + VO in L2",
    "state_left": "QK + VO, optimiser state left",
    "placebo": "Placebo ×1.001",
    "inverse": "Inverse scaling",
    "rates": "WISCA's rates alone",
    "rates_weighted": "WISCA's rates, its clipping too",
    "inverse_rates": "Inverse rates",
    "gram": "QK + VO, Gram-balanced",
    "lora_ab": "A/B balance",
    "lora_channel": "A/B balance by rank",
    "lora_gram": "A/B Gram balance",
    "base": "Base balanced",
    "base_and_ab": "Base and A/B balance",
    "lora_placebo": "Placebo ×1.001",
}


def title(arm: Arm) -> str:
    """A known arm's title; a user's arm by its own name."""
    return _TITLES.get(arm.name, arm.name)


def titles(arms: Sequence[Arm]) -> dict[str, str]:
    """Name -> title."""
    return {arm.name: title(arm) for arm in arms}


def in_words(arm: Arm) -> str:
    """What an arm does: "QK and VO balanced every 25 steps"."""
    if arm.kind == "none":
        return "nothing is rescaled"
    if arm.kind == "rates":
        return _rates_in_words(arm)
    does = {"balance": "balanced", "inverse": "scaled the other way", "placebo": "scaled by 1.001 and back"}[arm.kind]
    how = [] if arm.norm == "l1" else [f"in {arm.norm}"]
    how += [f"by {arm.granularity}"] if arm.granularity != "tensor" else []
    how += [words] if (words := method(arm.method).words) else []
    how += [f"at strength {arm.strength:g}"] if arm.strength != 1 else []
    when = f"every {arm.every:,} steps" if arm.every else "once, at the start"
    return " ".join([_pairs(arm), does, *how, when, *_span(arm)])


def _pairs(arm: Arm) -> str:
    return join_names(["LoRA's A and B" if pair == "lora" else LABELS[pair] for pair in arm.pairs])


def _span(arm: Arm) -> list[str]:
    """["from 10% of the run", "where one side is 1.5 times heavier"], as far as it has such limits."""

    def place(at: int | float) -> str:
        return f"step {at:,}" if isinstance(at, int) else f"{at:.0%} of the run"

    out = [f"from {place(arm.start)}"] if arm.start else []
    out += [f"up to {place(arm.stop)}"] if arm.stop is not None else []
    return out + ([f"where one side is {arm.when:g} times heavier"] if arm.when is not None else [])


def _rates_in_words(arm: Arm) -> str:
    how = f" at strength {arm.strength:g}" if arm.strength != 1 else ""
    when = f"set every {arm.every:,} steps" if arm.every else "set once, at the start"
    when = " ".join([when, *_span(arm)])
    clip = "clipping as the rescaled model would" if arm.clip_norm == "weighted" else "ordinary clipping"
    return f"no weight is touched: {_pairs(arm)} have the learning rates that balancing{how} comes to, {when}, {clip}"
