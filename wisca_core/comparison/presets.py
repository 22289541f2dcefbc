"""Arms and comparisons with a name: what may be asked for in one word."""

from dataclasses import replace
from pathlib import Path

from wisca_core.comparison.paper import SETUPS
from wisca_core.comparison.spec import Arm, DataSpec, ModelSpec, OptimiserSpec, PilotSpec, Spec
from wisca_core.comparison.spec_checks import check_spec, effect, partition_by_spec
from wisca_core.errors import SpecError
from wisca_core.pairs import DEFAULT_PAIRS

# Names with a meaning of their own: an arm may be written as one of these words.
ARMS: dict[str, Arm] = {
    "baseline": Arm("baseline", kind="none"),
    "wisca": Arm("wisca"),
    "init_only": Arm("init_only", every=None),
    "qk_only": Arm("qk_only", pairs=("qk",)),
    "vo_only": Arm("vo_only", pairs=("vo",)),
    "group": Arm("group", granularity="group"),
    "channel": Arm("channel", granularity="channel"),
    "l2": Arm("l2", norm="l2"),
    "state_left": Arm("state_left", optimizer_state="leave"),
    # Adam's squares of single gradients cannot follow a change of basis, so the state stays as it is
    "gram": Arm("gram", optimizer_state="leave", method="gram"),
    "placebo": Arm("placebo", kind="placebo"),
    "inverse": Arm("inverse", kind="inverse"),
    # what a trainer that clips as ever would get from WISCA's learning rates
    "rates": Arm("rates", kind="rates", clip_norm="plain", rate_of="wisca"),
    # what tells the two apart: in law it is WISCA
    "rates_weighted": Arm("rates_weighted", kind="rates", rate_of="wisca"),
    "inverse_rates": Arm("inverse_rates", kind="rates", clip_norm="plain", strength=-1.0),
}
# The same for adapters on a frozen base, which therefore is balanced once and stays so.
LORA_ARMS: dict[str, Arm] = {
    "baseline": ARMS["baseline"],
    "lora_ab": Arm("lora_ab", pairs=("lora",)),
    "base": Arm("base", every=None),
    "base_and_ab": Arm("base_and_ab", pairs=(*DEFAULT_PAIRS, "lora")),
    "lora_gram": Arm("lora_gram", pairs=("lora",), optimizer_state="leave", method="gram"),
    "lora_channel": Arm("lora_channel", pairs=("lora",), granularity="channel"),
    "lora_placebo": Arm("lora_placebo", kind="placebo", pairs=("lora",)),
    # a balance of A and B is a ratio of their rates: this one, and the other way round, as LoRA+ has it
    "lora_rates": Arm("lora_rates", kind="rates", pairs=("lora",), clip_norm="plain", rate_of="lora_ab"),
    "lora_rates_inverse": Arm("lora_rates_inverse", kind="rates", pairs=("lora",), clip_norm="plain", strength=-1.0),
}
KNOWN_ARMS = ARMS | LORA_ARMS

# The arms of a comparison that names none.
BASE = ("baseline", "wisca", "rates")
LORA_BASE = ("baseline", "lora_ab", "lora_rates", "lora_rates_inverse")


def _of_paper(name: str) -> Spec:
    return Spec(
        name,
        ModelSpec(source="paper", setup=name),
        DataSpec("hub", "hub:roneneldan/TinyStories", tokens="tokenizer", context=512),
        OptimiserSpec(learning_rates=(4e-4,), warmup_steps=500),
        (ARMS["baseline"], replace(ARMS["wisca"], every=250)),
        steps=20_000,
        batch_size=8,
    )


# Strengths of the balance, of both signs and beyond full: minus one is the same the other way.
_STRENGTHS = {"minus_1": -1.0, "minus_half": -0.5, "half": 0.5, "full": 1.0, "one_and_half": 1.5}
_DOSES = tuple(Arm(name, kind="rates", clip_norm="plain", strength=strength) for name, strength in _STRENGTHS.items())

# pilot and test together within ten minutes on two quiet cores
_DEFAULT = Spec(
    "default",
    arms=tuple(ARMS[name] for name in BASE),
    optimiser=OptimiserSpec(learning_rates=(2e-3, 4e-3, 8e-3)),
    pilot=PilotSpec((101, 102, 103), ("baseline", "wisca")),
    seeds=tuple(range(1, 9)),
    steps=500,
    evaluate_every=50,
    save_weights=False,
)
PRESETS: dict[str, Spec] = {
    "default": _DEFAULT,
    "dose": replace(
        _DEFAULT, name="dose", arms=(ARMS["baseline"], *_DOSES), pilot=PilotSpec((101, 102, 103), ("baseline",))
    ),
    "thorough": replace(
        _DEFAULT,
        name="thorough",
        arms=tuple(ARMS[n] for n in (*BASE, "rates_weighted", "inverse_rates", "init_only", "placebo")),
        optimiser=OptimiserSpec(learning_rates=(2e-3, 4e-3, 8e-3, 16e-3)),
        pilot=PilotSpec((101, 102, 103, 104), ("baseline", "wisca")),
        seeds=tuple(range(1, 21)),
        steps=1200,
        evaluate_every=100,
    ),
    "lora": Spec(
        "lora",
        ModelSpec(source="lora"),
        DataSpec(tokens="tokenizer"),
        OptimiserSpec(learning_rates=(1e-3, 3e-3, 1e-2, 3e-2), warmup_steps=20, weight_decay=0.0),
        tuple(LORA_ARMS[name] for name in LORA_BASE),
        pilot=PilotSpec((101, 102), ("baseline", "lora_ab")),
        seeds=tuple(range(1, 9)),
        steps=300,
        detect_nats=0.007,
        useful_nats=0.003,
        save_weights=False,
    ),
    **{name: _of_paper(name) for name in SETUPS},
}


def with_model(spec: Spec, model: str | Path | None) -> Spec:
    """A preset with the folder it leaves open: the model of LoRA, the tokenizer of a set-up of the paper. Raises
    SpecError.
    """
    if model is not None and spec.model.source == "paper":
        return check_spec(replace(spec, data=replace(spec.data, tokenizer=str(Path(model).absolute()))))
    if model is not None and spec.model.source == "decoder":
        raise SpecError("model", str(model), "nothing: this preset has a model of its own")
    if model is not None:
        spec = replace(spec, model=replace(spec.model, path=str(Path(model).absolute())))
    return check_spec(spec)


def twin_of(name: str, spec: Spec) -> str:
    """The name of an earlier known arm that does the same in this comparison, "" where there is none."""
    arms = LORA_ARMS if spec.model.source == "lora" else ARMS
    use = partition_by_spec(spec)
    wanted = effect(arms[name], spec, use)
    first = next(other for other, arm in arms.items() if effect(arm, spec, use) == wanted)
    return first if first != name else ""
