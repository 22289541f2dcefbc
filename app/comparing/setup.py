"""Setting up a comparison: what is compared, how long it will take, and what it will be able to see."""

from dataclasses import asdict, replace
from pathlib import Path

import streamlit as st

from app import cached, state
from app.figures import compare, words
from app.messages import errors_as_messages
from wisca_core import jobs
from wisca_core.comparison import executor, folder
from wisca_core.comparison.estimate import Estimate, estimate
from wisca_core.comparison.spec import ARMS, OPTIMISERS, PRESETS, ModelSpec, Spec, coinciding, spec_from

_PRESETS = {"default": "Default", "rates": "Three learning rates", "thorough": "Thorough"}
_OPTIMISERS = {"adamw": "AdamW", "sgd": "SGD with momentum", "muon": "Muon"}
_SOURCES = {"bundled": "Bundled: Python's own library", "text": "A text file", "jsonl": "A column of a JSONL file"}
_KEPT = {"persist_state": "session"}


def draw() -> None:
    st.markdown(
        "Every arm trains the same model from the same seed on the same data; only the differences of a seed count. "
        "The number of seeds is fixed before the start, because looking first and adding later misleads."
    )
    with errors_as_messages("This comparison cannot be started"):
        spec = _chosen()
        found = _estimate(spec)
        if st.button("Start the comparison", type="primary", disabled=not found.fits, key="compare start"):
            start(spec)


def start(spec: Spec) -> None:
    place = folder.create(folder.new_place(spec.name), spec)
    go_on(place)
    state.note("comparison to show", place.name)
    st.rerun()


def go_on(place: Path) -> None:
    """Train what is not finished, in the background. Raises OutputRefused where that is being done."""
    title = f"Compare: {folder.read(place).spec.name}"
    jobs.start("compare", {"comparison": str(place), "workers": None}, title, exclusive=f"compare {place}")


def _chosen() -> Spec:
    with st.container(border=True):
        preset = PRESETS[
            st.segmented_control(
                "Start from", list(PRESETS), default="default", required=True, key="compare preset", format_func=_PRESETS.get, **_KEPT
            )
        ]  # fmt: skip
        name = preset.name
        above = st.container()  # which arms there are depends on the model, which is drawn below
        with st.expander("Model and text", key="compare_model"):
            model, data, batch_size = _model_and_text(preset)
        offered = [arm for arm in ARMS if arm != "baseline" and not coinciding(arm, ModelSpec(**model))]
    with above:
        arms = st.multiselect(
            "Arms beside the baseline", offered, default=[a.name for a in preset.arms if a.kind != "none"], key=f"compare arms {name}",
            format_func=lambda arm: compare.label(replace(ARMS[arm], every=None) if arm == "wisca" else ARMS[arm]), **_KEPT,
            help="Placebo: factors of 1.001 in turn, which change rounding only. Inverse: each pair is held as far out of balance again as it began.",
        )  # fmt: skip
        with st.container(horizontal=True, gap="medium"):
            every = st.number_input("Rescale every, steps", 1, 100_000, 25, key="compare every", width=140, **_KEPT)
            seeds = st.number_input("Seeds", 1, 1000, len(preset.seeds), key=f"compare seeds {name}", width=84, **_KEPT)
            steps = st.number_input("Steps", 10, 10_000_000, preset.steps, step=100, key=f"compare steps {name}", width=126, **_KEPT)
            optimiser = st.selectbox("Optimiser", OPTIMISERS, key="compare optimiser", format_func=_OPTIMISERS.get, width=176, **_KEPT)
            rates = st.text_input(
                "Learning rates", ", ".join(f"{r:g}" for r in preset.optimiser.learning_rates), key=f"compare rates {name}", width=140, **_KEPT,
                help="Several, separated by commas: each arm is then also compared at its own best rate.",
            )  # fmt: skip
    return spec_from(
        {
            "name": f"Decoder of width {model['width']}, {words.count(steps)} steps",
            "arms": [asdict(ARMS["baseline"]), *({**asdict(ARMS[arm]), "every": ARMS[arm].every and int(every)} for arm in arms)],
            "model": model,
            "data": data,
            "batch_size": batch_size,
            "steps": int(steps),
            "seeds": list(range(1, int(seeds) + 1)),
            "optimiser": {
                "name": optimiser,
                "learning_rates": [_rate(part) for part in rates.split(",") if part.strip()],
                "warmup_steps": min(50, int(steps) // 10),
            },
        }
    )


def _rate(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text.strip()  # the spec says what is wrong with it


def _model_and_text(preset: Spec) -> tuple[dict, dict, int]:
    m = preset.model
    with st.container(horizontal=True, gap="medium"):
        width = st.number_input("Width", 8, 8192, m.width, step=8, key="compare width", width=120, **_KEPT)
        layers = st.number_input("Layers", 1, 200, m.n_layers, key="compare layers", width=110, **_KEPT)
        heads = st.number_input("Query heads", 1, 256, m.n_heads, key="compare heads", width=120, **_KEPT)
        kv = st.number_input("KV heads", 1, 256, m.n_kv_heads, key="compare kv", width=110, **_KEPT)
        context = st.number_input("Context", 8, 8192, preset.data.context, step=32, key="compare context", width=120, **_KEPT)
        batch_size = st.number_input("Batch", 1, 1024, preset.batch_size, key="compare batch", width=110, **_KEPT)
    with st.container(horizontal=True, gap="medium"):
        source = st.selectbox("Text", list(_SOURCES), key="compare source", format_func=_SOURCES.get, width=260, **_KEPT)
        path = st.text_input("Path on this machine", key="compare path", width=320, **_KEPT) if source != "bundled" else ""
        column = st.text_input("Column", "text", key="compare column", width=140, **_KEPT) if source == "jsonl" else "text"
    model = {"width": int(width), "n_layers": int(layers), "n_heads": int(heads), "n_kv_heads": int(kv), "mlp_width": 3 * int(width)}
    return model, {"source": source, "path": path.strip(), "column": column, "context": int(context)}, int(batch_size)


def _estimate(spec: Spec) -> Estimate:
    workers = executor.cores()
    found = estimate(spec, workers, seconds_per_step=0.0)
    if found.fits:
        found = estimate(spec, workers, cached.seconds_per_step(spec))
    with st.container(horizontal=True, gap="medium"):
        st.metric("Runs", words.count(found.n_cells), width=140)
        st.metric("Time, about", duration(found.seconds) if found.fits else "–", width=140)
        st.metric("Memory, about", words.size(found.memory_bytes), width=140)
        st.metric("Parameters", words.parameters(found.n_parameters).removesuffix(" parameters"), width=140)
        st.metric("Seeds needed", words.count(found.seeds_needed), width=140)
    enough = "enough" if len(spec.seeds) >= found.seeds_needed else "fewer, so a difference of that size may well be missed"
    st.markdown(
        f":small[:gray[Seeing a true difference of {found.effect_nats:g} nats, the paper's on TinyLlama, four times "
        f"out of five takes "
        f"{found.seeds_needed} seeds at {words.count(spec.steps)} steps, if paired differences spread as they did "
        f"before "
        f"({found.spread_nats:.3f} nats). {words.plural(len(spec.seeds), 'seed')} planned: {enough}. Fewer than 4 "
        f"conclude nothing, 4 to 7 are "
        f"preliminary. Time is for {words.plural(found.workers, 'process', 'processes')}, at the pace of a few steps just taken.]]"
    )
    if not found.fits:
        free = words.size(found.free_bytes or 0)
        st.markdown(f"This needs {words.size(found.memory_bytes)} of memory and {free} are free. Make the model, the batch or the context smaller.")
    return found


def duration(seconds: float) -> str:
    """ "45 s", "6 min", "2 h 5 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
