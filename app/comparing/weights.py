"""The final weights of a comparison's runs: look at one on Inspect, two side by side, or take them away."""

import streamlit as st

from wisca_app import downloads, state
from wisca_app.figures import compare, words
from wisca_app.messages import errors_as_messages, plain
from wisca_core.comparison.folder import Cell, Comparison


def draw(comparison: Comparison) -> None:
    kept = [cell for cell in comparison.cells if (cell.folder / "model" / "config.json").is_file()]
    with st.expander(f"Final weights: {words.plural(len(kept), 'run')}", key="compare_weights"):
        if not kept:
            st.markdown(f":gray[{_why_none(comparison)}]")
            return
        with errors_as_messages("The weights cannot be shown"):
            _draw(comparison, kept)


def _why_none(comparison: Comparison) -> str:
    if not comparison.spec.save_weights:
        return "None were kept: this comparison was set up to keep the curves alone."
    return (
        "They are not in this folder, although its spec keeps them: they were left out or removed since. Run from "
        "its spec, it keeps them again."
    )


def _draw(comparison: Comparison, kept: list[Cell]) -> None:
    names = compare.labels(comparison.spec.arms)

    def label(cell: Cell) -> str:
        rate = f", rate {cell.rate:g}" if len(comparison.spec.optimiser.learning_rates) > 1 else ""
        return f"{names[cell.arm]}{rate}, seed {cell.seed}"

    with st.container(horizontal=True, gap="medium", vertical_alignment="bottom"):
        treated = next((i for i, cell in enumerate(kept) if cell.arm != kept[0].arm), 0)
        one = st.selectbox("Run", kept, treated, format_func=label, key="compare weights", width=320)
        others = [cell for cell in kept if cell is not one]
        pair = next((i for i, c in enumerate(others) if (c.seed, c.rate) == (one.seed, one.rate)), 0)
        other = (
            st.selectbox("Beside it", others, pair, format_func=label, key=f"compare beside {one.name}", width=320)
            if others
            else None
        )
    with st.container(horizontal=True, gap="small"):
        if st.button("Open on Inspect", key="compare inspect"):
            _open(one, None)
        if other is not None and st.button("Both side by side on Inspect", key="compare both"):
            _open(one, other)
        address = downloads.address(downloads.link(one.folder / "model", "config.json"))
        st.link_button("Download as a zip", address, key="compare download")
    plain(str(one.folder / "model"))
    if (one.folder / "adapter").is_dir():
        plain(f"{one.folder / 'adapter'}: the adapter alone, for the base as it was")


def _open(one: Cell, other: Cell | None) -> None:
    state.open_model(str(one.folder / "model"))
    state.put("beside", str(other.folder / "model") if other else "")
    state.go("inspect")
