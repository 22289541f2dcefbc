"""QK and VO sites of one layer of softmax attention."""

from collections.abc import Iterable, Sequence

from wisca_core.architecture import latent
from wisca_core.architecture.expressions import evaluate
from wisca_core.architecture.families import Norm
from wisca_core.architecture.layer import (
    Layer,
    Refused,
    check_explained,
    following_legs,
    projection_legs,
    refuse,
    shared_ties,
)
from wisca_core.architecture.site import Grid, Leg, Refusal, Site, SiteKey


def attention_sites(layer: Layer, readers: Sequence[Layer] = ()) -> list[Site | Refusal]:
    """QK and VO of one layer, each a site or the reason why there is none. ``readers``: later layers that have queries
    of their own but read this layer's keys and values.
    """
    family = layer.family
    known = _known_tensors(layer)
    if family.latent:
        return latent.latent_sites(layer, known)
    out: list[Site | Refusal] = []
    for pair, rules, build in (("qk", family.refuse_qk, _qk), ("vo", family.refuse_vo, _vo)):
        key = layer.key(pair)
        try:
            refuse(layer, rules)
            for one in (layer, *readers):
                check_explained(one, known if one is layer else _known_tensors(one))
            out.append(build(key, layer, readers))
        except Refused as reason:
            out.append(Refusal(str(key), str(reason)))
    return out


def norm_of(layer: Layer) -> Norm | None:
    """The QK-norm that is at work in this layer."""
    family = layer.family
    return (
        family.norm
        if family.norm and evaluate(family.norm_when, dict(layer.config) | {"layer": layer.number})
        else None
    )


def _known_tensors(layer: Layer) -> set[str]:
    family, norm = layer.family, norm_of(layer)
    modules = [layer.module(role) for role in "qkvo"]
    known = {name for m in modules for name in (layer.tensor(m), layer.bias(m))}
    if norm:
        for name in (norm.q, norm.k):
            for head in range(layer.n_heads if norm.per == "heads" else 1):
                known |= {layer.prefix + name.format(h=head) + ".weight"}
                known |= {layer.prefix + name.format(h=head) + ".bias"} if norm.bias else set()
    if family.latent:
        known |= latent.latent_tensors(layer)
    if family.sub_norm:
        known |= {f"{layer.prefix}{family.sub_norm}.{kind}" for kind in ("weight", "bias")}
    return known | {layer.prefix + one.tensor for one in family.follow}


def _qk(key: SiteKey, layer: Layer, readers: Sequence[Layer]) -> Site:
    norm = norm_of(layer)
    follow = [leg for one in (layer, *readers) for leg in following_legs(one, "qk")]
    if norm is None:
        legs = [leg for one in (layer, *readers) for leg in projection_legs(one, "q", "left")]
        legs += [*projection_legs(layer, "k", "right"), *follow]
        n, width = layer.n_kv_heads * layer.head_dim, layer.head_dim
        ties = (*layer.rotary_ties(layer.n_kv_heads, width), *shared_ties(layer, "qk"))
        return Site(
            key,
            n,
            layer.n_kv_heads,
            tuple(legs),
            ties,
            layer.group_ties(width),
            "weights",
            layer.family.name,
            layer.rotary,
        )
    if norm.per == "head":
        n, groups = layer.head_dim, 1
        group_ties, rotary_ties = (Grid(0, (1, n), (0, 1)),), layer.rotary_ties(1, layer.head_dim)
    else:
        n, groups = layer.n_kv_heads * layer.head_dim, layer.n_kv_heads
        group_ties, rotary_ties = layer.group_ties(layer.head_dim), layer.rotary_ties(layer.n_kv_heads, layer.head_dim)
    legs = [leg for one in (layer, *readers) for leg in _gain_legs(one, norm, "q", "left")]
    legs += [*_gain_legs(layer, norm, "k", "right"), *follow]
    return Site(
        key,
        n,
        groups,
        tuple(legs),
        rotary_ties if norm.before_rope else (),
        group_ties,
        "gains",
        layer.family.name,
        layer.rotary,
    )


def _gain_legs(layer: Layer, norm: Norm, role: str, side: str) -> Iterable[Leg]:
    """The norm's gain on that role, and its bias for a LayerNorm. Raises Refused."""
    module = layer.prefix + getattr(norm, role)
    index, channel = layer.separate("head" if norm.per == "head" else role)
    width = layer.head_dim
    n_heads = layer.n_heads if role == "q" else layer.n_kv_heads
    for kind, offset in (("weight", norm.offset), ("bias", 0.0)):
        is_measured = kind == "weight"
        if norm.per in ("head", "width"):
            name = f"{module}.{kind}"
            if is_measured or (norm.bias and name in layer.weights):
                layer.weights.require(
                    name, (index.last + 1,), f"{getattr(norm, role)} has one gain a channel", "head_dim"
                )
                yield Leg(name, 0, index, channel, side, role, is_measured, offset=offset)
            continue
        repeats = channel.sizes[1]
        for head in range(n_heads):
            name = f"{module.format(h=head)}.{kind}"
            if not is_measured and (not norm.bias or name not in layer.weights):
                continue
            by_row = norm.per == "rows"
            shape = (n_heads, width) if by_row else (width,)
            layer.weights.require(
                name, shape, f"{getattr(norm, role)} has one gain a channel of every head", "head_dim"
            )
            yield Leg(
                name,
                int(by_row),
                Grid(0, (1, 1, width), (0, 0, 1)),
                Grid(head // repeats * width, (1, 1, width), (0, 0, 1)),
                side,
                role,
                is_measured,
                offset=offset,
                fixed=((0, head),) if by_row else (),
            )


def _vo(key: SiteKey, layer: Layer, readers: Sequence[Layer]) -> Site:
    family, width = layer.family, layer.value_dim
    out = [leg for one in (layer, *readers) for leg in projection_legs(one, "o", "right")]
    follow = [leg for one in (layer, *readers) for leg in following_legs(one, "vo")]
    if family.sub_norm:
        # the norm absorbs Wv's scale; every channel of Wo's input has a gain of its own, whatever KV head it came from
        name, n = f"{layer.prefix}{family.sub_norm}.weight", layer.n_heads * width
        sizes, strides = (layer.n_kv_heads, layer.g, width), (layer.g * width, width, 1)
        grid = Grid(0, sizes, strides)
        layer.weights.require(name, (n,), f"{family.sub_norm} has one gain a channel", "the head counts and head_dim")
        o = [Leg(leg.tensor, leg.axis, leg.index, grid, "right", "o") for leg in out]
        ties = (Grid(0, (layer.n_kv_heads, layer.g * width), (layer.g * width, 1)),)
        gains = [Leg(name, 0, grid, grid, "left", "v")]
        bias = name.removesuffix("weight") + "bias"  # a LayerNorm's follows its gain
        if bias in layer.weights:
            layer.weights.require(
                bias, (n,), f"{family.sub_norm} has one bias a channel", "the head counts and head_dim"
            )
            gains.append(Leg(bias, 0, grid, grid, "left", "v", measured=False))
        return Site(key, n, layer.n_kv_heads, (*gains, *o), (), ties, "gains", family.name)
    legs = (*projection_legs(layer, "v", "left"), *out, *follow)
    return Site(
        key, layer.n_kv_heads * width, layer.n_kv_heads, legs, (), layer.group_ties(width), "weights", family.name
    )
