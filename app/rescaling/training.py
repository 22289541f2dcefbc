"""The same options outside the dashboard: the command line and a few lines of Python."""

import shlex
from dataclasses import replace

import streamlit as st

from wisca_app.open_model import normal
from wisca_core.architecture.site import DEFAULT_PAIRS
from wisca_core.model import Model
from wisca_core.pairs import PAIRS
from wisca_core.planning.options import Options


def draw(model: Model, options: Options) -> None:
    with st.expander("In your own training", key="training"):
        st.markdown("On the command line:")
        st.code(command(normal(model.checkpoint.source), options), language=None, wrap_lines=True)
        st.markdown("While it trains: transformers' Trainer (and TRL's), Lightning, or a plain loop.")
        st.code(in_training(options), language=None, wrap_lines=True)
        st.markdown("On a checkpoint between two stages of training, in Python:")
        st.code(snippet(normal(model.checkpoint.source), options), language=None, wrap_lines=True)


def command(model: str, options: Options) -> str:
    """The line that does what this page does; options at their default are left away."""
    plain, parts = Options(), ["wisca", "rescale", model, "OUT"]
    if options.pairs != plain.pairs:
        parts += ["--pairs", ",".join(options.pairs)]
    for name in ("granularity", "norm"):
        if getattr(options, name) != getattr(plain, name):
            parts += [f"--{name}", getattr(options, name)]
    if options.strength != plain.strength:
        parts += ["--strength", f"{options.strength:g}"]
    if options.layers:
        parts += ["--layers", ",".join(map(str, options.layers))]
    for site in options.exclude:
        parts += ["--exclude", site]
    return shlex.join(parts + (["--exact"] if options.exact else []))


def _given(options: Options) -> list[str]:
    """Arguments as Python writes them; those at their default are left away."""
    plain = Options()
    return [
        f"{name}={getattr(options, name)!r}"
        for name in ("pairs", "granularity", "norm", "strength", "exact", "exclude")
        if getattr(options, name) != getattr(plain, name)
    ]


def in_training(options: Options) -> str:
    """One line for each kind of loop, with these options, before the first step and after every 250."""
    options = replace(options, pairs=tuple(pair for pair in options.pairs if pair in PAIRS) or DEFAULT_PAIRS)
    layers = [f"layers={','.join(map(str, options.layers))!r}"] if options.layers else []
    arguments = ", ".join(["every=250", *_given(options), *layers])
    return f"""from wisca_core.training import LightningWisca, Scaler, WiscaCallback

WiscaCallback({arguments}).attach(trainer)  # transformers

L.Trainer(callbacks=[LightningWisca({arguments})])  # Lightning

scaler = Scaler(model, optimizer, {arguments})  # plain PyTorch: scaler.step() behind optimizer.step()
"""


def snippet(model: str, options: Options) -> str:
    layers = [f"layers={','.join(map(str, options.layers))!r}"] if options.layers else []
    return f"""import wisca_core as wisca

model = wisca.open({model!r})
plan = wisca.plan({", ".join(["model", *_given(options), *layers])})
wisca.export(model, plan, "OUT")
"""
