"""What a person can choose, checked once, as a value."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from wisca_core.architecture.site import DEFAULT_PAIRS, GRANULARITIES, PAIRS, SiteKey, Sites
from wisca_core.errors import BadOption, check_choice
from wisca_core.methods import NAMES, method

PLAN_NORMS = ("l1", "l2", "max", "rms")


@dataclass(frozen=True)
class LayerRange:
    """Layers ``first`` to ``last``, both included, of one stack ("" = every stack)."""

    first: int
    last: int
    stack: str = ""

    def holds(self, key: SiteKey) -> bool:
        return self.first <= key.layer <= self.last and self.stack in ("", key.stack)

    def __str__(self) -> str:
        span = f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.stack}:{span}" if self.stack else span


@dataclass(frozen=True)
class Options:
    """Defaults are the paper's: QK and VO, one factor a matrix, L1, full balance, at every layer. What a live rescale
    and the arms of a comparison have beyond these is declared where they are.

    ``pairs``: of qk, vo, mlp and lora, names or text such as "qk,vo". ``strength``: 1 balances fully, 0 changes
    nothing. ``exact``: factors are rounded to powers of two. ``layers``: numbers, ranges or text such as "0-3,7"; empty
    means all. ``granularity``: one for all pairs, or a mapping of pairs ({"qk": "channel", "vo": "tensor"}; the others
    "tensor"), kept as the text "qk=channel,vo=tensor". ``exclude``: site names to leave alone. ``method``: of
    ``methods.NAMES``; "gram" gives VO and LoRA pairs the full change of basis that makes the Gram matrices of their two
    sides equal. Raises BadOption.
    """

    pairs: tuple[str, ...] = DEFAULT_PAIRS
    granularity: str = "tensor"
    norm: str = "l1"
    strength: float = 1.0
    layers: tuple[LayerRange, ...] = ()
    exact: bool = False
    exclude: tuple[str, ...] = field(default=())
    method: str = "wisca"

    def __post_init__(self) -> None:
        object.__setattr__(self, "pairs", parse_pairs(self.pairs))
        unknown = [pair for pair in self.pairs if pair not in PAIRS]
        if unknown or not self.pairs:
            raise BadOption(f"pairs: {', '.join(unknown) or 'nothing'} was given; choose from {', '.join(PAIRS)}.")
        object.__setattr__(self, "granularity", parse_granularity(self.granularity))
        check_choice("norm", self.norm, PLAN_NORMS)
        if isinstance(self.exclude, str) or not all(isinstance(name, str) for name in self.exclude):
            raise BadOption(f"exclude: {self.exclude!r} was given; a tuple of site names is needed.")
        object.__setattr__(self, "exclude", tuple(self.exclude))
        object.__setattr__(self, "layers", parse_layers(self.layers))
        if not isinstance(self.exact, bool):
            raise BadOption(f"exact: {self.exact!r} was given; True or False is needed.")
        check_choice("method", self.method, NAMES)
        if misfit := method(self.method).misfit(self):
            raise BadOption(f"method: {self.method!r} was given; {misfit}. Leave one of them out.")
        self._check_strength()

    def _check_strength(self) -> None:
        if not is_number(self.strength) or not 0 <= self.strength <= 1:  # NaN too
            raise BadOption(
                f"strength: {self.strength!r} was given; it lies between 0 (no change) and 1 (full balance)."
            )

    def chooses(self, key: SiteKey) -> bool:
        return (
            key.pair in self.pairs
            and (not self.layers or any(span.holds(key) for span in self.layers))
            and str(key) not in self.exclude
        )

    def asks(self, what: str) -> bool:
        """Whether a refusal of ``what`` (the model, or a site by name) is about something that was asked for."""
        key = _key(what)
        return key is None or self.chooses(key)

    def check_against(self, sites: Sites) -> None:
        """Raises BadOption where a layer or an excluded name is none of this model's, refused ones included, or where
        rank channels are asked of a model and attention of an adapter.
        """
        if not sites.family:
            return
        names = [*(site.name for site in sites.sites), *(r.what for r in sites.refusals)]
        keys = [key for name in names if (key := _key(name)) is not None]
        lora = {key.pair == "lora" for key in keys}
        if len(lora) == 1 and lora.isdisjoint(pair == "lora" for pair in self.pairs):
            has = (
                "LoRA adapter has rank channels: --pairs lora"
                if lora == {True}
                else "model has no adapter in it: give the adapter's own folder"
            )
            raise BadOption(f"pairs: {', '.join(self.pairs)} was asked for; this {has}.")
        self.check_names(names, sites.attention.n_layers if sites.attention else 0)

    def check_names(self, names: Sequence[str], n_layers: int) -> None:
        """Raises BadOption where a layer or an excluded name is none of these, a model's pairs. ``n_layers``: how many
        its config has, those without a pair among them; 0 where it is not known.
        """
        keys = [key for name in names if (key := _key(name)) is not None]
        for span in self.layers:
            if not any(span.holds(key) for key in keys):
                stacks = {key.stack for key in keys}
                has = ", ".join(
                    f"{s} {min(k.layer for k in keys if k.stack == s)}-{max(k.layer for k in keys if k.stack == s)}"
                    for s in sorted(stacks)
                )
                raise BadOption(f"layers: {span} is in no stack of this model; it has {has}.")
            most = max([n_layers - 1, *(k.layer for k in keys if span.stack in ("", k.stack))])
            if span.last > most:
                raise BadOption(f"layers: {span} reaches beyond the last layer of this model, {most}.")
        for name in self.exclude:
            if name not in names:
                raise BadOption(f"exclude: {name!r} is no pair of this model; they are named like {names[0]}.")


def parse_granularity(asked: str | Mapping[str, str]) -> str:
    """The one word, or "qk=channel,vo=tensor" in the order of the pairs. Raises BadOption.

    >>> parse_granularity({"vo": "group", "qk": "channel"}), parse_granularity({"qk": "tensor"})
    ('qk=channel,vo=group', 'tensor')
    """
    if isinstance(asked, str) and asked in GRANULARITIES:
        return asked
    parts = asked
    if isinstance(asked, str):
        parts = dict(part.strip().split("=", 1) for part in asked.split(",") if "=" in part)
        parts = parts if len(parts) == asked.count(",") + 1 else None
    if (
        not isinstance(parts, Mapping)
        or not parts
        or not set(parts) <= set(PAIRS)
        or not all(isinstance(value, str) and value in GRANULARITIES for value in parts.values())
    ):
        raise BadOption(
            f"granularity: {asked!r} was given; choose from {', '.join(GRANULARITIES)}, or one a pair, such as "
            "qk=channel,vo=tensor."
        )
    finer = {pair: parts[pair] for pair in PAIRS if parts.get(pair, "tensor") != "tensor"}
    return ",".join(f"{pair}={parts[pair]}" for pair in PAIRS if pair in parts) if finer else "tensor"


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _key(what: str) -> SiteKey | None:
    """Of a site's name; None for "model" and whole blocks ("encoder.self")."""
    try:
        return SiteKey.parse(what)
    except ValueError:
        return None


def default_pairs(sites: Sites) -> tuple[str, ...]:
    """The pairs that are balanced where none were asked for: the paper's, or all it has of a model without those."""
    keys = [site.key for site in sites.sites] + [key for r in sites.refusals if (key := _key(r.what)) is not None]
    has = tuple(pair for pair in PAIRS if any(key.pair == pair for key in keys))
    return DEFAULT_PAIRS if not has or set(has) & set(DEFAULT_PAIRS) else has


def parse_pairs(asked: str | Iterable[str]) -> tuple[str, ...]:
    """``"qk,vo"``, or the names one by one -> ("qk", "vo"). Raises BadOption."""
    names = asked.split(",") if isinstance(asked, str) else asked
    try:
        return tuple(dict.fromkeys(name.strip().lower() for name in names if name.strip()))
    except (TypeError, AttributeError):
        raise BadOption(f'pairs: {asked!r} was given; names such as "qk,vo" or {DEFAULT_PAIRS!r} are needed.') from None


def parse_layers(asked: str | int | LayerRange | Iterable[int | LayerRange]) -> tuple[LayerRange, ...]:
    """``"0-3,7,encoder:0-3"``, a number, a range or several -> ranges, both ends included. Raises BadOption."""
    if isinstance(asked, str):
        return tuple(_layer_range(part) for part in (p.strip() for p in asked.split(",")) if part)
    spans = (asked,) if isinstance(asked, (int, LayerRange)) else asked
    try:
        out = tuple(LayerRange(s, s) if is_number(s) and isinstance(s, int) and s >= 0 else s for s in spans)
    except TypeError:
        out = (None,)
    if not all(isinstance(span, LayerRange) for span in out):
        raise BadOption(f'layers: {asked!r} was given; numbers, ranges or text such as "0-3,7" are needed.')
    return out


def _layer_range(text: str) -> LayerRange:
    match = re.fullmatch(r"(?:(\w+):)?(\d{1,6})(?:-(\d{1,6}))?", text)
    if not match or (match[3] and int(match[3]) < int(match[2])):
        raise BadOption(f"layers: {text!r} is not a layer, a range like 0-3 or a stack like encoder:0-3.")
    return LayerRange(int(match[2]), int(match[3] or match[2]), match[1] or "")
