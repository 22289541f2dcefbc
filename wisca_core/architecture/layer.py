"""One layer's attention with the numbers of config.json filled in: names, shapes, and the grids of each role."""

import fnmatch
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from wisca_core.architecture.expressions import evaluate, whole
from wisca_core.architecture.families import Family, Rules
from wisca_core.architecture.site import Attention, Grid, Leg, SiteKey
from wisca_core.checkpoint import RESCALABLE, Checkpoint
from wisca_core.errors import ConfigMismatch

ROPES = ("half", "interleaved", "none")
HEADS = {"q": "query", "k": "key", "v": "value", "o": "query"}


class Refused(Exception):
    """Inside this package: one site cannot be built; the text is the reason."""


@dataclass(frozen=True, eq=False)
class Weights:
    """The tensors of a checkpoint by name, and their names in order. ``told_by``: what gives the numbers they are held
    to.
    """

    checkpoint: Checkpoint
    names: tuple[str, ...]
    told_by: str = "config.json"

    @classmethod
    def of(cls, checkpoint: Checkpoint, told_by: str = "config.json") -> "Weights":
        return cls(checkpoint, tuple(sorted(checkpoint.by_name)), told_by)

    def below(self, prefix: str) -> Iterable[str]:
        """Names that begin with ``prefix``, in order."""
        for i in range(bisect_left(self.names, prefix), len(self.names)):
            if not self.names[i].startswith(prefix):
                return
            yield self.names[i]

    def __contains__(self, name: str) -> bool:
        return name in self.checkpoint.by_name

    def shape(self, name: str) -> tuple[int, ...] | None:
        tensor = self.checkpoint.by_name.get(name)
        return tensor.shape if tensor else None

    def require(self, name: str, shape: tuple[int, ...], what: str, check: str) -> None:
        """Raises Refused where the tensor is missing, shared, of another shape or of a dtype that is not rescaled."""
        shared = [other for pair in self.checkpoint.aliases if name in pair for other in pair if other != name]
        if shared:
            raise Refused(f"{name} shares its storage with {', '.join(shared)}; scaling it would change both.")
        tensor = self.checkpoint.by_name.get(name)
        if tensor is None:
            raise Refused(
                f"{name} is missing from the weights. Check whether a shard is missing or {self.told_by} belongs to "
                "another model."
            )
        if tensor.shape != shape:
            found = " x ".join(map(str, tensor.shape)) or "a single number"
            raise Refused(
                f"{name} is {found}; {what}, {' x '.join(map(str, shape))} is expected. Check {check} in "
                f"{self.told_by}."
            )
        if tensor.dtype not in RESCALABLE:
            raise Refused(f"{name} is stored as {tensor.dtype}; only {', '.join(RESCALABLE)} can be rescaled.")


@dataclass(frozen=True, eq=False)
class Layer:
    """``prefix``: of the attention's tensors. ``rope_width``: channels of a head that rotate, even; 0 for none."""

    weights: Weights
    family: Family
    config: Mapping
    number: int
    prefix: str
    n_heads: int
    n_kv_heads: int
    head_dim: int
    value_dim: int
    hidden_size: int
    kv_hidden: int
    v_hidden: int
    out_hidden: int
    o_inputs: int
    rope: str
    rope_width: int
    theta: float

    def key(self, pair: str, part: str = "", attention: str = "", expert: int = -1) -> SiteKey:
        """Name of a site of this layer."""
        family = self.family
        parts = ".".join(filter(None, (family.part, part)))
        return SiteKey(family.stack, self.number, attention or family.attention, pair, expert, parts)

    @property
    def g(self) -> int:
        return self.n_heads // self.n_kv_heads

    def attention(self, n_layers: int) -> Attention:
        return Attention(n_layers, self.n_heads, self.n_kv_heads, self.head_dim, self.hidden_size)

    def width(self, role: str) -> int:
        """Channels of one head of that role."""
        return self.head_dim if role in "qk" else self.value_dim

    def beside(self, role: str) -> int:
        """The size of the role's matrix on the other axis than its heads': inputs of q, k and v, outputs of o."""
        return {"q": self.hidden_size, "k": self.kv_hidden, "v": self.v_hidden, "o": self.out_hidden}[role]

    def module(self, role: str) -> str:
        """The full name of the role's module; of alternatives, the first that is there."""
        return self.named(getattr(self.family, role))

    def named(self, modules: str) -> str:
        """Of "a|b", the first below this layer that has a weight; a name ending in "!" is the tensor itself."""
        options = modules.split("|")
        found = next((m for m in options if self.tensor(self.prefix + m) in self.weights), options[0])
        return self.prefix + found

    @staticmethod
    def tensor(module: str) -> str:
        return module[:-1] if module.endswith("!") else f"{module}.weight"

    @staticmethod
    def bias(module: str) -> str:
        """The name of a module's bias; torch's own attention keeps in_proj_bias beside in_proj_weight."""
        return module[:-1].removesuffix("_weight") + "_bias" if module.endswith("_weight!") else f"{module}.bias"

    def grids(self, role: str) -> tuple[Grid, Grid]:
        """(index, channel) of one role along the output axis (o: the input axis)."""
        names = {"H": self.n_heads, "K": self.n_kv_heads, "g": self.g, "d": self.head_dim, "dv": self.value_dim}
        width = self.width(role)
        layout = self.family.layout_for(dict(self.config) | {"layer": self.number}, evaluate)
        start, group, repeat, *blocks = (evaluate(e, names) for e in layout[role])
        repeats = self.g if role in "qo" else 1
        if not blocks:
            sizes = (self.n_kv_heads, repeats, width)
            return Grid(start, sizes, (group, repeat, 1)), Grid(0, sizes, (width, 0, 1))
        n_blocks, step = blocks
        inside = self.n_kv_heads // n_blocks
        if inside * n_blocks != self.n_kv_heads:
            raise Refused(
                f"{self.n_kv_heads} heads do not lie in {n_blocks} blocks. Check the head counts in config.json."
            )
        sizes = (n_blocks, inside, repeats, width)
        return Grid(start, sizes, (step, group, repeat, 1)), Grid(0, sizes, (inside * width, width, 0, 1))

    def separate(self, role: str) -> tuple[Grid, Grid]:
        """As ``grids`` where heads lie one behind the other; "head": one head's channels, shared by all."""
        if role == "head":
            grid = Grid(0, (1, 1, self.head_dim), (0, 0, 1))
            return grid, grid
        width = self.width(role)
        sizes = (self.n_kv_heads, self.g if role in "qo" else 1, width)
        return Grid(0, sizes, (width * sizes[1], width, 1)), Grid(0, sizes, (width, 0, 1))

    def group_ties(self, width: int) -> tuple[Grid, ...]:
        return (Grid(0, (self.n_kv_heads, width), (width, 1)),)

    def rotary_ties(self, n_heads: int, width: int) -> tuple[Grid, ...]:
        """Each rotary pair shares one factor: (i, i + r/2) half-split in each of its blocks, (2i, 2i + 1) interleaved;
        the rest of a head of ``width`` is free.
        """
        if not self.rope_width:
            return ()
        blocks = self.family.rope_blocks
        pairs = self.rope_width // (2 * blocks)
        pair, between = (1, pairs) if self.rope == "half" else (2, 1)
        return (Grid(0, (n_heads, blocks, pairs, 2), (width, 2 * pairs, pair, between)),)

    @property
    def rotary(self) -> tuple[str, int, float]:
        return (self.rope, self.rope_width, self.theta)


def numbers(weights: Weights, family: Family, config: Mapping, number: int, prefix: str) -> Layer:
    """Raises ConfigMismatch, naming the keys of config.json."""
    names = dict(config) | {
        "layer": number,
        "config": config,
    }  # config.x: the key's own value where a field is named alike
    n_heads = whole(family.n_heads, names, "query heads", at_most=1 << 14, layer=number)
    n_kv_heads = whole(family.n_kv_heads, names, "key/value heads", at_most=1 << 14, layer=number)
    if n_heads % n_kv_heads:
        raise ConfigMismatch(
            f"config.json gives {n_heads} query heads on {n_kv_heads} key/value heads; the first must be a multiple "
            f"of the second. Check num_key_value_heads."
        )
    names |= {"n_heads": n_heads, "n_kv_heads": n_kv_heads}
    head_dim = whole(family.head_dim, names, "head_dim", at_most=1 << 14, layer=number)
    names |= {"head_dim": head_dim}
    sizes = {}
    for key in ("hidden_size", "value_dim", "kv_hidden", "v_hidden", "out_hidden", "o_inputs"):
        at_least = 0 if key == "o_inputs" else 1
        names[key] = sizes[key] = whole(getattr(family, key), names, key, at_least, layer=number)
    width, rope = 0, family.rope if family.rope in ROPES else str(evaluate(family.rope, names))
    if rope != "none":
        # the rotary width is 2 * len(inv_freq) = 2 * ceil(int(w) / 2), not int(w): 16 * 0.334 rotates 6 channels, not 5
        stated = evaluate(family.rope_width, names)
        if isinstance(stated, bool) or not isinstance(stated, (int, float)) or not 0 < stated <= head_dim:
            raise ConfigMismatch(
                f"config.json gives a rotary width of {stated!r} in heads of {head_dim} ({family.rope_width})."
            )
        width = 2 * ((int(stated) + 1) // 2)
    theta = evaluate(family.rope_theta, names)
    theta = float(theta) if isinstance(theta, (int, float)) and 0 < theta < 1e300 else 0.0
    return Layer(
        weights,
        family,
        config,
        number,
        prefix,
        n_heads,
        n_kv_heads,
        head_dim,
        **sizes,
        rope=rope,
        rope_width=width,
        theta=theta,
    )


def projection_legs(layer: Layer, role: str, side: str) -> tuple[Leg, ...]:
    """The role's weight and, unless it is o, its bias, checked against the numbers. Raises Refused."""
    family, module = layer.family, layer.module(role)
    index, channel = layer.grids(role)
    if family.heads_axis:
        heads = layer.n_heads if role in "qo" else layer.n_kv_heads
        shape = (layer.beside(role), heads, layer.width(role))
        layer.weights.require(
            layer.tensor(module),
            shape,
            f"{heads} {HEADS[role]} heads of {layer.width(role)}",
            "the head counts and head_dim",
        )
        return _legs_by_head(layer, layer.tensor(module), 2, 1, role, side)
    if family.by_expert and role in "qo":
        return _legs_by_expert(layer, layer.tensor(module), 1 if role == "q" else 2, role, side)
    # a fused matrix holds every role that names the same module
    sharing = [r for r in "qkvo" if layer.module(r) == module]
    width = max(layer.grids(r)[0].last for r in sharing) + 1
    width = max(width, _gate_width(layer, role), layer.o_inputs if role == "o" else 0)
    inputs = layer.beside(role)
    shape = (inputs, width) if role == "o" else (width, inputs)
    axis = 1 if role == "o" else 0
    named = f"{layer.n_heads if role in 'qo' else layer.n_kv_heads} {HEADS[role]} heads of {layer.width(role)}"
    lines = "columns" if (role == "o") != family.conv1d else "rows"
    what = f"{'the fused q, k and v' if len(sharing) > 1 else named} need {width:,} {lines}"
    tensor = layer.tensor(module)
    layer.weights.require(
        tensor, (shape[::-1] if family.conv1d else shape) + family.trailing, what, "the head counts and head_dim"
    )
    legs = [Leg(tensor, 1 - axis if family.conv1d else axis, index, channel, side, role)]
    bias = layer.bias(module)
    # biases of q, k and v scale with their rows; the bias of the output projection does not
    if role != "o" and bias in layer.weights:
        layer.weights.require(bias, (width,), "the bias has one value a row", "the head counts")
        legs.append(Leg(bias, 0, index, channel, side, role, measured=False))
    return tuple(legs)


def _gate_width(layer: Layer, role: str) -> int:
    """Rows of a q projection that also holds the output gates, which lie behind each head's query."""
    index, _ = layer.grids(role)
    return index.last + 1 + layer.head_dim if role == "q" and index.strides[-2] == 2 * layer.head_dim else 0


def _legs_by_head(
    layer: Layer, tensor: str, axis: int, heads_axis: int, role: str, side: str, measured=True, offset=0.0
) -> tuple[Leg, ...]:
    """One leg a head of a tensor whose heads are an axis of their own."""
    _, channel = layer.separate(role)
    width, (groups, repeats, _) = layer.width(role), channel.sizes
    legs = []
    for head in range(groups * repeats):
        start = head // repeats * width
        legs.append(
            Leg(
                tensor,
                axis,
                Grid(0, (1, 1, width), (0, 0, 1)),
                Grid(start, (1, 1, width), (0, 0, 1)),
                side,
                role,
                measured,
                offset=offset,
                fixed=((heads_axis, head),),
            )
        )
    return tuple(legs)


def _legs_by_expert(layer: Layer, tensor: str, axis: int, role: str, side: str) -> tuple[Leg, ...]:
    """One leg an expert of a tensor (experts, out, in)."""
    index, channel = layer.separate(role)
    shape = layer.weights.shape(tensor) or (0, 0, 0)
    width = layer.n_heads * layer.width(role)
    wanted = (shape[0], width, layer.hidden_size) if role == "q" else (shape[0], layer.out_hidden, width)
    layer.weights.require(
        tensor,
        wanted,
        f"every expert holds {layer.n_heads} {HEADS[role]} heads of {layer.width(role)}",
        "the head counts",
    )
    return tuple(Leg(tensor, axis, index, channel, side, role, fixed=((0, expert),)) for expert in range(shape[0]))


def following_legs(layer: Layer, pair: str) -> tuple[Leg, ...]:
    """The legs of the family's followers of that pair whose tensors are there. Raises Refused for a wrong shape."""
    legs: list[Leg] = []
    for one in layer.family.follow:
        tensor = layer.prefix + one.tensor
        shape = layer.weights.shape(tensor)
        if one.pair != pair or shape is None:
            continue
        role = "q" if one.like == "head" else one.like
        index, channel = layer.separate(one.like)
        if one.heads_axis >= 0:
            legs += _legs_by_head(
                layer, tensor, one.axis, one.heads_axis, role, one.side, measured=False, offset=one.offset
            )
            continue
        if one.axis >= len(shape) or shape[one.axis] != index.last + 1:
            raise Refused(
                f"{tensor} is {' x '.join(map(str, shape))}; {index.last + 1} along axis {one.axis} are expected."
            )
        legs.append(Leg(tensor, one.axis, index, channel, one.side, role, measured=False, offset=one.offset))
    return tuple(legs)


def shared_ties(layer: Layer, pair: str) -> tuple[Grid, ...]:
    """A table that meets every head's channel i ties the heads there."""
    tables = [one for one in layer.family.follow if one.pair == pair and one.like == "head"]
    if not any(layer.prefix + one.tensor in layer.weights for one in tables) or layer.n_kv_heads == 1:
        return ()
    return (Grid(0, (layer.head_dim, layer.n_kv_heads), (1, layer.head_dim)),)


def refuse(layer: Layer, rules: Rules) -> None:
    """Raises Refused with the reason of the first rule that is true."""
    names = dict(layer.config) | {"layer": layer.number}
    for expression, reason in rules:
        if evaluate(expression, names):
            raise Refused(f"{reason}.")


def check_explained(layer: Layer, known: Iterable[str]) -> None:
    """Every tensor inside the attention module must be known: an extra norm or clip would change the rule. Raises
    Refused.
    """
    family, prefix = layer.family, layer.prefix
    known = set(known)
    for name in layer.weights.below(prefix):
        rest = name.removeprefix(prefix)
        if name in known or not any(rest.startswith(part) for part in family.inside):
            continue
        if not any(fnmatch.fnmatchcase(rest, pattern) for pattern in family.inert):
            raise Refused(f"{name} is not part of the {family.name} rule; it may change what an exact factor is.")
