"""What a comparison is, in one line."""

from pathlib import Path

from wisca_app.figures import words
from wisca_core.comparison.estimate import duration
from wisca_core.comparison.folder import Comparison
from wisca_core.comparison.paper import SETUPS
from wisca_core.comparison.spec import Spec
from wisca_core.untrusted import printable
from wisca_core.words import join_names


def facts(comparison: Comparison) -> str:
    """One line: model, text, arms, rates, seeds, steps, time."""
    spec = comparison.spec
    parts = [
        _model(spec),
        {"bundled": "bundled text", "text": "a text file", "jsonl": "a JSONL file", "hub": spec.data.path}[
            spec.data.source
        ],
        *(["the model's own tokens"] if spec.data.tokens == "tokenizer" else []),
        words.plural(len(spec.arms), "arm"),
        f"{spec.optimiser.name} at {_rates(comparison)}",
        words.plural(len(spec.seeds), "seed") + (", extended after looking" if comparison.is_extended else ""),
        f"{words.count(spec.steps)} steps",
    ]
    if comparison.seconds and not comparison.is_active:
        parts.append(f"{duration(comparison.seconds)} of training")
    return ", ".join(parts) + "."


def _rates(comparison: Comparison) -> str:
    spec, chosen = comparison.spec, comparison.pilot.chosen
    if not spec.has_pilot:
        return ", ".join(f"{rate:g}" for rate in spec.optimiser.learning_rates)
    if not chosen:
        return "rates that its pilot is to choose"
    return f"{join_names([f'{rate:g}' for rate in sorted(set(chosen.values()))])}, chosen by pilot runs"


def _model(spec: Spec) -> str:
    m = spec.model
    match m.source:
        case "decoder":
            heads = f"{words.plural(m.n_heads, 'query head')} on {words.plural(m.n_kv_heads, 'KV head')}"
            return f"Decoder of width {m.width}, {words.plural(m.n_layers, 'layer')}, {heads}"
        case "paper":
            return SETUPS[m.setup].title
        case "shrunk":
            return f"{_title(m.path)} made {m.width} wide, {words.plural(m.n_layers, 'layer')}"
        case "whole":
            return f"{_title(m.path)} {'from scratch' if m.weights == 'fresh' else 'trained on'}"
    return f"LoRA of rank {spec.lora.r} on {_title(m.path)}"


def _title(model: str) -> str:
    """A short name of it, one line, still foreign."""
    return printable(
        model.removeprefix("hub:") if model.startswith("hub:") else Path(*Path(model).parts[-2:]).as_posix()
    )
