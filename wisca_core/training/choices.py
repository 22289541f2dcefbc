"""What a person chooses for rescaling a live model, checked once, as a value."""

from dataclasses import dataclass
from functools import cached_property

from wisca_core.architecture.site import DEFAULT_PAIRS, SiteKey
from wisca_core.errors import BadOption
from wisca_core.planning.options import LayerRange, Options, parse_layers

LIVE_PAIRS = (*DEFAULT_PAIRS, "lora")


@dataclass(frozen=True)
class Choices:
    """The options of a checkpoint's plan, and what only a training run has.

    ``pairs``: of qk, vo and lora (rank channels of LoRA's A and B). ``layers``: ranges, or text such as "0-3,7". ``optimizer_state``: "transport" continues the same
    momentum in the new coordinates, "leave" does not touch it. ``frozen``: a pair with a parameter that is not trained
    is left alone ("refuse") or done all the same ("scale"). ``lora``: "rank" (one factor a rank channel or pair) or
    "gram" (A A^T = B^T B, arXiv 2605.31484). ``vo``: "factor", or "gram" (the full change of basis of a KV head that
    makes the Gram matrices of its two sides equal, see ``gram.py``). Raises BadOption.
    """

    pairs: tuple[str, ...] = DEFAULT_PAIRS
    granularity: str = "tensor"
    norm: str = "l1"
    strength: float = 1.0
    layers: tuple[LayerRange, ...] = ()
    exact: bool = False
    exclude: tuple[str, ...] = ()
    optimizer_state: str = "transport"
    frozen: str = "refuse"
    lora: str = "rank"
    vo: str = "factor"

    def __post_init__(self) -> None:
        if isinstance(self.pairs, str):
            raise BadOption(f"pairs: {self.pairs!r} was given; a tuple is needed, such as {DEFAULT_PAIRS!r}.")
        object.__setattr__(self, "pairs", tuple(self.pairs))
        if isinstance(self.layers, str):  # "0-3,7" as on the command line
            object.__setattr__(self, "layers", parse_layers(self.layers))
        unknown = [pair for pair in self.pairs if pair not in LIVE_PAIRS]
        if unknown or not self.pairs:
            raise BadOption(
                f"pairs: {', '.join(map(str, unknown)) or 'nothing'} was given; choose from {', '.join(LIVE_PAIRS)}."
            )
        for name, allowed in (
            ("optimizer_state", ("transport", "leave")),
            ("frozen", ("refuse", "scale")),
            ("lora", ("rank", "gram")),
            ("vo", ("factor", "gram")),
        ):
            if getattr(self, name) not in allowed:
                raise BadOption(f"{name}: {getattr(self, name)!r} was given; choose from {', '.join(allowed)}.")
        if self.lora == "gram" and self.exact:
            raise BadOption(
                "lora='gram' mixes the rank channels, so its factors are no powers of two; leave out exact=True."
            )
        if self.vo == "gram" and (self.exact or self.strength != 1):
            raise BadOption(
                "vo='gram' mixes the channels of a head, by more than factors; leave out exact=True and strength."
            )
        _ = self.options

    @cached_property
    def options(self) -> Options:
        """The same for a checkpoint's pairs and for the arithmetic; LoRA is not among its pairs."""
        pairs = tuple(pair for pair in self.pairs if pair in DEFAULT_PAIRS) or DEFAULT_PAIRS
        return Options(pairs, self.granularity, self.norm, self.strength, self.layers, self.exact, self.exclude)

    def chooses(self, key: SiteKey) -> bool:
        if key.pair not in self.pairs or str(key) in self.exclude:
            return False
        return not self.layers or any(span.holds(key) for span in self.layers)
