"""The same options outside the dashboard: the command line and a few lines of Python."""

import shlex
from collections.abc import Sequence
from dataclasses import replace

import streamlit as st

from wisca_app.declaring import kept
from wisca_app.open_model import normal
from wisca_core.architecture.declaration import Declaration
from wisca_core.architecture.site import DEFAULT_PAIRS
from wisca_core.model import Model
from wisca_core.pairs import PAIRS
from wisca_core.planning.options import Options


def draw(model: Model, options: Options) -> None:
    with st.expander("In your own training", key="training"):
        st.markdown("On the command line:")
        sites = model.checkpoint.declared.sites if model.checkpoint.declared else ()
        st.code(line(model, options), language=None, wrap_lines=True)
        st.markdown("While it trains: transformers' Trainer (and TRL's), Lightning, or a plain loop.")
        st.code(in_training(options, sites), language=None, wrap_lines=True)
        if sites:
            return  # its class is the person's own: what stands above is all of it
        st.markdown("On a checkpoint between two stages of training, in Python:")
        st.code(snippet(normal(model.checkpoint.source), options), language=None, wrap_lines=True)


def line(model: Model, options: Options) -> str:
    """``command`` for the open model, with the declaration that it was opened with."""
    return command(normal(model.checkpoint.source), options, kept.arguments(model).get("sites", ""))


def command(model: str, options: Options, sites: str = "") -> str:
    """The line that does what this page does; options at their default are left away. ``sites``: the path of a
    declaration, which it proves.
    """
    plain, parts = Options(), ["wisca", "rescale", model, "OUT"]
    if sites:
        parts += ["--sites", sites, "--build", "MODULE:FUNCTION"]
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


def _arguments(options: Options) -> list[str]:
    """Arguments as Python writes them; those at their default are left away."""
    plain = Options()
    return [
        f"{name}={getattr(options, name)!r}"
        for name in ("pairs", "granularity", "norm", "strength", "exact", "exclude")
        if getattr(options, name) != getattr(plain, name)
    ]


def in_training(options: Options, sites: Sequence[Declaration] = ()) -> str:
    """One line for each kind of loop, with these options, before the first step and after every 250. ``sites``: of a
    class of one's own.
    """
    options = replace(options, pairs=tuple(pair for pair in options.pairs if pair in PAIRS) or DEFAULT_PAIRS)
    layers = [f"layers={','.join(map(str, options.layers))!r}"] if options.layers else []
    declared = ["sites=sites"] if sites else []
    arguments = ", ".join(["every=250", *_arguments(options), *layers, *declared])
    lines = "".join(f"    {one!r},\n" for one in sites)
    before = f"import wisca_core as wisca\n\nsites = [\n{lines}]\n\n" if sites else ""
    return f"""{before}from wisca_core.training import LightningWisca, Scaler, WiscaCallback

WiscaCallback({arguments}).attach(trainer)  # transformers

L.Trainer(callbacks=[LightningWisca({arguments})])  # Lightning

scaler = Scaler(model, optimizer, {arguments})  # plain PyTorch: scaler.step() behind optimizer.step()
"""


def snippet(model: str, options: Options) -> str:
    layers = [f"layers={','.join(map(str, options.layers))!r}"] if options.layers else []
    return f"""import wisca_core as wisca

model = wisca.open({model!r})
plan = wisca.plan({", ".join(["model", *_arguments(options), *layers])})
wisca.export(model, plan, "OUT")
"""
