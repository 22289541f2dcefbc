"""The family files (``rows/*.toml``) read into values: one ``Family`` a model type, with every default filled in."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from types import MappingProxyType

Rules = tuple[tuple[str, str], ...]  # (expression, reason): refused by name where the expression is true


@dataclass(frozen=True)
class Norm:
    """QK-norm after the projections: its two gains carry the scale that Wq and Wk lose.

    ``per``: "head" (one gain vector of head_dim shared by all heads), "width" (one gain a channel of every head),
    "rows" (a matrix, one row of gains a head) or "heads" (one tensor a head; "{h}" in the name). ``bias``: a LayerNorm,
    whose biases follow its gains.
    """

    q: str
    k: str
    per: str
    before_rope: bool
    offset: float = 0.0
    bias: bool = False


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention: keys and values from one narrow stream (``rank`` wide), and a rotary key that all
    heads share. Fields are modules and expressions; ``rope_gain``: a norm's gain on that shared key, which is then live
    in the place of ``kv_a``'s rows; ``behind``: rows behind each head's query in the matrix of q (a gate).
    """

    kv_a: str
    kv_b: str
    rank: str
    nope: str
    rope: str
    value: str
    rope_gain: str = ""
    behind: str = "0"


@dataclass(frozen=True)
class Follower:
    """A further tensor of the attention module that meets the channels of ``like`` (q, k, v or o as separate heads, or
    "head": one head's channels shared by all) along ``axis`` and must follow on ``side``. Absent tensors are passed
    over. ``heads_axis``: where the heads are an axis of their own, -1 where they are not.
    """

    pair: str
    tensor: str
    axis: int
    like: str
    side: str
    heads_axis: int = -1
    offset: float = 0.0


@dataclass(frozen=True)
class Tower:
    """A model inside a model: the config of its own, and where its tensors begin (the roots of its own row follow).
    ``stack``: what its sites are called, where its row does not tell several apart.
    """

    config: str
    roots: tuple[str, ...]
    stack: str
    model_type: str = ""  # where the inner config does not name it


@dataclass(frozen=True)
class Family:
    """One row: the attention of one kind of layer, or several of them in ``parts``; the fields are explained in
    ``rows/defaults.toml``.
    """

    name: str
    model_types: tuple[str, ...]
    stack: str
    attention: str
    config: str
    roots: tuple[str, ...]
    layer: str
    inside: tuple[str, ...]
    q: str
    k: str
    v: str
    o: str
    layout: tuple[tuple[str, tuple[str, ...]], ...]  # role -> (start, step a KV group, step a query head of it)
    layouts: tuple[tuple[str, tuple], ...]  # (expression, layout): the first that is true goes before ``layout``
    n_layers: str
    n_heads: str
    n_kv_heads: str
    head_dim: str
    value_dim: str
    hidden_size: str
    kv_hidden: str
    v_hidden: str
    out_hidden: str
    rope: str
    rope_width: str
    rope_theta: str
    when: str
    otherwise: str
    is_sparse: bool
    kv_source: str
    inert: tuple[str, ...]
    refuse: Rules
    refuse_qk: Rules
    refuse_vo: Rules
    refuse_mlp: Rules
    mlp: str
    activation: str
    sub_norm: str
    o_inputs: str
    stages: str
    mlp_at: str
    trailing: tuple[int, ...]
    is_optional: bool
    up_first: bool
    rope_blocks: int
    part: str = ""
    by_expert: bool = False
    conv1d: bool = False
    heads_axis: bool = False
    norm: Norm | None = None
    norm_when: str = "True"
    latent: Latent | None = None
    follow: tuple[Follower, ...] = ()
    towers: tuple[Tower, ...] = ()
    parts: tuple["Family", ...] = ()

    @property
    def each(self) -> tuple["Family", ...]:
        """The rows its layers are read by: its parts, or itself."""
        return self.parts or ((self,) if not self.towers else ())

    def layout_for(self, config: Mapping, evaluate) -> dict[str, tuple[str, ...]]:
        return dict(next((layout for expression, layout in self.layouts if evaluate(expression, config)), self.layout))


FILES = ("decoders", "hybrids", "encoders", "encoder_decoders", "vision_and_speech", "towers")


@lru_cache(maxsize=1)
def families() -> MappingProxyType:
    """model_type -> Family."""
    rows, defaults = resources.files(__package__).joinpath("rows"), _defaults()
    out: dict[str, Family] = {}
    for file in FILES:
        data = tomllib.loads(rows.joinpath(f"{file}.toml").read_text(encoding="utf-8"))
        for name, row in data["families"].items():
            family = _family(name, row, defaults)
            for model_type in family.model_types:
                if model_type in out:
                    raise ValueError(f"the family files list {model_type} under {out[model_type].name} and {name}")
                out[model_type] = family
    return MappingProxyType(out)


@lru_cache(maxsize=1)
def _defaults() -> Mapping:
    return tomllib.loads(resources.files(__package__).joinpath("rows/defaults.toml").read_text(encoding="utf-8"))


def row(name: str, **fields) -> Family:
    """A family of these fields over the defaults, for a model type that no file has (discovery, declared sites)."""
    return _family(name, {"model_types": [], **fields}, _defaults())


def layout_names() -> tuple[str, ...]:
    """How heads may lie in the matrices."""
    return tuple(_defaults()["layouts"])


def _family(name: str, given: Mapping, defaults: Mapping) -> Family:
    fields = defaults["defaults"] | {key: value for key, value in given.items() if key != "parts"}
    parts = tuple(
        _family(name, {key: value for key, value in given.items() if key != "parts"} | part, defaults)
        for part in given.get("parts", ())
    )
    layouts = {
        key: tuple((role, tuple(grid)) for role, grid in table.items()) for key, table in defaults["layouts"].items()
    }
    fields["layouts"] = tuple((expression, layouts[key]) for expression, key in fields["layouts"])
    fields["layout"] = layouts[fields["layout"]]
    fields["norm"] = Norm(**fields["norm"]) if fields.get("norm") else None
    fields["latent"] = Latent(**fields["latent"]) if fields.get("latent") else None
    fields["follow"] = tuple(Follower(**one) for one in fields.get("follow", ()))
    fields["towers"] = tuple(Tower(**one | {"roots": tuple(one["roots"])}) for one in fields.get("towers", ()))
    for key in ("refuse", "refuse_qk", "refuse_vo", "refuse_mlp"):
        fields[key] = tuple(map(tuple, fields[key]))
    for key in ("model_types", "roots", "inside", "inert", "trailing"):
        fields[key] = tuple(fields[key])
    return Family(name=name, **fields, parts=parts)
