"""Sites that a person declares for a model no family file knows: the words of a family's row, for tensors that are there.

A declaration is data: which tensors write and read the channels of a pair, how many heads there are, how they lie in the
matrices, what rotates. Sizes are read off the shapes, so that one declaration serves a model and a small copy of it.
Nothing here is known to be right: it is proved on the model itself (``equivalence.declared_proof``) before it is used.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from wisca_core.architecture.attention import attention_sites, norm_of
from wisca_core.architecture.families import Family, layout_names, row
from wisca_core.architecture.layer import ROPES, Layer, Weights, numbers
from wisca_core.architecture.mlp import HOMOGENEOUS, declared_mlp
from wisca_core.architecture.site import DEFAULT_PAIRS, Leg, Refusal, Site, Sites
from wisca_core.checkpoint import Checkpoint, Declared, open_checkpoint
from wisca_core.errors import DeclarationError, UnreadableInput
from wisca_core.progress import Progress, silent
from wisca_core.untrusted import named_path, parse_toml, read_regular
from wisca_core.wrappers import unwrapped

NAME = "declared"
FORMAT, VERSION = "wisca-sites", 1
MAX_BYTES = 1 << 20
_NUMBERS = ("n_heads", "n_kv_heads", "head_dim", "value_dim", "hidden_size", "kv_hidden", "v_hidden", "out_hidden")
_MOST = 1 << 16  # heads, channels: more is a slip of the pen


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
        return f"wisca.{self.kind}({', '.join([repr(self.layer), *(f'{k}={_plain(v)!r}' for k, v in self.words)])})"

    @property
    def title(self) -> str:
        """For messages: enough to know which it is."""
        return f"{self.kind}({self.layer!r})"

    def to_json(self) -> dict:
        return {"kind": self.kind, "layer": self.layer} | {name: _plain(value) for name, value in self.words}


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
    matrices that are apart (its "in_proj_bias"); ``kv_a``, ``kv_b``: of latent attention, beside the last matrix of ``q``. ``n_kv_heads``: None as many as
    ``n_heads``. ``layout`` of what is fused: "concat" ([q; k; v]), "per_head" ([head][q, k, v]), "per_group" ([group][its
    q's, k, v]) and the others of ``rows/defaults.toml``. ``conv1d``: matrices are stored [in, out]; ``heads_axis``: as [in,
    heads, width], ``out`` as [out, heads, width] (in a training unless they are sharded); ``out_extra``: ``out`` reads further channels behind the heads'.
    ``kv_layer``: these ``layers`` have ``q`` and ``out`` alone and read the keys and values of that one, whose own declaration
    stands beside.

    ``rope``: "half" (channel i turns with i + r/2), "interleaved" (2i with 2i + 1) or "none" (learned, ALiBi, no
    position); ``rope_channels``: r of a head, None all; ``rope_blocks``: equal parts that turn by themselves (axes of a
    picture). ``qk_norm``: ("q_norm", "k_norm"), norms with gains behind the projections, or a mapping with q, k and
    before_rope (True), per ("head", "width", "rows": read off the shape), offset (1.0 where gain - 1 is stored); {h} in a
    name is a head's number where each has a norm of its own.
    ``sub_norm``: a norm between the heads and ``out``. ``follow``: further tensors that meet a pair's channels, as in
    ``rows/defaults.toml``. ``layers``: only these, as numbers or "0-3,7". ``stack``, ``attention`` ("cross"), ``part``: how
    the pairs are named.

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
                f"{title}: kv_layer={kv_layer!r} was given; it is the number of a layer, for layers= that have q and out of "
                "their own and neither k nor v."
            )
    elif given not in ({"q", "k", "v"}, {"q", "kv"}, {"qkv"}, {"q", "kv_a", "kv_b"}):
        raise DeclarationError(
            f"{title}: give q, k and v, or q and kv, or qkv, or q, kv_a and kv_b, each the name of a module below the layer."
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
    return _declared("attention", layer, said, _ATTENTION)


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
    """Declare the pair of up and down of every feed-forward whose tensors lie under ``layer``; {e} is an expert's number.

    ``gate``: the module behind whose activation ``up`` is multiplied; ``fused``: gate and up in one matrix, the gate
    first (``up_first``: not). ``by_rows``: every expert's rows lie one below the other, of ``down`` too, which is multiplied
    from the left. Without a gate there is a pair only behind an ``activation`` of "relu", "relu2" and the
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
    return _declared("feed_forward", layer, said, _FEED_FORWARD)


def _check_names(title: str, stack: object, attention: object, part: object) -> None:
    """Names of pairs are read back from plans and telemetry."""
    fits = isinstance(stack, str) and re.fullmatch(r"\w+", stack) and attention in ("self", "cross")
    if not fits or not isinstance(part, str) or not re.fullmatch(r"[\w.-]*", part):
        raise DeclarationError(
            f"{title}: stack={stack!r}, attention={attention!r}, part={part!r} make no name of a pair; stack is a word, attention "
            "'self' or 'cross', part of letters, digits, '.', '-' and '_'."
        )


def _declared(kind: str, layer: str, said: Mapping, defaults: Mapping) -> Declaration:
    if not isinstance(layer, str) or not layer.strip(".") or re.search(r"\{(?![ie]\})", layer):
        raise DeclarationError(
            f"{kind}({layer!r}): the path of a layer's tensors is needed, with {{i}} in place of its number."
        )
    for name, value in said.items():
        for wanted, what in ((str, "text"), (bool, "True or False")):
            if isinstance(defaults[name], wanted) and not isinstance(value, wanted):
                raise DeclarationError(f"{kind}({layer!r}): {name}={value!r} was given; {what} is needed.")
    words = tuple((name, value) for name, value in said.items() if value not in (defaults[name], None))
    return Declaration(kind, unwrapped(layer.strip(".")), words)  # written as a file has it, or as the model


_ATTENTION = {"out": "", "n_heads": 0} | attention.__kwdefaults__
_FEED_FORWARD = {"down": ""} | feed_forward.__kwdefaults__
_MAKERS = {"attention": attention, "feed_forward": feed_forward}


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
            f"{title}: qk_norm={given!r} was given; needed is ('q_norm', 'k_norm') or a mapping with q, k and, where they "
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
                f"{title}: follow={given!r} was given; a list of mappings with {', '.join(needed)} and, where they are needed, "
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


def checked(given: object) -> tuple[Declaration, ...]:
    """What was given as ``sites=``. Raises DeclarationError."""
    several = (given,) if isinstance(given, Declaration) else given
    if not isinstance(several, (list, tuple)) or not all(isinstance(one, Declaration) for one in several):
        guess = " A guess is to be read and written down as your own." if type(given).__name__ == "Guess" else ""
        raise DeclarationError(
            f"sites: a {type(given).__name__} was given; a list of wisca.attention(...) and wisca.feed_forward(...) is "
            f"needed.{guess}"
        )
    return tuple(several)


def read_declarations(path: Path) -> tuple[Declaration, ...]:
    """From a TOML file, as ``parse_declarations`` reads it. Raises UnreadableInput, DeclarationError."""
    return parse_declarations(read_regular(named_path(path), MAX_BYTES), str(path))


def parse_declarations(text: bytes, path: str) -> tuple[Declaration, ...]:
    """``format = "wisca-sites"``, ``version = 1``, then tables [[attention]] and [[feed_forward]] with the arguments of
    these functions. ``path``: what errors call it. Raises UnreadableInput, DeclarationError.
    """
    data = parse_toml(text, path)
    found = (data.pop("format", None), data.pop("version", None))
    if found != (FORMAT, VERSION):
        raise UnreadableInput(
            f'{path} begins with format {found[0]!r}, version {found[1]!r}; format = "{FORMAT}" and version = {VERSION} are '
            "read here."
        )
    unknown = data.keys() - _MAKERS.keys()
    if unknown or not any(data.values()):
        raise DeclarationError(
            f"{path}: {', '.join(sorted(unknown)) or 'no table'} was found; [[attention]] and [[feed_forward]] are known."
        )
    out = []
    for kind, make in _MAKERS.items():
        rows = data.get(kind, [])
        for one in rows if isinstance(rows, list) else [rows]:
            allowed = ("layer", *(_ATTENTION if kind == "attention" else _FEED_FORWARD))
            if not isinstance(one, dict) or one.keys() - set(allowed) or not isinstance(one.get("layer"), str):
                wrong = ", ".join(sorted(one.keys() - set(allowed))) if isinstance(one, dict) else ""
                raise DeclarationError(
                    f"{path}: [[{kind}]] has {wrong or 'no layer'}; its words are {', '.join(allowed)}."
                )
            try:
                out.append(make(one["layer"], **{name: value for name, value in one.items() if name != "layer"}))
            except TypeError as error:
                raise DeclarationError(f"{path}: [[{kind}]] {one['layer']}: {error}.") from error
    return tuple(out)


def open_declared(arguments: Mapping, progress: Progress = silent) -> Checkpoint:
    """The model that the arguments of a job name: {model, sites: path of a declaration, unproved: bool}, the last two only
    where one was made. Raises UnreadableInput, UnsupportedCheckpoint, DeclarationError.
    """
    declared = None
    if arguments.get("sites"):
        declared = Declared(
            read_declarations(Path(arguments["sites"])), is_unproved=arguments.get("unproved", False) is True
        )
    return open_checkpoint(arguments["model"], progress=progress, declared=declared)


def toml(declarations: Iterable[Declaration]) -> str:
    """The text of a file that ``read_declarations`` reads."""
    lines = [f'format = "{FORMAT}"', f"version = {VERSION}"]
    for one in declarations:
        lines += ["", f"[[{one.kind}]]", f"layer = {_toml(one.layer)}"]
        lines += [f"{name} = {_toml(_plain(value))}" for name, value in one.words]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {_toml(inner)}" for name, inner in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"' if isinstance(value, str) else repr(value)


def _plain(value: object) -> object:
    """Pairs of names and values are mappings where people read them."""
    if isinstance(value, tuple) and value and all(isinstance(one, tuple) for one in value):
        is_map = all(len(one) == 2 and isinstance(one[0], str) for one in value)
        return dict(value) if is_map else [_plain(one) for one in value]
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True)
class _Place:
    layer: int
    expert: int
    prefix: str


def root_of(names: Iterable[str], declarations: Sequence[Declaration]) -> str:
    """What stands before every declared path in these names, "" where they begin with it. Raises DeclarationError."""
    names = list(names)
    roots: set[str] | None = None
    for one in declarations:
        pattern = re.compile(r"(?:^|(?<=\.))" + _pattern(one))
        found = {name[: match.start()] for name in names for match in pattern.finditer(name)}
        if not found:
            raise DeclarationError(f"{one.title}: no tensor of the model lies there. {_near(one, names)}")
        found = {""} if "" in found else found
        roots = found if roots is None else roots & found
    if len(roots or ()) != 1:
        shown = ", ".join(f"{root!r}" for root in sorted(roots or ()))
        raise DeclarationError(
            f"sites: the paths are found below {len(roots)} places of the model ({shown}); write them from the top of the "
            "model on."
            if roots
            else "sites: no one part of the model holds every declared path; write them from the top of the model on."
        )
    return next(iter(roots))


def _pattern(one: Declaration) -> str:
    escaped = (
        re.escape(one.layer)
        .replace(re.escape("{i}"), r"(?P<i>\d{1,6})", 1)
        .replace(re.escape("{e}"), r"(?P<e>\d{1,6})", 1)
    )
    return escaped.replace(re.escape("{i}"), r"(?P=i)").replace(re.escape("{e}"), r"(?P=e)") + r"\."


def _near(one: Declaration, names: Sequence[str]) -> str:
    numbered = one.layer.replace("{i}", "0").replace("{e}", "0")
    parents = list(dict.fromkeys(name.rpartition(".")[0].rpartition(".")[0] for name in names))
    like = difflib.get_close_matches(numbered, [parent for parent in parents if parent], 3, 0.4) or parents[:3]
    return f"Near it are {', '.join(like)}." if any(like) else "It has no tensors in modules."


def declared_sites(
    checkpoint: Checkpoint, declarations: Sequence[Declaration], pairs: Iterable[str] = DEFAULT_PAIRS
) -> Sites:
    """The sites that these declarations describe in this model, of these pairs; tensors that cannot be rescaled (shared,
    quantised) as refusals.

    Raises DeclarationError for a path that matches nothing or several places, a module that is not there, heads that
    do not divide its rows, two declarations that claim the same rows.
    """
    weights = Weights.of(checkpoint, "the declaration")
    root = root_of(weights.names, declarations)
    found: list[tuple[Declaration, Site | Refusal]] = []
    remarks: list[str] = []
    first = None
    n_layers = 0
    readers = _readers(weights, declarations, root)
    for one in declarations:
        if one["kv_layer"] is not None:
            continue
        places = _places(weights, one, root)
        for place in places:
            if one.kind == "feed_forward":
                found += [(one, site) for site in _feed_forward(weights, one, place)]
                continue
            layer = _layer(weights, one, place)
            first = first or layer
            n_layers = max(n_layers, place.layer + 1)
            reading = readers.pop(_name_of(one, place.layer), ())
            _check_readers(one, layer, reading)
            n_layers = max((n_layers, *(reader.number + 1 for reader in reading)))
            found += [(one, _with_bias(layer, one, site)) for site in attention_sites(layer, reading)]
            if norm_of(layer) and place is places[0]:
                remarks.append(
                    f"{one.layer}: its norms on q and k absorb the scale of Wq and Wk; the gains are the live pair and "
                    "are balanced instead."
                )
    if readers:
        (stack, attention, part, number), (reader, *_) = next(iter(readers.items()))
        raise DeclarationError(
            f"kv_layer={number}: no declaration gives layer {number} keys and values of its own "
            f"({'.'.join(filter(None, (stack, attention, part)))}), which layer {reader.number} is said to read."
        )
    _check_apart(found)
    pairs = tuple(pairs)
    sites = tuple(site for _, site in found if isinstance(site, Site) and site.key.pair in pairs)
    refusals = tuple(
        r for _, r in found if isinstance(r, Refusal) and r.what.split(":")[0].split(".")[3].split(".")[0] in pairs
    )
    about = first.attention(n_layers) if first else None
    return Sites(NAME, checkpoint.source, about, sites, refusals, tuple(remarks))


def _name_of(one: Declaration, number: int) -> tuple[str, str, str, int]:
    return one["stack"] or "decoder", one["attention"] or "self", one["part"] or "", number


def _readers(weights: Weights, declarations: Sequence[Declaration], root: str) -> dict[tuple, list[Layer]]:
    """The layers that read another one's keys and values, by that one's name."""
    out: dict[tuple, list[Layer]] = {}
    for one in declarations:
        if one["kv_layer"] is not None:
            for place in _places(weights, one, root):
                out.setdefault(_name_of(one, one["kv_layer"]), []).append(_layer(weights, one, place))
    return out


def _check_readers(one: Declaration, layer: Layer, reading: Iterable[Layer]) -> None:
    for reader in reading:
        theirs, ours = ((x.n_kv_heads, x.head_dim, x.value_dim, x.rope, x.rope_width) for x in (reader, layer))
        if theirs != ours:
            raise DeclarationError(
                f"{one.title}: layer {reader.number} reads the keys and values of layer {layer.number}, but is declared with "
                f"{theirs[0]} key/value heads of {theirs[1]} and {theirs[2]}, rope {theirs[3]!r} in {theirs[4]} channels; "
                f"there are {ours[0]} of {ours[1]} and {ours[2]}, rope {ours[3]!r} in {ours[4]}."
            )


def _places(weights: Weights, one: Declaration, root: str) -> list[_Place]:
    pattern = re.compile(re.escape(root) + _pattern(one))
    found = {}
    for name in weights.names:
        match = pattern.match(name)
        if match:
            at = match.groupdict()
            place = _Place(int(at.get("i") or 0), int(at["e"]) if at.get("e") else -1, match[0])
            found[(place.layer, place.expert)] = place
    chosen = one["layers"]
    missing = sorted(set(chosen or ()) - {layer for layer, _ in found})
    if missing:
        raise DeclarationError(
            f"{one.title}: layers={list(chosen)} names layer {missing[0]}; the model has none there."
        )
    return [place for key, place in sorted(found.items()) if not chosen or place.layer in chosen]


def _named(weights: Weights, one: Declaration, place: _Place, module: str) -> str:
    """As a row names it: a tensor that is itself the parameter ends in "!"."""
    if f"{place.prefix}{module}.weight" in weights:
        return module
    if f"{place.prefix}{module}" in weights:
        return f"{module}!"
    aliases = {alias: owner for alias, owner in weights.checkpoint.aliases}
    shared = aliases.get(f"{place.prefix}{module}.weight")
    if shared:
        raise DeclarationError(
            f"{one.title}: {place.prefix}{module}.weight is {shared} too; scaling it would change both."
        )
    inside = sorted({name.removeprefix(place.prefix).removesuffix(".weight") for name in weights.below(place.prefix)})
    raise DeclarationError(
        f"{one.title}: {place.prefix}{module} is no tensor of the model and no module with a weight; there are "
        f"{', '.join(inside[:8]) or 'none'}."
    )


def _layer(weights: Weights, one: Declaration, place: _Place) -> Layer:
    """The layer with every size read off its shapes."""
    if one["kv_a"]:
        return _latent_layer(weights, one, place)
    named = {
        "q": one["q"] or one["qkv"],
        "k": one["k"] or one["kv"] or one["qkv"],
        "v": one["v"] or one["kv"] or one["qkv"],
        "o": one["out"],
    }
    modules = {role: _named(weights, one, place, name) for role, name in named.items() if name}
    layout = one["layout"] or ("concat" if one["qkv"] else "kv_concat" if one["kv"] else "separate")
    heads = one["n_heads"]
    kv_heads = one["n_kv_heads"] or heads
    shapes = {role: weights.shape(Layer.tensor(place.prefix + module)) for role, module in modules.items()}
    if one["heads_axis"]:
        shapes = {role: _joined(one, place, modules[role], role, shape) for role, shape in shapes.items()}
    for role, shape in shapes.items():
        if len(shape) < 2 or any(n != 1 for n in shape[2:]):
            raise DeclarationError(
                f"{one.title}: {place.prefix}{modules[role]} is {_shape(shape)}; a matrix is needed."
            )
    rows = {role: shape[int(bool(one["conv1d"]))] for role, shape in shapes.items()}
    columns = {role: shape[1 - int(bool(one["conv1d"]))] for role, shape in shapes.items()}
    n_q = heads * (2 if layout in ("gated_q", "gate_concat") else 1)

    def width(role: str, known: int | None = None) -> int:
        """Channels of a head in the matrix that holds the role; ``known``: those of a query where they are known."""
        sharing = [r for r in "qkv" if modules.get(r) == modules[role]]
        counts = {"q": n_q, "k": kv_heads, "v": kv_heads}
        taken = sum(counts[r] for r in sharing if r in "qk") * known if known and role == "v" else 0
        n = counts["v"] if taken else sum(counts[r] for r in sharing)
        left = rows[role] - taken
        if left <= 0 or left % n:
            turned = "" if one["conv1d"] else f" Stored [in, out] it has {columns[role]:,}: conv1d=True?"
            turned = turned if turned and columns[role] % n == 0 and rows[role] % n else ""
            raise DeclarationError(
                f"{one.title}: {place.prefix}{modules[role]} has {rows[role]:,} rows; {heads} query and {kv_heads} key/value "
                f"heads (layout {layout}) do not divide them. Check n_heads, n_kv_heads and layout.{turned}"
            )
        return left // n

    head_dim = one["head_dim"] or width("q")
    if one["kv_layer"] is not None:  # neither k nor v is here: the heads are those that out reads
        modules |= {"k": "k!", "v": "v!"}  # no tensors: nothing is scaled under these names
        rows |= {"k": kv_heads * head_dim, "v": kv_heads * columns["o"] // heads}
        columns |= {"k": columns["q"], "v": columns["q"]}
    value_dim = one["value_dim"] or (
        head_dim if modules["v"] == modules["q"] and not one["head_dim"] else width("v", head_dim)
    )
    known = {"n_heads": heads, "n_kv_heads": kv_heads, "head_dim": head_dim, "value_dim": value_dim}
    known |= {"hidden_size": columns["q"], "kv_hidden": columns["k"], "v_hidden": columns["v"], "out_hidden": rows["o"]}
    if columns["o"] != heads * value_dim and not (one["out_extra"] and columns["o"] > heads * value_dim):
        raise DeclarationError(
            f"{one.title}: {place.prefix}{modules['o']} reads {columns['o']:,} channels; {heads} heads of {value_dim} are "
            f"{heads * value_dim:,}. Check n_heads, n_kv_heads{', conv1d' if rows['o'] == heads * value_dim else ''} and layout."
        )
    for role in "qkv":  # a head_dim that was said, against what is there
        sharing = [r for r in "qkv" if modules[r] == modules[role]]
        needed = sum({"q": n_q * head_dim, "k": kv_heads * head_dim, "v": kv_heads * value_dim}[r] for r in sharing)
        if needed != rows[role]:
            raise DeclarationError(
                f"{one.title}: {place.prefix}{modules[role]} has {rows[role]:,} rows; {heads} query and {kv_heads} key/value "
                f"heads of {head_dim} need {needed:,}. Check n_heads, n_kv_heads, head_dim and layout."
            )
    rope = one["rope"] or "none"
    turning = one["rope_channels"] or head_dim
    if rope != "none" and turning % (2 * (one["rope_blocks"] or 1)):
        raise DeclarationError(
            f"{one.title}: its heads have {turning} channel{'' if turning == 1 else 's'}, and channels rotate two by two. Check "
            "n_heads, or say how many rotate (rope_channels=)."
        )
    if turning > head_dim:
        raise DeclarationError(f"{one.title}: rope_channels={turning} was given; a head has {head_dim} channels.")
    for follower in one["follow"] or ():
        if place.prefix + dict(follower)["tensor"] not in weights:
            raise DeclarationError(
                f"{one.title}: {place.prefix}{dict(follower)['tensor']}, which follow= names, is no tensor of the model."
            )
    family = row(
        NAME,
        **{name: name for name in _NUMBERS},
        **modules,
        layer="",
        layout=layout,
        conv1d=bool(one["conv1d"]),
        heads_axis=bool(one["heads_axis"]),
        o_inputs="columns" if one["out_extra"] else "0",
        rope=rope,
        rope_width="turning",
        rope_theta="10000.0",
        rope_blocks=one["rope_blocks"] or 1,
        norm=_norm(weights, one, place, known),
        sub_norm=one["sub_norm"] or "",
        follow=[dict(follower) for follower in one["follow"] or ()],
        trailing=list(shapes["q"][2:]),
        inert=["*"],  # the proof runs the whole model, with every parameter random
        stack=one["stack"] or "decoder",
        attention=one["attention"] or "self",
        part=one["part"] or "",
    )
    return numbers(weights, family, known | {"turning": turning, "columns": columns["o"]}, place.layer, place.prefix)


def _joined(one: Declaration, place: _Place, module: str, role: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """[in, heads, width] as the [out, in] that the rest reads; out's [out, heads, width] as its own."""
    if len(shape) != 3:
        raise DeclarationError(
            f"{one.title}: {place.prefix}{module} is {_shape(shape)}; with heads_axis [in, heads, width] is needed."
        )
    beside, heads, width = shape
    needed = one["n_heads"] if role in "qo" else one["n_kv_heads"] or one["n_heads"]
    if heads != needed:
        raise DeclarationError(
            f"{one.title}: {place.prefix}{module} is {_shape(shape)}, {heads} heads; {needed} were declared."
        )
    return (beside, heads * width) if role == "o" else (heads * width, beside)


def _latent_layer(weights: Weights, one: Declaration, place: _Place) -> Layer:
    """Latent attention: [content, rotary] queries of every head, [content keys, values] of every head out of the narrow
    stream, and behind that stream the rotary key that all heads share.
    """
    names = {"q": one["q"], "o": one["out"], "kv_a": one["kv_a"], "kv_b": one["kv_b"]}
    modules = {role: _named(weights, one, place, name) for role, name in names.items()}
    shapes = {role: weights.shape(Layer.tensor(place.prefix + module)) for role, module in modules.items()}
    wrong = next((role for role, shape in shapes.items() if len(shape) != 2 or modules[role].endswith("!")), "")
    if wrong:
        raise DeclarationError(
            f"{one.title}: {place.prefix}{names[wrong]} is {_shape(shapes[wrong])}; a module with a matrix is needed."
        )
    heads, rank = one["n_heads"], shapes["kv_b"][1]
    rope = shapes["kv_a"][0] - rank
    nope = shapes["q"][0] // heads - rope
    value = shapes["kv_b"][0] // heads - nope
    fits = shapes["q"][0] == heads * (nope + rope) and shapes["kv_b"][0] == heads * (nope + value)
    if not fits or min(nope, rope) < 0 or value < 1 or shapes["o"][1] != heads * value:
        shown = ", ".join(f"{names[role]} {_shape(shape)}" for role, shape in shapes.items())
        raise DeclarationError(
            f"{one.title}: {shown} do not make {heads} heads of latent attention: rows of q are heads of content and rotary "
            "channels, of kv_b heads of content keys and values, of kv_a its stream and one rotary key. Check n_heads and names."
        )
    if one["rope"] and rope % 2:
        raise DeclarationError(f"{one.title}: its rotary key has {rope} channels, and channels rotate two by two.")
    known = {"n_heads": heads, "n_kv_heads": heads, "head_dim": nope + rope, "value_dim": value}
    known |= {"hidden_size": shapes["q"][1], "kv_hidden": rank, "v_hidden": rank, "out_hidden": shapes["o"][0]}
    family = row(
        NAME,
        **{name: name for name in _NUMBERS},
        **{"q": modules["q"], "k": modules["kv_b"], "v": modules["kv_b"], "o": modules["o"]},
        layer="",
        rope=one["rope"] or "none",
        rope_width="turning",
        rope_theta="10000.0",
        latent={
            "kv_a": names["kv_a"],
            "kv_b": names["kv_b"],
            "rank": "rank",
            "nope": "nope",
            "rope": "turning",
            "value": "value_dim",
        },
        inert=["*"],
        stack=one["stack"] or "decoder",
        attention=one["attention"] or "self",
        part=one["part"] or "",
    )
    return numbers(weights, family, known | {"rank": rank, "nope": nope, "turning": rope}, place.layer, place.prefix)


def _with_bias(layer: Layer, one: Declaration, site: Site | Refusal) -> Site | Refusal:
    """With the rows of the one bias [q; k; v] among what follows, where its matrices are apart."""
    if not one["qkv_bias"] or isinstance(site, Refusal):
        return site
    name = layer.prefix + one["qkv_bias"]
    firsts, at = {}, 0
    for role, heads in (("q", layer.n_heads), ("k", layer.n_kv_heads), ("v", layer.n_kv_heads)):
        firsts[role], at = at, at + heads * layer.width(role)
    if layer.weights.shape(name) != (at,):
        raise DeclarationError(
            f"{one.title}: {name} is {_shape(layer.weights.shape(name) or ())}; one bias of q, k and v has {at:,} values."
        )
    legs = []
    for role, side in (("q", "left"), ("k", "right")) if site.key.pair == "qk" else (("v", "left"),):
        index, channel = layer.separate(role)
        legs.append(Leg(name, 0, replace(index, start=firsts[role]), channel, side, role, measured=False))
    return replace(site, legs=(*site.legs, *legs))


def _norm(weights: Weights, one: Declaration, place: _Place, known: Mapping) -> dict | None:
    """As a row has it; where the gains lie is read off their shape."""
    if not one["qk_norm"]:
        return None
    words = dict(one["qk_norm"])
    out = {"before_rope": True, "offset": 0.0, "bias": True} | words
    for role, n in (("q", known["n_heads"]), ("k", known["n_kv_heads"])):
        shape = weights.shape(f"{place.prefix}{words[role].replace('{h}', '0')}.weight")
        if shape is None:
            _named(weights, one, place, words[role])
            raise DeclarationError(f"{one.title}: {place.prefix}{words[role]} is no norm with a weight.")
        width = known["head_dim"]
        fits = {(width,): "head", (n * width,): "width", (n, width): "rows"}
        fits = {(width,): "heads"} if "{h}" in words[role] else fits
        if n == 1 and words.get("per") == "width":
            fits[(width,)] = "width"
        if words.get("per", fits.get(shape)) != fits.get(shape) or shape not in fits:
            raise DeclarationError(
                f"{one.title}: the gain {place.prefix}{words[role]}.weight is {_shape(shape)}; {n} heads of {width} have a "
                f"gain of {width} that all share, of {n * width}, or of {n} x {width}."
            )
        found = fits[shape]
        # MQA's one key head: a gain of its width is both, and the queries' gain says which
        out["per"] = found if role == "q" or known["n_kv_heads"] > 1 else out["per"]
        if found != out["per"]:
            raise DeclarationError(f"{one.title}: the gains of {words['q']} and {words['k']} are of different kinds.")
    return out


def _feed_forward(weights: Weights, one: Declaration, place: _Place) -> list[Site | Refusal]:
    names = {role: one[role] or "" for role in ("down", "up", "gate", "fused")}
    bare = {role: _named(weights, one, place, name) for role, name in names.items() if name}
    if len({name.endswith("!") for name in bare.values()}) > 1:
        raise DeclarationError(f"{one.title}: some of its matrices are parameters and others modules; name them alike.")
    fields = {name: one[name] for name in ("stack", "up_first", "conv1d", "part") if one[name]}
    family: Family = row(NAME, **{name: "1" for name in _NUMBERS}, rope="none", activation="activation", **fields)
    layer = numbers(weights, family, {"activation": one["activation"]}, place.layer, place.prefix)
    down = weights.shape(place.prefix + names["down"] + ("" if bare["down"].endswith("!") else ".weight"))
    layer = replace(layer, hidden_size=down[-2] if len(down) > 1 else 1)
    return declared_mlp(layer, place.prefix, **names, expert=place.expert, by_rows=bool(one["by_rows"]))


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _check_apart(found: Sequence[tuple[Declaration, Site | Refusal]]) -> None:
    """No two may claim the same rows, nor bear one name."""
    names: dict[str, Declaration] = {}
    claims: dict[tuple, list[tuple[Declaration, Site, np.ndarray]]] = {}
    for one, site in found:
        if not isinstance(site, Site):
            continue
        for leg in site.legs:
            rows = np.unique(leg.index.indices())
            place = (leg.tensor, leg.axis, leg.fixed)
            for other, its, theirs in claims.setdefault(place, []):
                if its is not site and len(np.intersect1d(rows, theirs)):
                    raise DeclarationError(
                        f"{one.title} and {other.title} both claim the same rows of {leg.tensor} ({site.name}, {its.name})."
                        if other is not one
                        else f"{one.title}: {leg.tensor} is claimed twice ({site.name}, {its.name}). Check the names of its modules."
                    )
            claims[place].append((one, site, rows))
        if site.name in names:
            raise DeclarationError(
                f"{one.title} and {names[site.name].title} both make a pair named {site.name}; give one of them another "
                "stack= or part=."
            )
        names[site.name] = one


@dataclass(frozen=True)
class Guess:
    """What names and shapes suggest, to be read, corrected and written down; nothing takes it as it is.

    ``str()`` of it is Python, ``toml()`` the text of a file; ``open_questions``: what could not be read off.
    """

    declarations: tuple[Declaration, ...]
    open_questions: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"# {question}" for question in self.open_questions]
        return "\n".join([*lines, "sites = [", *(f"    {one!r}," for one in self.declarations), "]"])

    def toml(self) -> str:
        return "".join(f"# {question}\n" for question in self.open_questions) + toml(self.declarations)
