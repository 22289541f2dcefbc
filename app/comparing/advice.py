"""What a reader can do with an answer: the rate first, then rates of single matrices, then a rescale."""

import streamlit as st

from wisca_app import state
from wisca_app.figures import words
from wisca_app.parts import quiet
from wisca_core.comparison.folder import Comparison
from wisca_core.comparison.report import Report
from wisca_core.words import signed_number

RULE = (
    "The rule, fixed beforehand: no answer while the baseline is best at an end of the rates tried; “helps” if the "
    "interval "
    "lies below 0; “no useful gain” if it lies above −{useful:g}; else “not settled”."
)


def draw(comparison: Comparison, found: Report, start: dict[str, float]) -> None:
    """``start``: pair -> log2 of the ratio of its norms at the start, median over the layers."""
    spec = comparison.spec
    with st.container(border=True):
        st.subheader("What to do with this", anchor=False)
        todo = steps(found, is_lora=spec.model.source == "lora")
        for number, (column, (what, why)) in enumerate(zip(st.columns(len(todo), gap="medium"), todo), 1):
            column.markdown(f"**{number}\u2002{words.markdown_text(what)}**  \n{why}")
        with st.container(horizontal=True, gap="small"):
            if st.button("Compare at other rates", key="compare other rates"):
                state.note("comparison to show", "new")
                state.rerun()
            if st.button("Open on Rescale", key="compare to rescale"):
                state.go("rescale")
        with st.expander("The rates, to copy", key="compare rates to copy"):
            _to_copy(spec.model.source == "lora", start)
        quiet(RULE.format(useful=spec.useful_nats))


def _to_copy(is_lora: bool, start: dict[str, float]) -> None:
    multipliers = {pair: 2 ** (start[pair] / 2) for pair in ("qk", "vo") if pair in start}
    if is_lora or not multipliers:
        st.markdown("Rates of A and B: the multiplier is the square root of the ratio of their norms, once B is not 0.")
        st.code(LORA_CODE, language="python")
        return
    which = st.segmented_control(
        "For",
        ["PyTorch", "Megatron-Core"],
        default="PyTorch",
        required=True,
        key="compare groups",
        label_visibility="collapsed",
    )
    said_so = f"Rates at the start of these runs: {multipliers_in_words(multipliers)}."
    quiet(f'{said_so} By `by="rates"` they are renewed as training goes.')
    st.code(pytorch(multipliers) if which == "PyTorch" else megatron(multipliers), language="python", wrap_lines=True)


def steps(found: Report, is_lora: bool) -> list[tuple[str, str]]:
    """(what, why) in the order of doing."""
    mean = found.main[0].loss.mean if found.main[0].loss.n else float("nan")
    first = (
        f"{found.decides_more} Balancing changed it by {signed_number(mean, found.digits)}."
        if found.decides_more
        else "Sweep it until the best lies inside the rates you tried. A gain at a rate that is too low can turn into "
        "a loss "
        "at a better one."
    )
    pairs = "A's and B's" if is_lora else "Wq's, Wk's, Wv's and Wo's"
    effect = f"With Adam a rescale is a set of rates: {pairs} own."
    loss = found.main[0].loss
    came_to = f"cost {loss.mean:.{found.digits}f} {found.unit}" if loss.low > 0 else "gained nothing of use"
    ways = 'These groups, or `by="rates"` in the callback, which touches no weight.'
    return [
        ("Tune the rate first", words.markdown_text(first)),
        (
            "Expect no gain of its rates here",
            f"{effect} On these runs that {came_to}; on a model of another shape try it. {ways}",
        )
        if found.answer == "no useful gain"
        else ("For its effect, set the rates", f"{effect} {ways}"),
        (
            "Rescale where the rate is not yours",
            "A fixed optimiser or schedule, quantisation, or adapters that somebody else will train.",
        ),
    ]


def multipliers_in_words(multipliers: dict[str, float]) -> str:
    """ "Wq 2.83×, Wk 0.35×, Wo 2.83×, Wv 0.35×"."""
    parts = []
    if "qk" in multipliers:
        parts += [f"Wq {multipliers['qk']:.2f}×", f"Wk {1 / multipliers['qk']:.2f}×"]
    if "vo" in multipliers:
        parts += [f"Wo {1 / multipliers['vo']:.2f}×", f"Wv {multipliers['vo']:.2f}×"]
    return ", ".join(parts)


def pytorch(multipliers: dict[str, float]) -> str:
    """Parameter groups for ``model``, ``lr`` and ``wd`` of the reader's own; biases go with their matrix."""
    sides = {"q_proj": multipliers.get("qk", 1.0), "k_proj": 1 / multipliers.get("qk", 1.0)}
    sides |= {"v_proj": multipliers.get("vo", 1.0), "o_proj": 1 / multipliers.get("vo", 1.0)}
    shown = ", ".join(f'"{name}": {m:.3g}' for name, m in sides.items() if f"{m:.3g}" != "1")
    return f"""from torch.optim import AdamW

m = {{{shown}}}
groups = {{}}
for name, p in model.named_parameters():
    x = next((m[part] for part in name.split(".") if part in m and not (part == "o_proj" and name.endswith("bias"))), 1.0)
    groups.setdefault((x, p.ndim > 1), []).append(p)
optimizer = AdamW([
    dict(params=ps, lr=x * lr, weight_decay=wd / x if decays else 0.0)
    for (x, decays), ps in groups.items()
], lr=lr)"""  # noqa: E501


def megatron(multipliers: dict[str, float]) -> str:
    """Overrides for Megatron-Core, whose attention keeps q, k and v in one tensor: Wo is what can have a rate of its
    own.
    """
    m = 1 / multipliers.get("vo", 1.0)
    return f"""from megatron.core.optimizer import get_megatron_optimizer, get_standard_config_overrides
from megatron.core.optimizer.optimizer_config import ParamKey
from megatron.core.optimizer_param_scheduler import ParamGroupOverride

# linear_qkv holds q, k and v together, so of these rates only Wo's can be set: half of VO, in the logarithm
x = {m:.3g}
overrides = get_standard_config_overrides(config)
overrides[ParamKey(name="*.self_attention.linear_proj.weight")] = ParamGroupOverride(
    max_lr=x * config.lr, min_lr=x * (config.min_lr or 0.0), wd_mult=1 / x
)
optimizer = get_megatron_optimizer(config, model_chunks, config_overrides=overrides)"""


LORA_CODE = """from torch.optim import AdamW

m = 2.0  # over 1: A faster, as a balance has it while B is small; under 1: B faster, as LoRA+ has it
a = [p for n, p in model.named_parameters() if "lora_A" in n]
b = [p for n, p in model.named_parameters() if "lora_B" in n]
optimizer = AdamW([
    dict(params=a, lr=m * lr, weight_decay=wd / m),
    dict(params=b, lr=lr / m, weight_decay=wd * m),
])"""
