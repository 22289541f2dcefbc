"""What a comparison is, as a value: model, data, arms, optimiser, steps and seeds.

What a spec leaves out has the default below. ``spec_reading`` makes one from a file or from plain values, ``spec_checks``
says whether its parts fit together, ``presets`` holds the arms and comparisons with a name.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any

from wisca_core.pairs import DEFAULT_PAIRS, PAIRS

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

    width: int = 64
    n_layers: int = 4
    n_heads: int = 8
    n_kv_heads: int = 1
    mlp_width: int = 192
    init_std: float = 0.02
    source: str = "decoder"
    path: str = ""
    setup: str = ""
    weights: str = "fresh"

    @property
    def is_trained_before(self) -> bool:
        """Whether training goes on from weights that are there already."""
        return self.source == "lora" or self.weights == "continued"


@dataclass(frozen=True)
class LoraSpec:
    """The adapters of a model with source "lora". ``r``: rank; the product B A is scaled by alpha / r, with ``rslora`` by
    alpha / sqrt(r). ``targets``: names of linear layers, none for all projections of the attention. ``init``: of A,
    "kaiming" (uniform, as LoRA's own code) or "gaussian"; B begins at zero.
    """

    r: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    rslora: bool = False
    init: str = "kaiming"


@dataclass(frozen=True)
class DataSpec:
    """``source``: "bundled" (the text of Python's own standard library), "text" (one file), "jsonl" (``column`` of one)
    or "hub" (``column`` of the ``split`` of a data set, ``path`` = hub:owner/name[@revision], ``subset`` where it has
    several). ``tokens``: "bytes", or "tokenizer", that of the model's folder or of the folder ``tokenizer``.
    ``context``: tokens a window; ``validation_windows``: windows spread evenly over the held-out text, for the curves;
    ``final_windows``: the same for the final loss, at most as many as the text holds side by side (one difference on 64
    windows carries a standard error of 0.006 nats, on 800 of 0.002); ``max_bytes`` of text are read, 0 for all.
    """

    source: str = "bundled"
    path: str = ""
    column: str = "text"
    context: int = 128
    validation_windows: int = 64
    final_windows: int = 800
    tokens: str = "bytes"
    tokenizer: str = ""
    split: str = "train"
    subset: str = ""
    max_bytes: int = 0


@dataclass(frozen=True)
class OptimiserSpec:
    """``learning_rates``: every arm is trained at each, or with pilot seeds the grid they begin with. ``warmup_steps``: a spec that names none has a tenth of its steps,
    at most 50. ``momentum``: of sgd and muon. ``weight_decay``: on matrices,
    decoupled; sgd has none, because a decay folded into the gradient does not follow a rescale. Muon takes the matrices
    of the layers, AdamW the rest, both at the learning rate. ``clip``: the norm that gradients are clipped to, 0 for no
    clipping; ``epsilon``: of AdamW.
    """

    name: str = "adamw"
    learning_rates: tuple[float, ...] = (1e-3,)
    schedule: str = "cosine"
    warmup_steps: int = 50
    weight_decay: float = 0.1
    momentum: float = 0.9
    clip: float = 1.0
    epsilon: float = 1e-8


@dataclass(frozen=True)
class Arm:
    """One treatment. ``kind``: "none" (baseline), "balance" (WISCA), "rates" (the learning rates that a balance comes to,
    on weights that are never touched: see ``training.rates``), "placebo" (factors 1.001 and 1/1.001 in turn:
    numerical noise only), "inverse" (each pair is held as far out of balance again as it began, on the same schedule: a
    change of the same size the other way). ``every``: optimiser steps between rescales, None only at the start.
    ``pairs``: of qk, vo, mlp and, with LoRA, lora (A against B, left alone while B is zero). ``method``: "wisca", one
    factor, or "gram", of VO and LoRA pairs the full change of basis that makes the two Gram matrices equal. ``strength``: any real
    number, of the weights as they would be had nothing been rescaled: 1 balances, 0 does nothing, -1 is the same the
    other way. ``clip_norm``, of a rates arm: what clipping looks at, "weighted" (each gradient as the rescaled model
    would have it, so that the arm is WISCA but for rounding) or "plain" (what a trainer's own clipping looks at).
    ``rate_of``: with a pilot, the arm whose chosen rate this one is trained at; where there is none, its own, and where
    it had no pilot either, the baseline's. ``granularity``: one word, or of some pairs their own ("qk=channel,vo=tensor").
    ``when``: a pair is left as it is until one side is at least so many times heavier than the other. ``start``, ``stop``:
    steps, or fractions of the run. The rest are the options of a live rescale.
    """

    name: str
    kind: str = "balance"
    every: int | None = 25
    at_start: bool = True
    pairs: tuple[str, ...] = DEFAULT_PAIRS
    granularity: str = "tensor"
    norm: str = "l1"
    strength: float = 1.0
    exact: bool = False
    optimizer_state: str = "transport"
    method: str = "wisca"
    clip_norm: str = "weighted"
    when: float | None = None
    start: int | float = 0
    stop: int | float | None = None
    rate_of: str = ""

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

    seeds: tuple[int, ...] = ()
    arms: tuple[str, ...] = ()
    added_rates: int = 4
    source: str = ""


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

    name: str = "comparison"
    model: ModelSpec = ModelSpec()
    data: DataSpec = DataSpec()
    optimiser: OptimiserSpec = OptimiserSpec()
    arms: tuple[Arm, ...] = ()
    steps: int = 1200
    batch_size: int = 4
    seeds: tuple[int, ...] = (1, 2, 3, 4)
    evaluate_every: int = 0
    log_every: int = 10
    save_weights: bool = True
    detect_nats: float = 0.044
    useful_nats: float = 0.02
    lora: LoraSpec = LoraSpec()
    note: str = ""
    device: str = "auto"
    precision: str = "float32"
    processes_per_cell: int = 1
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
        """After step 0. Early where nobody asked for a spacing: the loss falls fastest there, and a page that is watched
        has a line soon.
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
