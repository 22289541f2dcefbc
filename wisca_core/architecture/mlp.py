"""Feed-forward pairs of one layer: row i of up against column i of down.

Behind a gate, ``down(act(gate x) * (up x))``, any activation is exact; without one only ReLU (and its square, where
down follows with the second power). Experts are found one by one, as modules of their own or as slices of 3-D tensors.
"""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from wisca_core.architecture.attention import refuse
from wisca_core.architecture.expressions import evaluate
from wisca_core.architecture.layer import Layer, Refused
from wisca_core.architecture.site import Grid, Leg, Refusal, Site, SiteKey

# activations f with f(s x) = s^b f(x) for s > 0, by the names of config.json -> b
HOMOGENEOUS = {"relu": 1, "relu2": 2, "relu_squared": 2, "squared_relu": 2, "laplace_relu2": 2}
# names of a layer's one feed-forward block; any other (shared_expert, dense_mlp) is said in the site's name
_USUAL = {"mlp", "feed_forward", "ffn", "ff", "block_sparse_moe", "moe", "experts", "DenseReluDense", ""}
_ROUTER = re.compile(r"(^|\.)(gate|\w*router\w*)\.")
# what may lie beside the matrices: an output bias, routers, blocks found by themselves, a norm behind the block
_BESIDE = re.compile(
    r"(bias$|gate|router|experts?|shared\w*|\w*gating|act\w*|e_score\w*|layer_?norm|output\.LayerNorm|"
    r"balancing\w*)(\.|_|$)",
    re.I,
)


@dataclass(frozen=True)
class _Names:
    down: str
    up: str = ""
    gate: str = ""
    fused: str = ""
    by_rows: bool = False  # down's channels are its rows too


@lru_cache(maxsize=1)
def _rules() -> tuple[_Names, ...]:
    data = tomllib.loads(resources.files(__package__).joinpath("rows/defaults.toml").read_text(encoding="utf-8"))
    return tuple(_Names(**one) for one in data["mlps"])


@dataclass(frozen=True)
class _Block:
    """``path``: of the block below its layer, "mlp.experts.3." or "" for the layer itself."""

    path: str
    names: _Names

    @property
    def expert(self) -> int:
        found = re.search(r"(?:^|\.)experts\.(?:expert_)?(\d+)\.$", self.path)
        return int(found[1]) if found else -1

    @property
    def part(self) -> str:
        last = re.sub(r"(^|\.)experts(\.(expert_)?\d+)?\.$", ".", self.path).strip(".").rsplit(".", 1)[-1]
        return "" if last in _USUAL else last


def mlp_sites(layer: Layer, layer_prefix: str) -> list[Site | Refusal]:
    """All feed-forward pairs below ``layer_prefix``; ``layer`` gives the names, the config and the hidden size."""
    out: list[Site | Refusal] = []
    for block in _blocks(layer, layer_prefix):
        key = SiteKey(layer.family.stack, layer.number, "none", "mlp", block.expert, block.part)
        try:
            refuse(layer, layer.family.refuse_mlp)
            _check_explained(layer, layer_prefix + block.path, block.names)
            out += _sites(layer, layer_prefix + block.path, block, key)
        except Refused as reason:
            out.append(Refusal(str(key), str(reason)))
    return out


def declared_mlp(
    layer: Layer,
    prefix: str,
    down: str,
    up: str = "",
    gate: str = "",
    fused: str = "",
    expert: int = -1,
    by_rows: bool = False,
) -> list[Site | Refusal]:
    """The pair of the block whose matrices have these names below ``prefix``, or why there is none."""
    key = layer.key("mlp", attention="none", expert=expert)
    try:
        return list(_sites(layer, prefix, _Block("", _Names(down, up, gate, fused, by_rows)), key))
    except Refused as reason:
        return [Refusal(str(key), str(reason))]


def _blocks(layer: Layer, layer_prefix: str) -> Iterator[_Block]:
    names = list(layer.weights.below(layer_prefix))
    there, claimed = set(names), set()
    attention = {layer.tensor(layer.module(role)) for role in "qkvo"}
    for rule in _rules():
        for name in names:
            for suffix in (f"{rule.down}.weight", rule.down):
                if not name.endswith(suffix) or name in claimed or name[: -len(suffix)].rpartition(".")[2]:
                    continue
                path = name[: -len(suffix)].removeprefix(layer_prefix)
                ending = suffix.removeprefix(rule.down)
                needed = [f"{layer_prefix}{path}{m}{ending}" for m in (rule.up, rule.gate, rule.fused) if m]
                if all(one in there and one not in attention for one in needed) and not _ROUTER.search(path):
                    claimed.add(name)
                    yield _Block(path, rule)


def _sites(layer: Layer, prefix: str, block: _Block, key: SiteKey) -> Iterator[Site]:
    weights, names = layer.weights, block.names
    ending = ".weight" if f"{prefix}{names.down}.weight" in weights else ""
    down, up = f"{prefix}{names.down}{ending}", f"{prefix}{names.fused or names.up}{ending}"
    down_shape, up_shape = weights.shape(down), weights.shape(up)
    if len(down_shape) != len(up_shape) or len(down_shape) not in (2, 3):
        raise Refused(
            f"{up} and {down} have {len(up_shape)} and {len(down_shape)} dimensions; two or three of both are expected."
        )
    if names.by_rows and up_shape == down_shape and len(up_shape) == 2:
        up_axis, down_axis, n, is_fused = 0, 0, up_shape[0], False
    else:
        up_axis, down_axis, n, is_fused = _axes(layer, up, down, up_shape, down_shape, bool(names.fused))
    exponent = 1 if names.gate or is_fused else _exponent(layer)
    first = n if is_fused and not layer.family.up_first else 0
    channel = Grid(0, (1, 1, n), (0, 0, 1))
    for expert in range(down_shape[0]) if len(down_shape) == 3 else [None]:
        fixed = () if expert is None else ((0, expert),)
        for name, shape in ((up, up_shape), (down, down_shape)):
            weights.require(name, shape, "", "")
        legs = [Leg(up, up_axis, Grid(first, (1, 1, n), (0, 0, 1)), channel, "left", "up", fixed=fixed)]
        for bias in (f"{prefix}{names.fused or names.up}.bias", f"{up}_bias"):
            if bias in weights:
                shape = weights.shape(bias)
                weights.require(
                    bias,
                    (*up_shape[:-2], n * (2 if is_fused else 1)),
                    "the bias has one value a row",
                    "intermediate_size",
                )
                legs.append(
                    Leg(bias, len(shape) - 1, legs[0].index, channel, "left", "up", measured=False, fixed=fixed)
                )
        legs.append(Leg(down, down_axis, channel, channel, "right", "down", exponent=exponent, fixed=fixed))
        one = key if expert is None else SiteKey(key.stack, key.layer, key.attention, key.pair, expert, key.part)
        yield Site(one, n, 1, tuple(legs), (), (Grid(0, (1, n), (0, 1)),), "weights", layer.family.name)


def _axes(layer: Layer, up: str, down: str, up_shape, down_shape, is_fused: bool) -> tuple[int, int, int, bool]:
    """(axis of up's rows, axis of down's columns, channels, whether gate and up share the matrix), read off the shapes.

    An [out, in] matrix has its rows first; Conv1D and some 3-D experts store [in, out].
    """
    ways = []
    for is_turned in (False, True):
        a, b = (up_shape[-1], up_shape[-2]) if is_turned else (up_shape[-2], up_shape[-1])  # out, in
        c, d = (down_shape[-1], down_shape[-2]) if is_turned else (down_shape[-2], down_shape[-1])
        if b == c and a in ((2 * d,) if is_fused else (d, 2 * d)):
            up_axis, down_axis = len(up_shape) - (1 if is_turned else 2), len(up_shape) - (2 if is_turned else 1)
            ways.append((up_axis, down_axis, d, a == 2 * d))
    if len(ways) == 2 and len(up_shape) == 3:  # inputs of up and outputs of down are the hidden state
        ways = [way for way in ways if up_shape[3 - way[0]] == layer.hidden_size != up_shape[way[0]]]
    if len(ways) == 2 and len(up_shape) == 2:
        ways = ways[1:] if layer.family.conv1d else ways[:1]
    if len(ways) != 1:
        raise Refused(
            f"{up} is {' x '.join(map(str, up_shape))} and {down} {' x '.join(map(str, down_shape))}; "
            f"{'both orientations fit' if ways else 'their shapes do not meet'}, so no pair can be told."
        )
    return ways[0]


def _exponent(layer: Layer) -> int:
    activation = evaluate(layer.family.activation, layer.config)
    if activation not in HOMOGENEOUS:
        raise Refused(
            f"{str(activation or 'an unnamed activation')[:40]} stands between up and down without a gate; it does not "
            "pass a factor on "
            f"(only ReLU and its square do)."
        )
    return HOMOGENEOUS[activation]


def _check_explained(layer: Layer, prefix: str, names: _Names) -> None:
    own = tuple(m for m in (names.up, names.gate, names.down, names.fused) if m)
    if not re.search(r"(mlp|ffn|feed_forward|experts|moe|expert)\w*\.(\d+\.)?$", prefix):
        return
    for name in layer.weights.below(prefix):
        rest = name.removeprefix(prefix)
        if not rest.startswith(own) and not _BESIDE.match(rest):
            raise Refused(
                f"{name} is not part of what is known of this feed-forward block; it may change what an exact factor "
                "is."
            )
