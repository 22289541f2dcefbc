"""From config.json and tensor names to sites: look the family up, check every shape, refuse by name what does not fit.

No tensor is read here, only names, shapes and dtypes.
"""

import re
from bisect import bisect_left
from dataclasses import dataclass

from wisca_core.architecture.expressions import evaluate, whole
from wisca_core.architecture.families import Family, families
from wisca_core.architecture.site import Attention, Grid, Leg, Refusal, Site, SiteKey, Sites
from wisca_core.checkpoint import RESCALABLE, Checkpoint, quantisation
from wisca_core.errors import ConfigMismatch, UnknownArchitecture


def find_sites(checkpoint: Checkpoint, family: Family | None = None) -> Sites:
    """All QK and VO sites of the checkpoint, with everything that was refused and why. ``family``: judge by this row
    instead of the one that families.toml has for the model type.

    Never raises for a model it does not know or whose config.json and weights disagree: the result then has no sites
    and a refusal of ``model``, so that the tensors can still be looked at.
    """
    config = checkpoint.config
    model_type = str(config.get("model_type", ""))
    try:
        family = family or _family(checkpoint, config, model_type)
        return _sites(checkpoint, config, model_type, family)
    except (UnknownArchitecture, ConfigMismatch) as error:
        return Sites(family="", model_type=model_type, attention=None, refusals=(Refusal("model", str(error)),))


def _family(checkpoint: Checkpoint, config: dict, model_type: str) -> Family:
    if not checkpoint.config_json:
        raise UnknownArchitecture("there is no config.json beside the weights; put the model's own config.json there.")
    quantised = quantisation(checkpoint)
    if quantised:
        raise UnknownArchitecture(f"the checkpoint is quantised ({quantised}); rescale the unquantised one and quantise again.")
    family = families().get(model_type)
    if family is None:
        custom = " It brings its own code (auto_map), which is never run." if "auto_map" in config else ""
        named = f'model_type "{model_type}"' if model_type else "config.json without model_type"
        raise UnknownArchitecture(f"{named} has no site rule.{custom} {_closest(checkpoint)}".strip())
    for expression, reason in family.refuse:
        if evaluate(expression, config):
            raise UnknownArchitecture(f"{model_type}: {reason}.")
    return family


def _closest(checkpoint: Checkpoint) -> str:
    """A hint in words: the family whose attention module names occur in the tensor names. Never used to rescale."""
    names = "\n".join(t.name for t in checkpoint.tensors)
    for family in dict.fromkeys(families().values()):
        modules = dict.fromkeys((family.q, family.k, family.v, family.o))
        layer = re.escape(family.layer).replace(re.escape("{i}"), r"\d+")
        if all(re.search(rf"{layer}{re.escape(m)}\.weight$", names, re.M) for m in modules):
            return f"By its tensor names it is closest to {family.name}."
    return "No known family has attention tensors of these names."


@dataclass(frozen=True)
class _Found:
    """What one family's row says of one checkpoint, with the numbers filled in."""

    family: Family
    attention: Attention
    root: str
    rope_width: int
    theta: float
    names: tuple[str, ...]  # of all tensors, sorted
    present: tuple[int, ...]  # layers the weights hold attention tensors of

    @property
    def g(self) -> int:
        return self.attention.n_heads // self.attention.n_kv_heads

    def grids(self, role: str) -> tuple[Grid, Grid]:
        """(index, channel) of one role along the output axis (o: the input axis)."""
        a = self.attention
        names = {"H": a.n_heads, "K": a.n_kv_heads, "g": self.g, "d": a.head_dim}
        start, group, repeat = (evaluate(e, names) for e in dict(self.family.layout)[role])
        sizes = (a.n_kv_heads, self.g if role in "qo" else 1, a.head_dim)
        return Grid(start, sizes, (group, repeat, 1)), Grid(0, sizes, (a.head_dim, 0, 1))


def _sites(checkpoint: Checkpoint, config: dict, model_type: str, family: Family) -> Sites:
    found = _numbers(checkpoint, config, family)
    sites: list[Site] = []
    refusals: list[Refusal] = []
    for layer in range(found.attention.n_layers):
        for build in (_qk, _vo):
            built = build(checkpoint, found, layer)
            (sites if isinstance(built, Site) else refusals).append(built)
    remarks = []
    if family.norm:
        remarks.append(
            f"{family.norm.q} and {family.norm.k}, {found.attention.n_layers} layers: the norm absorbs the scale of "
            f"Wq and Wk, "
            "so scaling those does nothing; its gains are the live pair and are balanced instead."
        )
    beyond = [layer for layer in found.present if layer >= found.attention.n_layers]
    if beyond:
        remarks.append(
            f"The weights hold {len(beyond)} further layers ({beyond[0]} to {beyond[-1]}) beyond the "
            f"{found.attention.n_layers} of config.json; "
            "the model does not run them, and they are left as they are."
        )
    if "auto_map" in config:
        remarks.append("config.json names custom code (auto_map); it is never run, and the proof is of transformers' own class.")
    return Sites(family.name, model_type, found.attention, tuple(sites), tuple(refusals), tuple(remarks))


def _numbers(checkpoint: Checkpoint, config: dict, family: Family) -> _Found:
    n_heads = whole(family.n_heads, config, "query heads", at_most=1 << 14)
    n_kv_heads = whole(family.n_kv_heads, config, "key/value heads", at_most=1 << 14)
    if n_heads % n_kv_heads:
        raise ConfigMismatch(
            f"config.json gives {n_heads} query heads on {n_kv_heads} key/value heads; the first must be a multiple "
            f"of the second. "
            "Check num_key_value_heads."
        )
    attention = Attention(
        n_layers=whole(family.n_layers, config, "layers", at_most=1 << 14),
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=whole(family.head_dim, config, "head_dim", at_most=1 << 14),
        hidden_size=whole(family.hidden_size, config, "hidden_size"),
    )
    root, present = _layers(checkpoint, family)
    if len(present) < attention.n_layers and present == list(range(len(present))) or not present:
        raise ConfigMismatch(
            f"config.json claims {attention.n_layers:,} layers; the weights hold attention tensors of {len(present):,} "
            f"({root}{family.layer}). Check num_hidden_layers, or whether a shard is missing."
        )
    names = config | {"head_dim": attention.head_dim}
    width = 0
    if family.rope != "none":
        # the rotary width is 2 * len(inv_freq) = 2 * ceil(int(w) / 2), not int(w): 16 * 0.334 rotates 6 channels, not 5
        stated = evaluate(family.rope_width, names)
        if isinstance(stated, bool) or not isinstance(stated, (int, float)) or not 0 < stated <= attention.head_dim:
            raise ConfigMismatch(f"config.json gives a rotary width of {stated!r} in heads of {attention.head_dim} ({family.rope_width}).")
        width = 2 * ((int(stated) + 1) // 2)
    theta = evaluate(family.rope_theta, config)
    return _Found(family, attention, root, width, float(theta) if isinstance(theta, (int, float)) and 0 < theta < 1e300 else 0.0,
                  tuple(sorted(checkpoint.by_name)), tuple(present))


def _layers(checkpoint: Checkpoint, family: Family) -> tuple[str, list[int]]:
    """(root, layers present): the first root below which tensors of this family's attention are found."""
    for root in family.roots:
        pattern = re.compile(re.escape(root + family.layer).replace(re.escape("{i}"), r"(\d{1,6})"))
        present = {int(m[1]) for t in checkpoint.tensors if (m := pattern.match(t.name))}
        if present:
            return root, sorted(present)
    return family.roots[0], []


class _Refused(Exception):
    """Inside this file: one site cannot be built; the text is the reason."""


def _qk(checkpoint: Checkpoint, found: _Found, layer: int) -> Site | Refusal:
    family, norm = found.family, found.family.norm
    a = found.attention
    key = SiteKey(family.stack, layer, "self", "qk")
    try:
        for expression, reason in family.refuse_qk:
            if evaluate(expression, checkpoint.config):
                raise _Refused(f"{reason}.")
        _check_explained(checkpoint, found, layer)
        _check_shapes(checkpoint, found, layer, ("q", "k"))
        ties = _rotary_ties(found)
        if norm is None:
            legs = _projection_legs(checkpoint, found, layer, (("q", "left"), ("k", "right")))
            return Site(key, a.n_kv_heads * a.head_dim, a.n_kv_heads, legs, ties, _group_ties(a), "weights", family.name,
                        _rotary(found))
        prefix = found.root + family.layer.format(i=layer)
        if norm.per == "head":
            grid = Grid(0, (1, 1, a.head_dim), (0, 0, 1))
            grids = {"q": (grid, grid), "k": (grid, grid)}
            n, groups, group_ties = a.head_dim, 1, (Grid(0, (1, a.head_dim), (0, 1)),)
            ties = _rotary_ties(found, n_heads=1)
        else:
            grids = {role: _separate(found, role) for role in "qk"}
            n, groups, group_ties = a.n_kv_heads * a.head_dim, a.n_kv_heads, _group_ties(a)
        legs = []
        for role, module, side in (("q", norm.q, "left"), ("k", norm.k, "right")):
            index, channel = grids[role]
            name = f"{prefix}{module}.weight"
            _require(checkpoint, name, (index.last + 1,), f"{module} has one gain a channel", "head_dim")
            legs.append(Leg(name, 0, index, channel, side, role, offset=norm.offset))
        return Site(key, n, groups, tuple(legs), ties if norm.before_rope else (), group_ties, "gains", family.name, _rotary(found))
    except _Refused as reason:
        return Refusal(str(key), str(reason))


def _vo(checkpoint: Checkpoint, found: _Found, layer: int) -> Site | Refusal:
    a = found.attention
    key = SiteKey(found.family.stack, layer, "self", "vo")
    try:
        _check_explained(checkpoint, found, layer)
        _check_shapes(checkpoint, found, layer, ("v", "o"))
        legs = _projection_legs(checkpoint, found, layer, (("v", "left"), ("o", "right")))
        return Site(key, a.n_kv_heads * a.head_dim, a.n_kv_heads, legs, (), _group_ties(a), "weights", found.family.name)
    except _Refused as reason:
        return Refusal(str(key), str(reason))


def _rotary(found: _Found) -> tuple[str, int, float]:
    return (found.family.rope, found.rope_width, found.theta)


def _group_ties(a: Attention) -> tuple[Grid, ...]:
    return (Grid(0, (a.n_kv_heads, a.head_dim), (a.head_dim, 1)),)


def _rotary_ties(found: _Found, n_heads: int | None = None) -> tuple[Grid, ...]:
    """Each rotary pair shares one factor: (i, i + r/2) half-split, (2i, 2i + 1) interleaved; the rest of the head is
    free.
    """
    width, d = found.rope_width, found.attention.head_dim
    if not width:
        return ()
    pair, between = (1, width // 2) if found.family.rope == "half" else (2, 1)
    return (Grid(0, (n_heads or found.attention.n_kv_heads, width // 2, 2), (d, pair, between)),)


def _separate(found: _Found, role: str) -> tuple[Grid, Grid]:
    a = found.attention
    sizes = (a.n_kv_heads, found.g if role == "q" else 1, a.head_dim)
    heads = found.g * a.head_dim if role == "q" else a.head_dim
    return Grid(0, sizes, (heads, a.head_dim, 1)), Grid(0, sizes, (a.head_dim, 0, 1))


def _projection_legs(checkpoint: Checkpoint, found: _Found, layer: int, roles: tuple[tuple[str, str], ...]) -> tuple[Leg, ...]:
    prefix = found.root + found.family.layer.format(i=layer)
    legs = []
    for role, side in roles:
        module = prefix + getattr(found.family, role)
        index, channel = found.grids(role)
        axis = (0 if role == "o" else 1) if found.family.conv1d else (1 if role == "o" else 0)
        legs.append(Leg(module + ".weight", axis, index, channel, side, role))
        # biases of q, k and v scale with their rows; the bias of the output projection does not
        if role != "o" and module + ".bias" in checkpoint.by_name:
            legs.append(Leg(module + ".bias", 0, index, channel, side, role, measured=False))
    return tuple(legs)


def _check_shapes(checkpoint: Checkpoint, found: _Found, layer: int, roles: tuple[str, ...]) -> None:
    family, a = found.family, found.attention
    prefix = found.root + family.layer.format(i=layer)
    for role in roles:
        module = getattr(family, role)
        # a fused matrix holds every role that names the same module
        sharing = [r for r in ("q", "k", "v", "o") if getattr(family, r) == module]
        width = max(found.grids(r)[0].last for r in sharing) + 1
        shape = (a.hidden_size, width) if role == "o" else (width, a.hidden_size)
        heads = {"q": a.n_heads, "o": a.n_heads}.get(role, a.n_kv_heads)
        axis = "columns" if (role == "o") != family.conv1d else "rows"
        named = {"q": "query", "k": "key", "v": "value", "o": "query"}[role]
        what = f"{'the fused q, k and v' if len(sharing) > 1 else f'{heads} {named} heads of {a.head_dim}'} need {width:,} {axis}"
        _require(checkpoint, f"{prefix}{module}.weight", shape[::-1] if family.conv1d else shape, what, "the head counts and head_dim")
        if role != "o" and f"{prefix}{module}.bias" in checkpoint.by_name:
            _require(checkpoint, f"{prefix}{module}.bias", (width,), "the bias has one value a row", "the head counts")


def _require(checkpoint: Checkpoint, name: str, shape: tuple[int, ...], what: str, check: str) -> None:
    shared = [other for pair in checkpoint.aliases if name in pair for other in pair if other != name]
    if shared:
        raise _Refused(f"{name} shares its storage with {', '.join(shared)}; scaling it would change both.")
    tensor = checkpoint.by_name.get(name)
    if tensor is None:
        raise _Refused(f"{name} is missing from the weights. Check whether a shard is missing or config.json belongs to another model.")
    if tensor.shape != shape:
        found = " x ".join(map(str, tensor.shape)) or "a single number"
        raise _Refused(f"{name} is {found}; {what}, {' x '.join(map(str, shape))} is expected. Check {check} in config.json.")
    if tensor.dtype not in RESCALABLE:
        raise _Refused(f"{name} is stored as {tensor.dtype}; only {', '.join(RESCALABLE)} can be rescaled.")


def _check_explained(checkpoint: Checkpoint, found: _Found, layer: int) -> None:
    """Every tensor inside the attention module must be known: an extra norm or clip would change the rule."""
    family = found.family
    prefix = found.root + family.layer.format(i=layer)
    modules = [family.q, family.k, family.v, family.o] + ([family.norm.q, family.norm.k] if family.norm else [])
    known = {f"{prefix}{m}.{kind}" for m in modules for kind in ("weight", "bias")} | {prefix + name for name in family.inert}
    if family.norm:  # a norm bias would have to follow its gain
        known -= {f"{prefix}{m}.bias" for m in (family.norm.q, family.norm.k)}
    for name in found.names[bisect_left(found.names, prefix) :]:
        if not name.startswith(prefix):
            break
        if name not in known and any(name.startswith(prefix + part) for part in family.inside):
            raise _Refused(f"{name} is not part of the {family.name} rule; it may change what an exact factor is.")
