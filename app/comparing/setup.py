"""Setting up a comparison: what is compared, how long it will take, and what it will be able to see."""

import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from wisca_app import cached, state
from wisca_app.comparing import asking, fields
from wisca_app.figures import compare, words
from wisca_app.messages import errors_as_messages, plain
from wisca_app.parts import KEPT, number, one_of, pick, primary, quiet
from wisca_core import jobs, storage
from wisca_core.comparison import execution_plan, folder
from wisca_core.comparison.data import check_text
from wisca_core.comparison.estimate import GPU_FLOPS, Estimate, duration, estimate
from wisca_core.comparison.presets import ARMS, LORA_ARMS, PRESETS, twin_of
from wisca_core.comparison.report import unit
from wisca_core.comparison.spec import OPTIMISERS, Arm, Spec
from wisca_core.comparison.spec_reading import spec_from
from wisca_core.comparison.spec_rules import EVERY, N_PILOT_SEEDS, N_SEEDS, RATE
from wisca_core.errors import SpecError, WiscaError
from wisca_core.methods import method

_PRESETS = {"default": "Default", "dose": "Dose and response", "thorough": "Thorough"}
_OPTIMISERS = {"adamw": "AdamW", "sgd": "SGD with momentum", "muon": "Muon"}


def draw() -> None:
    st.markdown(
        "Every arm trains the same model from the same seed on the same data; only the differences of a seed count. "
        "The number of seeds is fixed before the start, because looking first and adding later misleads."
    )
    slots: dict[str, DeltaGenerator] = {}
    try:
        spec, executor, workers = _draw_form(slots)
        check_text(spec)
        cached.comparison_facts(spec)
    except WiscaError as error:
        with fields.place(error, slots):
            plain(fields.sentence(error))
        st.markdown(f":material/error: **{fields.pointer(error)}**")
        return
    with errors_as_messages("This comparison cannot be estimated"):
        # a Ray cluster is asked for its size by the job; until then the time is that of this machine alone
        way = execution_plan.choose(spec, "auto" if executor == "ray" else executor, workers)
        found = _estimate(spec, way)
        is_complete = spec.model.source != "paper" or _has_tokenizer(spec)
        if st.button(
            "Start the comparison", type=primary(), disabled=not (found.fits and is_complete), key="compare start"
        ):
            start(spec, executor, workers)
        _explain(spec, found, f"{way.in_words}{' here, not for the cluster' if executor == 'ray' else ''}")


def start(spec: Spec, executor: str = "auto", workers: int | None = None) -> None:
    place = folder.create(folder.new_place(spec.name), spec)
    go_on(place, executor, workers)
    state.note("comparison to show", place.name)
    state.rerun()


def go_on(place: Path, executor: str = "auto", workers: int | None = None) -> None:
    """Train what is not finished, in the background; "auto" is the way in which it began. Raises OutputRefused where
    that is being done.
    """
    title = f"Compare: {folder.read(place).spec.name}"
    jobs.start(
        "compare",
        {"comparison": str(place), "workers": workers, "executor": executor},
        title,
        exclusive=f"compare {place}",
    )


def _draw_form(slots: dict[str, DeltaGenerator]) -> tuple[Spec, str, int | None]:
    """The spec, the executor, the number of processes. ``slots``: gains the place for what is wrong with an arm, a
    field in the open (""), and those of each fold, above its header so that it is seen where the fold is closed.

    No number is bounded by its widget: Streamlit keeps a number out of bounds in the browser and goes on with the one
    before. The rules of the spec judge all of them.
    """
    with st.container(border=True):
        source = asking.source()
        preset = _preset(source)
        name = preset.name
        above = st.container()  # which arms there are depends on the model, which is drawn below
        slots[""] = st.container()
        below = st.container()
        slots[fields.MODEL] = st.container()
        with st.expander(fields.MODEL, key=f"compare_model_{source}", expanded=source not in ("decoder", "lora")):
            asked = asking.model_and_text(source, preset)
        slots[fields.HOW] = st.container()
        with st.expander(fields.HOW, key=f"compare_how_{source}"):
            trained, executor, workers = asking.how(source)
        with above:
            arms = _arms(source, preset, asked)
            slots[fields.ARMS] = st.container()
            with st.container(horizontal=True, gap="medium"):
                every = number("Rescale every, steps", _every(preset), f"compare every {name}", 150)
                seeds = number("Seeds", len(preset.seeds), f"compare seeds {name}", 84)
                steps = number("Steps", preset.steps, f"compare steps {name}", 126, step=100)
                optimiser = pick("Optimiser", OPTIMISERS, "compare optimiser", said=_OPTIMISERS, width=176)
                rates = st.text_input(
                    "Learning rates",
                    ", ".join(f"{r:g}" for r in preset.optimiser.learning_rates),
                    key=f"compare rates {name}",
                    width=140,
                    **KEPT,
                    help="Several, separated by commas. Pilot runs choose each arm's best among them, and go on to "
                    "higher or "
                    "lower ones while the best is an end of them.",
                )
                pilot = number(
                    "Pilot seeds",
                    len(preset.pilot.seeds),
                    f"compare pilot {name}",
                    110,
                    help="Seeds that only choose the rates; they are not tested. With none, every arm is tested at "
                    "every rate.",
                )
                effect = number(
                    "Effect to see, nats",
                    preset.detect_nats,
                    f"compare effect {name}",
                    150,
                    step=0.001,
                    format="%.6g",
                    help="The smallest true difference you would want to notice, in nats a byte (with a tokenizer: a "
                    "token). The paper's on TinyLlama is 0.044 a "
                    "token in training loss, with LoRA 0.007: other units, so no more than an order of size.",
                )
        with below:
            slots[fields.OWN] = st.container()
            own = asking.own_arm(source, every)
    for rule, value, field in (
        (EVERY, every, "every"),
        (N_SEEDS, seeds, "seeds"),
        (N_PILOT_SEEDS, pilot, "pilot.seeds"),
    ):
        rule.read(value, field)
    asking.check(asked, workers)
    arms = [{**asdict(arm), "every": arm.every and every} for arm in arms]
    if every >= steps > 0 and any(arm["every"] for arm in [*arms, *own]):
        with slots[""]:
            quiet(
                f"Rescale every {words.count(every)} steps in a run of {words.count(steps)}: after the start it never "
                "happens."
            )
    if optimiser == "sgd":  # its momentum follows a change of basis; the squares of the others cannot
        arms = [arm if method(arm["method"]).by_factors else {**arm, "optimizer_state": "transport"} for arm in arms]
    spec = spec_from(
        {
            **asked,
            **trained,
            "name": f"{asking.title(asked['model'])}, {words.count(steps)} steps"[:120],
            "arms": [asdict(ARMS["baseline"]), *arms, *own],
            "steps": steps,
            "seeds": list(range(1, seeds + 1)),
            "detect_nats": effect,
            "useful_nats": preset.useful_nats,
            "pilot": _pilot(pilot, seeds, arms, preset),
            "optimiser": {
                "name": optimiser,
                "learning_rates": _rates(rates),
                "warmup_steps": min(preset.optimiser.warmup_steps, steps // 10),
                "weight_decay": preset.optimiser.weight_decay,
            },
        }
    )
    return spec, executor, workers


def _pilot(n: int, n_seeds: int, arms: list[dict], preset: Spec) -> dict:
    """Pilot seeds behind the tested ones, for the baseline and the first arm that balances, as the presets have it."""
    if not n:
        return {}
    known = [arm["name"] for arm in arms]
    more = [name for name in preset.pilot.arms if name in known] or [a["name"] for a in arms if a["kind"] == "balance"][
        :1
    ]
    first = max(100, n_seeds)
    return {"seeds": list(range(first + 1, first + n + 1)), "arms": ["baseline", *more]}


def _preset(source: str) -> Spec:
    if source == "lora":
        return PRESETS["lora"]
    if source == "paper":
        return PRESETS[asking.paper_setup()]
    return PRESETS[one_of("Start from", _PRESETS, "compare preset", default="default")]


def _arms(source: str, preset: Spec, asked: dict) -> list[Arm]:
    """The known arms chosen beside the baseline."""
    known = LORA_ARMS if source == "lora" else ARMS
    like = replace(
        preset,
        model=replace(preset.model, **{k: v for k, v in asked["model"].items() if k in ("n_kv_heads", "source")}),
    )
    offered = [arm for arm in known if arm != "baseline" and not twin_of(arm, like)]
    one_rate = asking.shares_a_rate(source)
    if one_rate:
        offered = [arm for arm in offered if known[arm].kind != "rates"]
    chosen = st.multiselect(
        "Arms beside the baseline",
        offered,
        default=[a.name for a in preset.arms if a.kind != "none" and a.name in offered],
        key=f"compare arms {preset.name}",
        format_func=lambda arm: compare.label(replace(known[arm], every=None) if arm == "wisca" else known[arm]),
        **KEPT,
        help="Placebo: factors of 1.001 in turn, which change rounding only. Inverse: each pair is held as far out of "
        "balance again as it began. "
        "Gram: the full change of basis of a head (or of A and B) instead of one factor.",
    )
    if one_rate:
        quiet(f"No arm of learning rates alone here: {words.markdown_text(one_rate)}.")
    return [known[arm] for arm in chosen]


def _every(preset: Spec) -> int:
    return next((arm.every for arm in preset.arms if arm.kind == "balance" and arm.every), 25)


def _rates(text: str) -> list[float]:
    """Of a text with commas between them. Raises SpecError with what was written."""
    name = "optimiser.learning_rates"
    decimal = re.search(r"(?<![\w.+-])(\d+),(\d+(?:[eE][+-]?\d+)?)(?![\w.])", text)
    if decimal:
        point = f"{decimal[1]}.{decimal[2]}"
        raise SpecError(name, decimal[0], f"{point}, with a point, or two rates with a comma and a space between them")
    out = []
    for part in filter(None, map(str.strip, text.split(","))):
        apart = re.findall(r"[^\s;]+", part)
        if apart != [part]:
            raise SpecError(name, part, f"a comma between two rates: {', '.join(apart)}")
        try:
            rate = float(part)
        except ValueError:
            rate = None
        if not RATE.fits(rate):
            raise SpecError(name, part, RATE.allowed)
        out.append(rate)
    return out


def _estimate(spec: Spec, way: execution_plan.ExecutionPlan) -> Estimate:
    """What it takes, and whether it fits."""
    found = estimate(spec, way.workers, cached.seconds_per_step, cached.comparison_facts(spec), way)
    with st.container(horizontal=True, gap="medium"):
        st.metric("Runs", words.count(found.n_cells), width=140)
        st.metric("Time, about" if found.is_measured else "Time here, reckoned", duration(found.seconds), width=140)
        st.metric("Memory, about", words.size(found.memory_bytes), width=140)
        st.metric("Parameters", words.parameters(found.n_parameters).removesuffix(" parameters"), width=140)
        st.metric("Seeds needed", words.count(found.seeds_needed), width=140)
    if not found.fits:
        free = words.size(found.free_bytes or 0)
        st.markdown(
            f"This needs {words.size(found.memory_bytes)} of memory and {free} are free. Make the model, the batch or "
            "the context smaller."
        )
    return found


def _explain(spec: Spec, found: Estimate, on: str) -> None:
    """What the figures rest on. ``on``: what the time is for."""
    enough = (
        "enough" if len(spec.seeds) >= found.seeds_needed else "fewer, so a difference of that size may well be missed"
    )
    pace = (
        "at the pace of a few steps just taken"
        if found.is_measured
        else f"reckoned, not measured: {found.flops_per_second / 1e9:.0f} GFLOP/s a thread, half of what a matrix "
        "product reaches here"
    )
    trained = (
        f" {words.count(found.n_trained)} of the parameters are trained."
        if found.n_trained < found.n_parameters
        else ""
    )
    quiet(
        f"{words.markdown_text(found.title)}.{trained} Seeing a true difference of {found.effect_nats:g} {unit(spec)} "
        "four times out of "
        f"five takes {words.plural(found.seeds_needed, 'seed')} at {words.count(spec.steps)} steps, if paired "
        "differences spread as they "
        f"did before ({found.spread_words}). "
        f"{words.plural(len(spec.seeds), 'seed')} planned: {enough}. Fewer than 4 conclude nothing, 4 to 7 are "
        "preliminary. "
        f"Time is for {on}, {pace}."
    )
    if not found.is_measured:
        st.markdown(
            f"On one GPU that trains at {GPU_FLOPS / 1e12:.0f} TFLOP/s all runs would take about "
            f"{duration(found.gpu_seconds)}, one after the other, and "
            f"{words.size(found.gpu_bytes)} of its memory. That rate is an assumption: nothing was run."
        )
    kept = f"{'with' if spec.save_weights else 'without'} the final weights of every run"
    free = words.size(shutil.disk_usage(storage.folder("comparisons")).free)
    quiet(f"Disk: about {words.size(found.disk_bytes)} {kept}; {free} are free there.")


def _has_tokenizer(spec: Spec) -> bool:
    """Says what one has to have for a set-up of the paper; whether its tokenizer is there."""
    from wisca_core.comparison.paper import SETUPS
    from wisca_core.comparison.tokens import tokenizer_folder

    setup = SETUPS[spec.model.setup]
    st.markdown(
        f"It needs the tokenizer of {words.markdown_text(setup.hub_id)} in a folder of this machine, TinyStories (from "
        "the hub through the library "
        "datasets, or as a JSONL file here), and a GPU of that size. Steps, batch and rate are not the paper's, which "
        "are not restated here."
    )
    try:
        return bool(tokenizer_folder(spec))
    except SpecError as error:
        plain(str(error))
        return False
