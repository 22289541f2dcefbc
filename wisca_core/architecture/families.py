"""families.toml read into values: one ``Family`` a model type, with every default filled in."""

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from types import MappingProxyType


@dataclass(frozen=True)
class Norm:
    """QK-norm after the projections: its two gains carry the scale that Wq and Wk lose.

    ``per``: "head" (one gain vector of head_dim shared by all heads) or "width" (one gain a channel of every head).
    """

    q: str
    k: str
    per: str
    before_rope: bool
    offset: float


@dataclass(frozen=True)
class Family:
    """One row of families.toml; the field meanings are at its top."""

    name: str
    model_types: tuple[str, ...]
    stack: str
    roots: tuple[str, ...]
    layer: str
    inside: tuple[str, ...]
    q: str
    k: str
    v: str
    o: str
    layout: tuple[tuple[str, tuple[str, str, str]], ...]  # role -> (start, step a KV group, step a query head of it)
    n_layers: str
    n_heads: str
    n_kv_heads: str
    head_dim: str
    hidden_size: str
    rope: str
    rope_width: str
    rope_theta: str
    inert: tuple[str, ...]
    refuse: tuple[tuple[str, str], ...]
    refuse_qk: tuple[tuple[str, str], ...]
    conv1d: bool = False
    norm: Norm | None = None


@lru_cache(maxsize=1)
def families() -> MappingProxyType:
    """model_type -> Family."""
    data = tomllib.loads(resources.files(__package__).joinpath("families.toml").read_text(encoding="utf-8"))
    out = {}
    for name, row in data["families"].items():
        fields = data["defaults"] | row
        fields["layout"] = tuple((role, tuple(grid)) for role, grid in data["layouts"][fields["layout"]].items())
        fields["norm"] = Norm(**fields["norm"]) if "norm" in fields else None
        for key in ("refuse", "refuse_qk"):
            fields[key] = tuple(map(tuple, fields[key]))
        for key in ("model_types", "roots", "inside", "inert"):
            fields[key] = tuple(fields[key])
        family = Family(name=name, **fields)
        for model_type in family.model_types:
            if model_type in out:
                raise ValueError(f"families.toml lists {model_type} under {out[model_type].name} and {name}")
            out[model_type] = family
    return MappingProxyType(out)
