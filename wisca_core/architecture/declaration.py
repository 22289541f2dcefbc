"""What a person says of a model that no family file knows: the words of a family's row, for tensors that are there.

A declaration is data: which tensors write and read the channels of a pair, how many heads there are, how they lie in
the matrices, what rotates. Here are its words and what they may be; ``declared_paths`` finds its tensors,
``declared_layer`` reads the sizes off their shapes, ``declared_sites`` makes the pairs, ``declaration_files`` reads and
writes it. Nothing here is known to be right: it is proved on the model itself (``equivalence.declared_proof``) before
it is used.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wisca_core.architecture.families import layout_names
from wisca_core.architecture.layer import ROPES
from wisca_core.architecture.mlp import HOMOGENEOUS
from wisca_core.errors import DeclarationError
from wisca_core.wrappers import unwrapped_name

NAME = "declared"
_MOST = 1 << 16  # heads, channels, layers: more is a slip of the pen


@dataclass(frozen=True)
class Declaration:
    """``kind``: "attention" or "feed_forward"; ``layer``: the path of its tensors, {i} in place of the layer's number,
    {e} in place of an expert's; ``words``: (name, value) of what was said beyond the defaults.

    >>> attention("h.{i}.attn", qkv="c_attn", out="c_proj", n_heads=12)
    wisca.attention('h.{i}.attn', qkv='c_attn', out='c_proj', n_heads=12)
    """

    kind: str
    layer: str
    words: tuple[tuple[str, object], ...]

    def __getitem__(self, word: str):
        return dict(self.words).get(word)

    def __repr__(self) -> str:
        return f"wisca.{self.kind}({', '.join([repr(self.layer), *(f'{k}={plain(v)!r}' for k, v in self.words)])})"

    @property
    def title(self) -> str:
        """For messages: enough to know which it is."""
        return f"{self.kind}({self.layer!r})"

    def to_json(self) -> dict:
        return {"kind": self.kind, "layer": self.layer} | {name: plain(value) for name, value in self.words}


def attention(
    layer: str,
    *,
    q: str = "",
    k: str = "",
    v: str = "",
    kv: str = "",
    qkv: str = "",
    qkv_bias: str = "",
    kv_a: str = "",
    kv_b: str = "",
    out: str,
    n_heads: int,
    n_kv_heads: int | None = None,
    head_dim: int | None = None,
    value_dim: int | None = None,
    rope: str = "none",
    rope_channels: int | None = None,
    rope_blocks: int = 1,
    layout: str = "",
    conv1d: bool = False,
    heads_axis: bool = False,
    out_extra: bool = False,
    kv_layer: int | None = None,
    qk_norm: Mapping | Sequence[str] = (),
    sub_norm: str = "",
    follow: Sequence[Mapping] = (),
    layers: Sequence[int] | str = (),
    stack: str = "decoder",
    attention: str = "self",
    part: str = "",
) -> Declaration:
    """Declare the QK and VO pairs of every attention whose tensors lie under ``layer``.

    ``q``, ``k``, ``v``, ``out``: modules below it; ``qkv``, or ``kv`` beside ``q``: one that holds several. A parameter
    without a module is named as it is (nn.MultiheadAttention's "in_proj_weight"); ``qkv_bias``: one bias [q; k; v] of
    matrices that are apart (its "in_proj_bias"); ``kv_a``, ``kv_b``: of latent attention, beside the last matrix of
    ``q``. ``n_kv_heads``: None as many as ``n_heads``. ``layout`` of what is fused: "concat" ([q; k; v]), "per_head"
    ([head][q, k, v]), "per_group" ([group][its q's, k, v]) and the others of ``rows/defaults.toml``. ``conv1d``:
    matrices are stored [in, out]; ``heads_axis``: as [in, heads, width], ``out`` as [out, heads, width] (in a training
    unless they are sharded); ``out_extra``: ``out`` reads further channels behind the heads'. ``kv_layer``: these
    ``layers`` have ``q`` and ``out`` alone and read the keys and values of that one, whose own declaration stands
    beside.

    ``rope``: "half" (channel i turns with i + r/2), "interleaved" (2i with 2i + 1) or "none" (learned, ALiBi, no
    position); ``rope_channels``: r of a head, None all; ``rope_blocks``: equal parts that turn by themselves (axes of a
    picture). ``qk_norm``: ("q_norm", "k_norm"), norms with gains behind the projections, or a mapping with q, k and
    before_rope (True), per ("head", "width", "rows": read off the shape), offset (1.0 where gain - 1 is stored); {h} in
    a name is a head's number where each has a norm of its own.
    ``sub_norm``: a norm between the heads and ``out``. ``follow``: further tensors that meet a pair's channels, as in
    ``rows/defaults.toml``. ``layers``: only these, as numbers or "0-3,7". ``stack``, ``attention`` ("cross"), ``part``:
    how the pairs are named.

    Raises DeclarationError.

    >>> import wisca_core as wisca
    >>> wisca.attention("layers.{i}.attention", q="wq", k="wk", v="wv", out="wo", n_heads=32, n_kv_heads=8, rope="half")
    wisca.attention('layers.{i}.attention', q='wq', k='wk', v='wv', out='wo', n_heads=32, n_kv_heads=8, rope='half')
    """
    said = {name: value for name, value in locals().items() if name != "layer"}
    title = f"attention({layer!r})"
    given = {name for name in ("q", "k", "v", "kv", "qkv", "kv_a", "kv_b") if said[name]}
    if kv_layer is not None:
        is_number = isinstance(kv_layer, int) and not isinstance(kv_layer, bool) and 0 <= kv_layer < _MOST
        if given != {"q"} or not layers or not is_number:
            raise DeclarationError(
                f"{title}: kv_layer={kv_layer!r} was given; it is the number of a layer, for layers= that have q and "
                "out of "
                "their own and neither k nor v."
            )
    elif given not in ({"q", "k", "v"}, {"q", "kv"}, {"qkv"}, {"q", "kv_a", "kv_b"}):
        raise DeclarationError(
            f"{title}: give q, k and v, or q and kv, or qkv, or q, kv_a and kv_b, each the name of a module below the "
            "layer."
        )
    if not out:
        raise DeclarationError(f"{title}: out, the module that reads the heads, is not named.")
    for name in ("n_heads", "n_kv_heads", "head_dim", "value_dim", "rope_channels", "rope_blocks"):
        value = said[name]
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _MOST):
            raise DeclarationError(f"{title}: {name}={value!r} was given; a whole number from 1 is needed.")
    _check_names(title, stack, attention, part)
    if n_heads % (n_kv_heads or n_heads):
        raise DeclarationError(f"{title}: {n_heads} query heads cannot share {n_kv_heads} key/value heads evenly.")
    if rope not in ROPES:
        raise DeclarationError(f"{title}: rope={rope!r} was given; choose from {', '.join(ROPES)}.")
    if rope_channels is not None and (rope == "none" or rope_channels % (2 * rope_blocks)):
        why = "nothing rotates with rope='none'" if rope == "none" else "channels rotate two by two"
        raise DeclarationError(f"{title}: rope_channels={rope_channels} was given; {why}.")
    if layout and layout not in layout_names():
        raise DeclarationError(f"{title}: layout={layout!r} was given; choose from {', '.join(layout_names())}.")
    if layout in ("per_head", "codegen") and n_kv_heads not in (None, n_heads):
        raise DeclarationError(
            f"{title}: layout={layout!r} has a key and a value for every query head; n_kv_heads says other."
        )
    said["qk_norm"] = _norm_words(title, qk_norm)
    said["follow"] = _followers(title, follow)
    said["layers"] = _layer_numbers(title, layers)
    return _make_declaration("attention", layer, said, ATTENTION)


def feed_forward(
    layer: str,
    *,
    down: str,
    up: str = "",
    gate: str = "",
    fused: str = "",
    activation: str = "",
    up_first: bool = False,
    by_rows: bool = False,
    conv1d: bool = False,
    layers: Sequence[int] | str = (),
    stack: str = "decoder",
    part: str = "",
) -> Declaration:
    """Declare the pair of up and down of every feed-forward whose tensors lie under ``layer``; {e} is an expert's
    number.

    ``gate``: the module behind whose activation ``up`` is multiplied; ``fused``: gate and up in one matrix, the gate
    first (``up_first``: not). ``by_rows``: every expert's rows lie one below the other, of ``down`` too, which is
    multiplied from the left. Without a gate there is a pair only behind an ``activation`` of "relu", "relu2" and the
    like. Raises DeclarationError.

    >>> import wisca_core as wisca
    >>> wisca.feed_forward("layers.{i}.feed_forward", gate="w1", up="w3", down="w2")
    wisca.feed_forward('layers.{i}.feed_forward', down='w2', up='w3', gate='w1')
    """
    said = {name: value for name, value in locals().items() if name != "layer"}
    title = f"feed_forward({layer!r})"
    if not down or bool(up) == bool(fused) or (fused and gate):
        raise DeclarationError(f"{title}: give down with up, with gate and up, or with fused (both in one matrix).")
    _check_names(title, stack, "self", part)
    if not gate and not fused and activation not in HOMOGENEOUS:
        raise DeclarationError(
            f"{title}: without a gate a factor passes only through ReLU and its square; give gate=, or "
            f"activation= one of {', '.join(HOMOGENEOUS)} ({activation or 'none'} was given)."
        )
    said["layers"] = _layer_numbers(title, layers)
    return _make_declaration("feed_forward", layer, said, FEED_FORWARD)


def _check_names(title: str, stack: object, attention: object, part: object) -> None:
    """Names of pairs are read back from plans and telemetry."""
    fits = isinstance(stack, str) and re.fullmatch(r"\w+", stack) and attention in ("self", "cross")
    if not fits or not isinstance(part, str) or not re.fullmatch(r"[\w.-]*", part):
        raise DeclarationError(
            f"{title}: stack={stack!r}, attention={attention!r}, part={part!r} make no name of a pair; stack is a "
            "word, attention "
            "'self' or 'cross', part of letters, digits, '.', '-' and '_'."
        )


def _make_declaration(kind: str, layer: str, said: Mapping, defaults: Mapping) -> Declaration:
    if not isinstance(layer, str) or not layer.strip(".") or re.search(r"\{(?![ie]\})", layer):
        raise DeclarationError(
            f"{kind}({layer!r}): the path of a layer's tensors is needed, with {{i}} in place of its number."
        )
    for name, value in said.items():
        for wanted, what in ((str, "text"), (bool, "True or False")):
            if isinstance(defaults[name], wanted) and not isinstance(value, wanted):
                raise DeclarationError(f"{kind}({layer!r}): {name}={value!r} was given; {what} is needed.")
    words = tuple((name, value) for name, value in said.items() if value not in (defaults[name], None))
    return Declaration(kind, unwrapped_name(layer.strip(".")), words)  # written as a file has it, or as the model


ATTENTION = {"out": "", "n_heads": 0} | attention.__kwdefaults__
FEED_FORWARD = {"down": ""} | feed_forward.__kwdefaults__
MAKERS = {"attention": attention, "feed_forward": feed_forward}


def _norm_words(title: str, given: object) -> tuple:
    if not given:
        return ()
    is_pair = isinstance(given, (list, tuple)) and len(given) == 2
    words = dict(given) if isinstance(given, Mapping) else dict(zip("qk", given)) if is_pair else {}
    unknown = words.keys() - {"q", "k", "per", "before_rope", "offset"}
    is_wrong = (
        not all(isinstance(words.get(name), str) for name in "qk")
        or words.get("per", "head") not in ("head", "heads", "width", "rows")
        or not isinstance(words.get("before_rope", True), bool)
        or not isinstance(words.get("offset", 0.0), (int, float))
    )
    if unknown or is_wrong:
        raise DeclarationError(
            f"{title}: qk_norm={given!r} was given; needed is ('q_norm', 'k_norm') or a mapping with q, k and, where "
            "they "
            "differ from the usual, per, before_rope and offset."
        )
    return tuple(sorted(words.items()))


def _followers(title: str, given: object) -> tuple:
    allowed = {
        "pair": ("qk", "vo"),
        "tensor": str,
        "axis": int,
        "like": ("q", "k", "v", "o", "head"),
        "side": ("left", "right"),
        "heads_axis": int,
        "offset": (int, float),
    }
    needed = [name for name in allowed if name not in ("heads_axis", "offset")]
    for one in given if isinstance(given, (list, tuple)) else [given]:
        fits = isinstance(one, Mapping) and set(needed) <= one.keys() <= allowed.keys()
        for name, rule in allowed.items() if fits else ():
            value = one.get(name, 0)
            is_text = isinstance(rule, tuple) and isinstance(rule[0], str)
            fits &= (name not in one and name not in needed) or (
                value in rule if is_text else isinstance(value, rule) and not isinstance(value, bool)
            )
        if not fits:
            raise DeclarationError(
                f"{title}: follow={given!r} was given; a list of mappings with {', '.join(needed)} and, where they are "
                "needed, "
                "heads_axis and offset (rows/defaults.toml explains them)."
            )
    return tuple(tuple(sorted(one.items())) for one in given)


def _layer_numbers(title: str, given: Sequence[int] | str) -> tuple[int, ...]:
    try:
        parts = given.split(",") if isinstance(given, str) else given
        out: set[int] = set()
        for part in parts if given else ():
            low, _, high = str(part).partition("-")
            ends = int(low), int(high or low)
            if not 0 <= ends[0] <= ends[1] < _MOST:
                raise ValueError(part)
            out |= set(range(ends[0], ends[1] + 1))
    except (TypeError, ValueError):
        raise DeclarationError(
            f"{title}: layers={str(given)[:80]!r} was given; numbers, or text such as '0-3,7'."
        ) from None
    return tuple(sorted(out))


def as_declarations(given: object) -> tuple[Declaration, ...]:
    """What was given as ``sites=``. Raises DeclarationError."""
    several = (given,) if isinstance(given, Declaration) else given
    if not isinstance(several, (list, tuple)) or not all(isinstance(one, Declaration) for one in several):
        guess = " A guess is to be read and written down as your own." if type(given).__name__ == "Guess" else ""
        raise DeclarationError(
            f"sites: a {type(given).__name__} was given; a list of wisca.attention(...) and wisca.feed_forward(...) is "
            f"needed.{guess}"
        )
    return tuple(several)


def plain(value: object) -> object:
    """Pairs of names and values are mappings where people read them."""
    if isinstance(value, tuple) and value and all(isinstance(one, tuple) for one in value):
        is_map = all(len(one) == 2 and isinstance(one[0], str) for one in value)
        return dict(value) if is_map else [plain(one) for one in value]
    return list(value) if isinstance(value, tuple) else value
