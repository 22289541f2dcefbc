"""What a person chooses for rescaling a live model, checked once, as a value."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from wisca_core.architecture.declaration import Declaration, as_declarations
from wisca_core.errors import BadOption, check_choice
from wisca_core.methods import method
from wisca_core.pairs import DEFAULT_PAIRS
from wisca_core.planning.options import Options, is_number

CHECKS = ("once", "always", "never")


@dataclass(frozen=True)
class Choices(Options):
    """The options of a checkpoint's plan (``Options``), and what only a training run has.

    ``by``: "weights" (the paper's way), or "rates": the weights stay, and the optimiser's steps run at the learning
    rates that amount to it (``rates.py``); ``strength`` may then be any number, and -1 is the inverse.
    ``when``: a pair is left as it is until one side is at least so many times heavier than the other.
    ``optimizer_state``: "transport" continues the same momentum in the new coordinates, "leave" does not touch it.
    ``frozen``: a pair with a parameter that is not trained is left alone ("refuse") or done all the same ("scale").
    ``optimizer_rules``: for classes without a rule, class or its name -> state name -> power of c where W becomes c W
    (-1 for means of gradients, -2 for means of their squares). ``sites``: for a class of your own, declared with
    ``wisca.attention`` and ``wisca.feed_forward``; ``build``: a function that makes a small model of the class to prove
    them on (None: a float64 copy of the model); ``forward``: ``(model, ids)`` calls the model where ``model(ids)`` does
    not. ``check``: outputs before and after on one batch, of the first rescale ("once"), of every one ("always") or of
    none ("never"); ``batch``: what it is called with (a mapping, a tuple, a tensor), None: of a trainer's data, or made
    up. Raises BadOption.
    """

    optimizer_state: str = "transport"
    frozen: str = "refuse"
    by: str = "weights"
    when: float | None = None
    sites: tuple[Declaration, ...] = ()
    build: Callable[[], object] | None = None
    forward: Callable[[object, object], object] | None = None
    check: str = "once"
    batch: object = None
    optimizer_rules: Mapping[object, Mapping[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in (
            ("optimizer_state", ("transport", "leave")),
            ("frozen", ("refuse", "scale")),
            ("by", ("weights", "rates")),
            ("check", CHECKS),
        ):
            check_choice(name, getattr(self, name), allowed)
        if self.when is not None and (not is_number(self.when) or not 1 <= self.when < math.inf):
            raise BadOption(f"when: {self.when!r} was given; a ratio from 1 is needed, such as 1.5, or None.")
        for kind, rule in self.optimizer_rules.items() if isinstance(self.optimizer_rules, Mapping) else [(None, None)]:
            powers = list(rule.values()) if isinstance(rule, Mapping) else ["?"]
            if not isinstance(kind, (type, str)) or any(type(power) is not int for power in powers):
                raise BadOption(
                    f"optimizer_rules: {self.optimizer_rules!r} was given; needed is a class (or its name) and whole "
                    "powers, "
                    'such as {MyAdam: {"exp_avg": -1, "exp_avg_sq": -2}}.'
                )
        if self.by == "rates":
            if self.granularity != "tensor":
                raise BadOption(
                    f"granularity: {self.granularity!r} was given; by='rates' has one rate a parameter, so only "
                    "'tensor'."
                )
            if not method(self.method).by_factors:
                raise BadOption(f"method: {self.method!r} mixes channels and is no set of rates. Use by='weights'.")
        object.__setattr__(self, "sites", as_declarations(self.sites))
        if not self.sites and (self.build is not None or self.forward is not None):
            raise BadOption("build, forward: they prove declared sites; give sites=[wisca.attention(...)] too.")
        if self.sites and not method(self.method).by_factors:
            raise BadOption(
                f"method: {self.method!r} is proved on classes of transformers alone; leave it out with declared sites."
            )

    def _check_strength(self) -> None:
        if self.by != "rates":
            super()._check_strength()
        elif not is_number(self.strength) or not math.isfinite(self.strength):
            raise BadOption(f"strength: {self.strength!r} was given; with by='rates' any finite number.")

    @cached_property
    def options(self) -> Options:
        """The same for a checkpoint's pairs and for the arithmetic; LoRA is not among its pairs."""
        pairs = tuple(pair for pair in self.pairs if pair != "lora") or DEFAULT_PAIRS
        strength = self.strength if self.by == "weights" else 1.0
        by = self.method if method(self.method).by_factors else Options.method  # of the pairs that it leaves
        return Options(pairs, self.granularity, self.norm, strength, self.layers, self.exact, self.exclude, by)


def choices_from(pairs: str | Sequence[str], choices: Mapping) -> Choices:
    """Raises BadOption for an option there is none of."""
    unknown = set(choices) - set(Choices.__dataclass_fields__)
    if unknown:
        raise BadOption(
            f"{', '.join(sorted(unknown))}: there is no such option; there are "
            f"{', '.join(Choices.__dataclass_fields__)}."
        )
    return Choices(pairs=pairs, **choices)
