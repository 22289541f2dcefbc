"""LoRA (peft): the rank channels of (A, B) as sites, and adapters that follow when their base is rescaled.

W x + scaling B (A x): rank channel r is written by A's row r and read by B's column r, so A's rows times s and B's
columns over s keep the product, under rsLoRA and DoRA too. When rows of W are multiplied, B's rows follow; when columns
are, A's columns follow. DoRA's magnitude follows the rows, and for columns is multiplied by the growth of the row norms
of W + scaling B A.

Not covered: adapters of convolutions, embeddings and expert tensors, and variants of LoRA other than DoRA: left alone,
and a base under them refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from wisca_core.architecture.site import Grid, Leg, Refusal, Site, SiteKey
from wisca_core.wrappers import unwrapped_name

_PARTS = (".lora_A.", ".lora_B.", ".lora_magnitude_vector.", ".lora_embedding_A.", ".lora_embedding_B.")


@dataclass(frozen=True, eq=False)
class Adapter:
    """One LoRA on one linear layer. ``module``: clean path of the layer; ``adapter``: its name; ``unknown``: why no
    rule covers it.
    """

    module: str
    adapter: str
    layer: nn.Module
    bias: bool = False
    dora: bool = False
    unknown: str = ""

    def name(self, part: str, kind: str = "weight") -> str:
        return f"{self.module}.lora_{part}.{self.adapter}.{kind}"

    @property
    def a(self) -> torch.Tensor:
        return self.layer.lora_A[self.adapter].weight

    @property
    def b(self) -> torch.Tensor:
        return self.layer.lora_B[self.adapter].weight


@dataclass(frozen=True)
class Columns:
    """A DoRA magnitude that follows its weight's columns, by tensor names. ``transposed``: the weight is stored [in,
    out].
    """

    site: str
    weight: str
    a: str
    b: str
    magnitude: str
    scaling: float
    transposed: bool
    layer: nn.Module

    @property
    def names(self) -> tuple[str, ...]:
        return (self.weight, self.a, self.b, self.magnitude)

    def norms(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """(out,), float64: row norms of W + scaling B A."""
        weight, a, b = (tensors[n].detach().double() for n in (self.weight, self.a, self.b))
        return torch.linalg.vector_norm((weight.T if self.transposed else weight) + self.scaling * (b @ a), dim=1)


def clean(name: str) -> str:
    """A parameter's name without what wrappers and peft put into it."""
    return re.sub(r"^base_model\.model\.", "", unwrapped_name(name)).replace(".base_layer.", ".")


def is_adapter(name: str) -> bool:
    return any(part in name for part in _PARTS)


def adapters(inner: nn.Module) -> tuple[Adapter, ...]:
    """Every LoRA of the model; none where peft was never imported."""
    import sys

    if "peft" not in sys.modules:
        return ()
    from peft.tuners.lora.layer import LoraLayer

    out = []
    for path, layer in inner.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        module = clean(path + ".").rstrip(".")
        for name in layer.lora_A:
            out.append(_adapter(module, name, layer))
        for name in getattr(layer, "lora_embedding_A", {}):
            out.append(Adapter(module, name, layer, unknown="a LoRA on an embedding"))
    return tuple(out)


def _adapter(module: str, name: str, layer: nn.Module) -> Adapter:
    a, b = layer.lora_A[name], layer.lora_B[name] if name in layer.lora_B else None
    variant = getattr(layer, "lora_variant", {}).get(name)
    kind = (
        type(variant).__name__
        if variant is not None and not isinstance(variant, type)
        else getattr(variant, "__name__", "")
    )
    unknown = ""
    if kind not in ("", "DoraLinearVariant"):
        unknown = f"{kind.removesuffix('Variant')} is a variant of LoRA without a rule"
    elif type(layer).__name__ == "ParamWrapper" or type(a) is not nn.Linear or type(b) is not nn.Linear:
        unknown = f"a LoRA whose A and B are no plain linear layers ({type(layer).__name__})"
    elif a.weight.dim() != 2 or a.weight.shape[0] != b.weight.shape[1]:
        unknown = "A and B do not meet in rank channels"
    return Adapter(module, name, layer, not unknown and b.bias is not None, kind == "DoraLinearVariant", unknown)


def rank_sites(found: Sequence[Adapter]) -> tuple[list[Site], list[Refusal]]:
    """One site an adapter: left A (rows), right B (columns). Inactive adapters are left alone."""
    sites, refused = [], []
    keys: set[str] = set()
    for one in found:
        key = _key(one, whole_path=False)
        key = _key(one, whole_path=True) if str(key) in keys else key
        keys.add(str(key))
        if one.unknown:
            refused.append(Refusal(str(key), one.unknown))
        elif one.adapter in one.layer.active_adapters:
            rank = one.a.shape[0]
            grid = Grid(0, (1, 1, rank), (0, 0, 1))
            legs = (Leg(one.name("A"), 0, grid, grid, "left", "a"), Leg(one.name("B"), 1, grid, grid, "right", "b"))
            sites.append(Site(key, rank, 1, legs, (), (Grid(0, (1, rank), (0, 1)),), "weights", "lora"))
    return sites, refused


def _key(one: Adapter, whole_path: bool) -> SiteKey:
    """default.3.self_attn_q_proj.lora: adapter, layer, linear layer."""
    layer = re.search(r"\.(\d+)\.", one.module + ".")
    inside = one.module if whole_path or not layer else one.module[layer.end() :]
    return SiteKey(_word(one.adapter), int(layer[1]) if layer else 0, _word(inside), "lora")


def _word(text: str) -> str:
    return re.sub(r"\W+", "_", text)


def why_not_rescalable(site: Site, found: Sequence[Adapter]) -> str:
    """Why a base under these adapters cannot be rescaled; "" where it can."""
    modules = {leg.tensor.rsplit(".", 1)[0] for leg in site.legs}
    return next((f"{a.module} has {a.unknown} on it" for a in found if a.unknown and a.module in modules), "")


def follow(site: Site, found: Sequence[Adapter], copies: Mapping[str, Sequence[str]]) -> tuple[Site, list[Columns]]:
    """The site with legs for everything that has to follow its tensors: copies kept by peft, A, B and magnitudes."""
    legs, columns = list(site.legs), []
    for leg in site.legs:
        legs += [replace(leg, tensor=name, measured=False) for name in copies.get(leg.tensor, ())]
        module, _, kind = leg.tensor.rpartition(".")
        if kind != "weight":
            continue
        for one in found:
            if one.module != module:
                continue
            if leg.role not in ("o", "down"):
                legs.append(replace(leg, tensor=one.name("B"), axis=0, measured=False))
                if one.bias:
                    legs.append(replace(leg, tensor=one.name("B", "bias"), axis=0, measured=False))
                if one.dora:
                    legs.append(replace(leg, tensor=one.name("magnitude_vector"), axis=0, measured=False))
            else:
                legs.append(replace(leg, tensor=one.name("A"), axis=1, measured=False))
                if one.dora:
                    columns.append(
                        Columns(
                            site.name,
                            leg.tensor,
                            one.name("A"),
                            one.name("B"),
                            one.name("magnitude_vector"),
                            float(one.layer.scaling[one.adapter]),
                            bool(one.layer.fan_in_fan_out),
                            one.layer,
                        )
                    )
    return replace(site, legs=tuple(legs)), columns
