"""A declared layer with every size read off its shapes, so that one declaration serves a model and a small copy of
it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from wisca_core.architecture.declaration import NAME, Declaration
from wisca_core.architecture.declared_paths import LayerPath, row_name
from wisca_core.architecture.families import Family, row
from wisca_core.architecture.layer import Layer, Weights, numbers
from wisca_core.architecture.mlp import declared_mlp
from wisca_core.architecture.site import Refusal, Site
from wisca_core.errors import DeclarationError

_NUMBERS = ("n_heads", "n_kv_heads", "head_dim", "value_dim", "hidden_size", "kv_hidden", "v_hidden", "out_hidden")


def declared_layer(weights: Weights, one: Declaration, place: LayerPath) -> Layer:
    """The layer with every size read off its shapes."""
    if one["kv_a"]:
        return _latent_layer(weights, one, place)
    named = {
        "q": one["q"] or one["qkv"],
        "k": one["k"] or one["kv"] or one["qkv"],
        "v": one["v"] or one["kv"] or one["qkv"],
        "o": one["out"],
    }
    modules = {role: row_name(weights, one, place, name) for role, name in named.items() if name}
    layout = one["layout"] or ("concat" if one["qkv"] else "kv_concat" if one["kv"] else "separate")
    heads = one["n_heads"]
    kv_heads = one["n_kv_heads"] or heads
    shapes = {role: weights.shape(Layer.tensor(place.prefix + module)) for role, module in modules.items()}
    if one["heads_axis"]:
        shapes = {role: _matrix_shape(one, place, modules[role], role, shape) for role, shape in shapes.items()}
    for role, shape in shapes.items():
        if len(shape) < 2 or any(n != 1 for n in shape[2:]):
            raise DeclarationError(
                f"{one.title}: {place.prefix}{modules[role]} is {in_words(shape)}; a matrix is needed."
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
                f"{one.title}: {place.prefix}{modules[role]} has {rows[role]:,} rows; {heads} query and {kv_heads} "
                "key/value "
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
            f"{one.title}: {place.prefix}{modules['o']} reads {columns['o']:,} channels; {heads} heads of {value_dim} "
            "are "
            f"{heads * value_dim:,}. Check n_heads, n_kv_heads{', conv1d' if rows['o'] == heads * value_dim else ''} "
            "and layout."
        )
    for role in "qkv":  # a head_dim that was said, against what is there
        sharing = [r for r in "qkv" if modules[r] == modules[role]]
        needed = sum({"q": n_q * head_dim, "k": kv_heads * head_dim, "v": kv_heads * value_dim}[r] for r in sharing)
        if needed != rows[role]:
            raise DeclarationError(
                f"{one.title}: {place.prefix}{modules[role]} has {rows[role]:,} rows; {heads} query and {kv_heads} "
                "key/value "
                f"heads of {head_dim} need {needed:,}. Check n_heads, n_kv_heads, head_dim and layout."
            )
    rope = one["rope"] or "none"
    turning = one["rope_channels"] or head_dim
    if rope != "none" and turning % (2 * (one["rope_blocks"] or 1)):
        raise DeclarationError(
            f"{one.title}: its heads have {turning} channel{'' if turning == 1 else 's'}, and channels rotate two by "
            "two. Check "
            "n_heads, or say how many rotate (rope_channels=)."
        )
    if turning > head_dim:
        raise DeclarationError(f"{one.title}: rope_channels={turning} was given; a head has {head_dim} channels.")
    for follower in one["follow"] or ():
        if place.prefix + dict(follower)["tensor"] not in weights:
            raise DeclarationError(
                f"{one.title}: {place.prefix}{dict(follower)['tensor']}, which follow= names, is no tensor of the "
                "model."
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


def _matrix_shape(
    one: Declaration, place: LayerPath, module: str, role: str, shape: tuple[int, ...]
) -> tuple[int, int]:
    """[in, heads, width] as the [out, in] that the rest reads; out's [out, heads, width] as its own."""
    if len(shape) != 3:
        raise DeclarationError(
            f"{one.title}: {place.prefix}{module} is {in_words(shape)}; with heads_axis [in, heads, width] is needed."
        )
    beside, heads, width = shape
    needed = one["n_heads"] if role in "qo" else one["n_kv_heads"] or one["n_heads"]
    if heads != needed:
        raise DeclarationError(
            f"{one.title}: {place.prefix}{module} is {in_words(shape)}, {heads} heads; {needed} were declared."
        )
    return (beside, heads * width) if role == "o" else (heads * width, beside)


def _latent_layer(weights: Weights, one: Declaration, place: LayerPath) -> Layer:
    """Latent attention: [content, rotary] queries of every head, [content keys, values] of every head out of the narrow
    stream, and behind that stream the rotary key that all heads share.
    """
    names = {"q": one["q"], "o": one["out"], "kv_a": one["kv_a"], "kv_b": one["kv_b"]}
    modules = {role: row_name(weights, one, place, name) for role, name in names.items()}
    shapes = {role: weights.shape(Layer.tensor(place.prefix + module)) for role, module in modules.items()}
    wrong = next((role for role, shape in shapes.items() if len(shape) != 2 or modules[role].endswith("!")), "")
    if wrong:
        raise DeclarationError(
            f"{one.title}: {place.prefix}{names[wrong]} is {in_words(shapes[wrong])}; a module with a matrix is needed."
        )
    heads, rank = one["n_heads"], shapes["kv_b"][1]
    rope = shapes["kv_a"][0] - rank
    nope = shapes["q"][0] // heads - rope
    value = shapes["kv_b"][0] // heads - nope
    fits = shapes["q"][0] == heads * (nope + rope) and shapes["kv_b"][0] == heads * (nope + value)
    if not fits or min(nope, rope) < 0 or value < 1 or shapes["o"][1] != heads * value:
        shown = ", ".join(f"{names[role]} {in_words(shape)}" for role, shape in shapes.items())
        raise DeclarationError(
            f"{one.title}: {shown} do not make {heads} heads of latent attention: rows of q are heads of content and "
            "rotary "
            "channels, of kv_b heads of content keys and values, of kv_a its stream and one rotary key. Check n_heads "
            "and names."
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


def _norm(weights: Weights, one: Declaration, place: LayerPath, known: Mapping) -> dict | None:
    """As a row has it; where the gains lie is read off their shape."""
    if not one["qk_norm"]:
        return None
    words = dict(one["qk_norm"])
    out = {"before_rope": True, "offset": 0.0, "bias": True} | words
    for role, n in (("q", known["n_heads"]), ("k", known["n_kv_heads"])):
        shape = weights.shape(f"{place.prefix}{words[role].replace('{h}', '0')}.weight")
        if shape is None:
            row_name(weights, one, place, words[role])
            raise DeclarationError(f"{one.title}: {place.prefix}{words[role]} is no norm with a weight.")
        width = known["head_dim"]
        fits = {(width,): "head", (n * width,): "width", (n, width): "rows"}
        fits = {(width,): "heads"} if "{h}" in words[role] else fits
        if n == 1 and words.get("per") == "width":
            fits[(width,)] = "width"
        if words.get("per", fits.get(shape)) != fits.get(shape) or shape not in fits:
            raise DeclarationError(
                f"{one.title}: the gain {place.prefix}{words[role]}.weight is {in_words(shape)}; {n} heads of {width} "
                "have a "
                f"gain of {width} that all share, of {n * width}, or of {n} x {width}."
            )
        found = fits[shape]
        # MQA's one key head: a gain of its width is both, and the queries' gain says which
        out["per"] = found if role == "q" or known["n_kv_heads"] > 1 else out["per"]
        if found != out["per"]:
            raise DeclarationError(f"{one.title}: the gains of {words['q']} and {words['k']} are of different kinds.")
    return out


def feed_forward_sites(weights: Weights, one: Declaration, place: LayerPath) -> list[Site | Refusal]:
    names = {role: one[role] or "" for role in ("down", "up", "gate", "fused")}
    bare = {role: row_name(weights, one, place, name) for role, name in names.items() if name}
    if len({name.endswith("!") for name in bare.values()}) > 1:
        raise DeclarationError(f"{one.title}: some of its matrices are parameters and others modules; name them alike.")
    fields = {name: one[name] for name in ("stack", "up_first", "conv1d", "part") if one[name]}
    family: Family = row(NAME, **{name: "1" for name in _NUMBERS}, rope="none", activation="activation", **fields)
    layer = numbers(weights, family, {"activation": one["activation"]}, place.layer, place.prefix)
    down = weights.shape(place.prefix + names["down"] + ("" if bare["down"].endswith("!") else ".weight"))
    layer = replace(layer, hidden_size=down[-2] if len(down) > 1 else 1)
    return declared_mlp(layer, place.prefix, **names, expert=place.expert, by_rows=bool(one["by_rows"]))


def in_words(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a single number"
