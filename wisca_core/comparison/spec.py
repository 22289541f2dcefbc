"""What a comparison is, as a value: model, data, arms, optimiser, steps and seeds.

Each field stands here with its default and with what it may be (``spec_rules``). ``spec_reading`` makes a spec from a
file or from plain values, ``spec_checks`` says whether its parts fit together, ``presets`` holds the arms and
comparisons with a name.
"""

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from wisca_core.comparison.paper import SETUPS
from wisca_core.comparison.spec_rules import (
    DEVICE,
    EVERY,
    GRANULARITY,
    MODULE,
    NAME,
    NOTE,
    OTHER,
    PAIR_LIST,
    RATE,
    SEED,
    START,
    STOP,
    TEXT,
    TITLE,
    WHEN,
    YES_NO,
    ListOf,
    number,
    of,
    one_of,
    whole,
)
from wisca_core.methods import NAMES as METHODS
from wisca_core.pairs import DEFAULT_PAIRS, PAIRS
from wisca_core.planning.options import PLAN_NORMS

FORMAT, VERSION = "wisca-comparison", 1

KINDS = ("none", "balance", "rates", "placebo", "inverse")
CLIP_NORMS = ("weighted", "plain")
OPTIMISERS = ("adamw", "sgd", "muon")
SCHEDULES = ("cosine", "constant")
SOURCES = ("bundled", "text", "jsonl", "hub")
MODELS = ("decoder", "paper", "shrunk", "whole", "lora")
MOST_BYTES = 2 << 30  # of text, held in memory
PRECISIONS = ("float32", "bfloat16", "float64")


@dataclass(frozen=True)
class ModelSpec:
    """Which model every cell trains; the same seed gives every arm the same one.

    ``source``: "decoder", a Llama-style decoder from scratch of the sizes here (``mlp_width``: of the gated MLP;
    ``init_std``: of every matrix); "paper", the set-up ``setup`` of ``paper.SETUPS``; "shrunk", the config of the model
    at ``path`` made ``width`` wide and ``n_layers`` deep, from scratch; "whole", that config as it is, its ``weights``
    "fresh" or "continued"; "lora", adapters on its frozen weights.
    """

    width: int = of(64, whole(4, 65536))
    n_layers: int = of(4, whole(1, 1000))
    n_heads: int = of(8, whole(1, 1024))
    n_kv_heads: int = of(1, whole(1, 1024))
    mlp_width: int = of(192, whole(1, 10**6))
    init_std: float = of(0.02, number(0, 1, above=True))  # what transformers takes
    source: str = of("decoder", one_of(*MODELS))
    path: str = of("", TEXT)
    setup: str = of("", one_of("", *SETUPS))
    weights: str = of("fresh", one_of("fresh", "continued"))

    @property
    def is_trained_before(self) -> bool:
        """Whether training goes on from weights that are there already."""
        return self.source == "lora" or self.weights == "continued"


@dataclass(frozen=True)
class LoraSpec:
    """The adapters of a model with source "lora". ``r``: rank; the product B A is scaled by alpha / r, with ``rslora``
    by alpha / sqrt(r). ``targets``: names of linear layers, none for all projections of the attention. ``init``: of A,
    "kaiming" (uniform, as LoRA's own code) or "gaussian"; B begins at zero.
    """

    r: int = of(8, whole(1, 4096))
    alpha: float = of(16.0, number(0, 1e6, above=True))
    targets: tuple[str, ...] = of((), ListOf(MODULE))
    rslora: bool = of(False, YES_NO)
    init: str = of("kaiming", one_of("kaiming", "gaussian"))


@dataclass(frozen=True)
class DataSpec:
    """``source``: "bundled" (the text of Python's own standard library), "text" (one file), "jsonl" (``column`` of one)
    or "hub" (``column`` of the ``split`` of a data set, ``path`` = hub:owner/name[@revision], ``subset`` where it has
    several). ``tokens``: "bytes", or "tokenizer", that of the model's folder or of the folder ``tokenizer``.
    ``context``: tokens a window; ``validation_windows``: windows spread evenly over the held-out text, for the curves;
    ``final_windows``: the same for the final loss, at most as many as the text holds side by side (one difference on 64
    windows carries a standard error of 0.006 nats, on 800 of 0.002); ``max_bytes`` of text are read, 0 for all.
    """

    source: str = of("bundled", one_of(*SOURCES))
    path: str = of("", TEXT)
    column: str = of("text", TEXT)
    context: int = of(128, whole(2, 131072))
    validation_windows: int = of(64, whole(1, 100_000))
    final_windows: int = of(800, whole(1, 1_000_000))
    tokens: str = of("bytes", one_of("bytes", "tokenizer"))
    tokenizer: str = of("", TEXT)
    split: str = of("train", TEXT)
    subset: str = of("", TEXT)
    max_bytes: int = of(0, whole(0, MOST_BYTES))


@dataclass(frozen=True)
class OptimiserSpec:
    """``learning_rates``: every arm is trained at each, or with pilot seeds the grid they begin with. ``warmup_steps``:
    a spec that names none has a tenth of its steps, at most 50. ``momentum``: of sgd and muon. ``weight_decay``: on
    matrices, decoupled; sgd has none, because a decay folded into the gradient does not follow a rescale. Muon takes
    the matrices of the layers, AdamW the rest, both at the learning rate. ``clip``: the norm that gradients are clipped
    to, 0 for no clipping; ``epsilon``: of AdamW.
    """

    name: str = of("adamw", one_of(*OPTIMISERS))
    learning_rates: tuple[float, ...] = of((1e-3,), ListOf(RATE))
    schedule: str = of("cosine", one_of(*SCHEDULES))
    warmup_steps: int = of(50, whole(0, 10**9))
    weight_decay: float = of(0.1, number(0, 10))
    momentum: float = of(0.9, number(0, 0.9999))
    clip: float = of(1.0, number(0, 1e9))
    epsilon: float = of(1e-8, number(0, 1))


@dataclass(frozen=True)
class Arm:
    """One treatment. ``kind``: "none" (baseline), "balance" (WISCA), "rates" (the learning rates that a balance comes
    to, on weights that are never touched: see ``training.rates``), "placebo" (factors 1.001 and 1/1.001 in turn:
    numerical noise only), "inverse" (each pair is held as far out of balance again as it began, on the same schedule: a
    change of the same size the other way). ``every``: optimiser steps between rescales, None only at the start.
    ``pairs``: of qk, vo, mlp and, with LoRA, lora (A against B, left alone while B is zero). ``method``: "wisca", one
    factor, or "gram", of VO and LoRA pairs the full change of basis that makes the two Gram matrices equal.
    ``strength``: any real number, of the weights as they would be had nothing been rescaled: 1 balances, 0 does
    nothing, -1 is the same the other way. ``clip_norm``, of a rates arm: what clipping looks at, "weighted" (each
    gradient as the rescaled model would have it, so that the arm is WISCA but for rounding) or "plain" (what a
    trainer's own clipping looks at). ``rate_of``: with a pilot, the arm whose chosen rate this one is trained at; where
    there is none, its own, and where it had no pilot either, the baseline's. ``granularity``: one word, or of some
    pairs their own ("qk=channel,vo=tensor"). ``when``: a pair is left as it is until one side is at least so many times
    heavier than the other. ``start``, ``stop``: steps, or fractions of the run. The rest are the options of a live
    rescale.
    """

    name: str = of(MISSING, NAME)
    kind: str = of("balance", one_of(*KINDS))
    every: int | None = of(25, EVERY)
    at_start: bool = of(True, YES_NO)
    pairs: tuple[str, ...] = of(DEFAULT_PAIRS, PAIR_LIST)
    granularity: str = of("tensor", GRANULARITY)
    norm: str = of("l1", one_of(*PLAN_NORMS))
    strength: float = of(1.0, number(-100, 100))
    exact: bool = of(False, YES_NO)
    optimizer_state: str = of("transport", one_of("transport", "leave"))
    method: str = of("wisca", one_of(*METHODS))
    clip_norm: str = of("weighted", one_of(*CLIP_NORMS))
    when: float | None = of(None, WHEN)
    start: int | float = of(0, START)
    stop: int | float | None = of(None, STOP)
    rate_of: str = of("", OTHER)

    @property
    def does(self) -> tuple:
        """Everything but the name and where its rate comes from: arms that agree in it are one arm."""
        return (self.kind,) if self.kind == "none" else tuple(getattr(self, f.name) for f in fields(self))[1:-1]


@dataclass(frozen=True)
class PilotSpec:
    """Runs beforehand that choose learning rates, on seeds of their own, so that the tested seeds know nothing of the
    choice. ``seeds``: none for no pilot of its own; ``arms``: names, none for all; ``added_rates``: by how many rates
    each arm's grid may grow while its best rate is at an end of it. ``source``: the folder of a comparison whose pilot
    has chosen already; its finished runs that are runs of this comparison too are taken over.
    """

    seeds: tuple[int, ...] = of((), ListOf(SEED))
    arms: tuple[str, ...] = of((), ListOf(NAME))
    added_rates: int = of(4, whole(0, 20))
    source: str = of("", TEXT)


@dataclass(frozen=True)
class Spec:
    """One comparison. ``evaluate_every``: steps between validation losses, 0 for a twentieth of the run and one early;
    ``save_weights``: keep every cell's final weights as a model folder; ``detect_nats``: the effect one wants to be
    able to see; ``useful_nats``: a gain below this is of no use to the reader (the rule of the answer, see ``report``);
    ``note``: what a reader must know of how this comparison came about, shown with its result.
    ``device``: "auto" (every CUDA GPU of the machine, else the CPU), "cpu", "cuda" or "cuda:N";
    ``precision``: of the training step: "float32", "bfloat16" (autocast over float32 weights) or "float64";
    validation is never autocast. ``processes_per_cell``: over 1 spreads each cell over so many processes (GPUs).
    """

    name: str = of("comparison", TITLE)
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    optimiser: OptimiserSpec = OptimiserSpec()
    arms: tuple[Arm, ...] = ()
    steps: int = of(1200, whole(1, 10**9))
    batch_size: int = of(4, whole(1, 10**6))
    seeds: tuple[int, ...] = of((1, 2, 3, 4), ListOf(SEED))
    evaluate_every: int = of(0, whole(0, 10**9))
    log_every: int = of(10, whole(1, 10**9))
    save_weights: bool = of(True, YES_NO)
    detect_nats: float = of(0.044, number(0, 100, above=True))
    useful_nats: float = of(0.02, number(0, 100))
    lora: LoraSpec = LoraSpec()
    note: str = of("", NOTE)
    device: str = of("auto", DEVICE)
    precision: str = of("float32", one_of(*PRECISIONS))
    processes_per_cell: int = of(1, whole(1, 1024))
    pilot: PilotSpec = PilotSpec()

    @property
    def baseline(self) -> Arm:
        return next(arm for arm in self.arms if arm.kind == "none")

    @property
    def n_cells(self) -> int:
        """As far as it is known beforehand: a pilot's grid may grow."""
        rates = len(self.optimiser.learning_rates)
        return rates * len(self.pilot_arms) * len(self.pilot.seeds) + self.n_tested

    @property
    def n_tested(self) -> int:
        """Cells of the tested seeds: with a pilot each arm has one rate."""
        rates = 1 if self.has_pilot else len(self.optimiser.learning_rates)
        return len(self.arms) * rates * len(self.seeds)

    @property
    def pilot_arms(self) -> tuple[str, ...]:
        """Names of the arms whose own rates the pilot chooses, none without a pilot."""
        return (self.pilot.arms or tuple(arm.name for arm in self.arms)) if self.pilot.seeds else ()

    @property
    def has_pilot(self) -> bool:
        """Whether pilot runs, its own or another comparison's, choose each arm's rate."""
        return bool(self.pilot.seeds or self.pilot.source)

    @property
    def evaluation_steps(self) -> int:
        return self.evaluate_every or max(1, self.steps // 20)

    @property
    def first_evaluation(self) -> int:
        """After step 0. Early where nobody asked for a spacing: the loss falls fastest there, and a page that is
        watched has a line soon.
        """
        return self.evaluation_steps if self.evaluate_every else max(1, self.evaluation_steps // 6)

    @property
    def watched(self) -> tuple[str, ...]:
        """The pairs whose ratios every run logs: the usual ones, an adapter's, and what any arm has beside them."""
        usual = {*DEFAULT_PAIRS, *(("lora",) if self.model.source == "lora" else ())}
        asked = {pair for arm in self.arms for pair in arm.pairs}
        return tuple(pair for pair in PAIRS if pair in usual | asked)

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
