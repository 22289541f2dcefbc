"""Multi-head latent attention (DeepSeek-V2, section 2.1): keys and values of all heads come from one narrow stream.

Queries and keys have a content part, free per head and channel, and a rotary part whose key is one for all heads. They
are two sites: no channel of the one is a channel of the other.
"""

from wisca_core.architecture.expressions import whole
from wisca_core.architecture.layer import Layer, Refused, check_explained, refuse
from wisca_core.architecture.site import Grid, Leg, Refusal, Site, SiteKey


def latent_tensors(layer: Layer) -> set[str]:
    """Names of the tensors this rule explains beside q and o."""
    one = layer.family.latent
    modules = [layer.prefix + one.kv_a, layer.prefix + one.kv_b] + (
        [layer.prefix + one.rope_gain] if one.rope_gain else []
    )
    return {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


def latent_sites(layer: Layer, explained: set[str]) -> list[Site | Refusal]:
    """Content QK, rotary QK and VO of one layer."""
    family = layer.family
    out: list[Site | Refusal] = []
    for pair, part, rules, build in (
        ("qk", "", family.refuse_qk, _content),
        ("qk", "rope", family.refuse_qk, _rotary),
        ("vo", "", family.refuse_vo, _values),
    ):
        key = layer.key(pair, part)
        try:
            refuse(layer, rules)
            check_explained(layer, explained)
            out += build(key, layer)
        except Refused as reason:
            out.append(Refusal(str(key), str(reason)))
    return out


def _sizes(layer: Layer) -> tuple[int, int, int, int, int]:
    """(rank, content channels, rotary channels, value channels, rows behind its query) of a head."""
    one, names = layer.family.latent, dict(layer.config) | {"layer": layer.number}
    return tuple(
        whole(getattr(one, key), names, key, at_least=int(key in ("rank", "value")), layer=layer.number)
        for key in ("rank", "nope", "rope", "value", "behind")
    )


def _legs(
    layer: Layer, module: str, axis: int, width: int, index: Grid, channel: Grid, side: str, role: str
) -> list[Leg]:
    """The module's weight, checked to have ``width`` along ``axis``, and its bias where rows are scaled."""
    name = f"{module}.weight"
    shape = layer.weights.shape(name) or (width, width)
    wanted = tuple(width if i == axis else n for i, n in enumerate(shape)) if len(shape) == 2 else (width, width)
    layer.weights.require(
        name, wanted, f"{role} needs {width:,} {'rows' if axis == 0 else 'columns'}", "the head counts and head sizes"
    )
    legs = [Leg(name, axis, index, channel, side, role)]
    if axis == 0 and f"{module}.bias" in layer.weights:
        layer.weights.require(f"{module}.bias", (width,), "the bias has one value a row", "the head counts")
        legs.append(Leg(f"{module}.bias", 0, index, channel, side, role, measured=False))
    return legs


def _queries(layer: Layer, first: int, size: int, is_shared: bool) -> list[Leg]:
    _, nope, rope, _, behind = _sizes(layer)
    n, step = layer.n_heads, nope + rope + behind
    sizes = (1, n, size) if is_shared else (n, 1, size)
    strides = (0, step, 1) if is_shared else (step, 0, 1)
    channel = Grid(0, sizes, (0, 0, 1) if is_shared else (size, 0, 1))
    return _legs(layer, layer.module("q"), 0, n * step, Grid(first, sizes, strides), channel, "left", "q")


def _unfolded(layer: Layer, first: int, size: int, side: str, role: str) -> list[Leg]:
    """``size`` rows of each head from its ``first`` on, of what comes out of the narrow stream: content keys, then
    values.
    """
    _, nope, _, value, _ = _sizes(layer)
    n, sizes = layer.n_heads, (layer.n_heads, 1, size)
    index, channel = Grid(first, sizes, (nope + value, 0, 1)), Grid(0, sizes, (size, 0, 1))
    return _legs(layer, layer.prefix + layer.family.latent.kv_b, 0, n * (nope + value), index, channel, side, role)


def _content(key: SiteKey, layer: Layer) -> list[Site]:
    n, nope = layer.n_heads, _sizes(layer)[1]
    if not nope:
        return []
    q = _queries(layer, 0, nope, is_shared=False)
    k = _unfolded(layer, 0, nope, "right", "k")
    return [Site(key, n * nope, n, (*q, *k), (), (Grid(0, (n, nope), (nope, 1)),), "weights", layer.family.name)]


def _rotary(key: SiteKey, layer: Layer) -> list[Site]:
    one = layer.family.latent
    rank, nope, rope, *_ = _sizes(layer)
    if not rope:
        return []
    q = _queries(layer, nope, rope, is_shared=True)
    sizes = (1, 1, rope)
    channel = Grid(0, sizes, (0, 0, 1))
    if one.rope_gain:
        name = f"{layer.prefix}{one.rope_gain}.weight"
        layer.weights.require(name, (rope,), "one gain a channel", "the rotary head size")
        k = [Leg(name, 0, channel, channel, "right", "k")]
    else:
        k = _legs(layer, layer.prefix + one.kv_a, 0, rank + rope, Grid(rank, sizes, (0, 0, 1)), channel, "right", "k")
    ties = ()
    if layer.rope != "none":
        pair, between = (1, rope // 2) if layer.rope == "half" else (2, 1)
        ties = (Grid(0, (1, rope // 2, 2), (0, pair, between)),)
    rotary = (layer.rope, rope if ties else 0, layer.theta)
    return [Site(key, rope, 1, (*q, *k), ties, (Grid(0, (1, rope), (0, 1)),), "weights", layer.family.name, rotary)]


def _values(key: SiteKey, layer: Layer) -> list[Site]:
    _, nope, _, value, _ = _sizes(layer)
    n = layer.n_heads
    v = _unfolded(layer, nope, value, "left", "v")
    channel = Grid(0, (n, 1, value), (value, 0, 1))
    o = _legs(layer, layer.module("o"), 1, n * value, channel, channel, "right", "o")
    return [Site(key, n * value, n, (*v, *o), (), (Grid(0, (n, value), (value, 1)),), "weights", layer.family.name)]
