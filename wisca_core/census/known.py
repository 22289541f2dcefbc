"""Which model types there are, and the row of each in words. No model is built here."""

import difflib
import re
import tomllib
from functools import lru_cache
from importlib import resources

from wisca_core.architecture.families import FILES, Family, Follower, families
from wisca_core.errors import UnknownArchitecture

ROTATIONS = {"half": "channel i turns with i + half the width", "interleaved": "neighbouring channels turn together"}
SHORT_ROTATIONS = {"half": "rotate-half", "interleaved": "interleaved rotation", "none": "no rotation"}
LAYOUTS = {
    "separate": "one matrix each",
    "concat": "one matrix, [q; k; v] one below the other",
    "kv_concat": "q apart, [k; v] in one matrix",
    "gate_concat": "one matrix, [gate; q; k; v] one below the other",
    "per_head": "one matrix, [q, k, v] head by head",
    "per_group": "one matrix, [queries, k, v] KV group by KV group",
    "gated_q": "q and its output gate side by side, head by head",
    "codegen": "one matrix, four blocks of heads, each [q; v; k]",
}
PER = {
    "head": "one vector of gains shared by all heads",
    "width": "one gain a channel of every head",
    "rows": "a row of gains a head",
    "heads": "one tensor of gains a head",
}


def causal_types() -> tuple[str, ...]:
    """The keys of the causal-LM mapping of the installed transformers, sorted."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))


def all_types() -> tuple[str, ...]:
    """Those, and every other type that has a row (encoders, vision, speech, several towers), sorted."""
    return tuple(sorted({*causal_types(), *families()}))


def check_type(model_type: str) -> str:
    """The name itself where transformers or a row knows it; UnknownArchitecture with the closest names otherwise."""
    known = _names()
    if model_type in known:
        return model_type
    close = close_to(model_type)
    raise UnknownArchitecture(
        f'no architecture is called "{model_type}", neither in the installed transformers nor among the rules. '
        + (f"Close to it: {', '.join(close)}. " if close else "")
        + "A name is the model_type of config.json; `wisca architectures` lists them."
    )


def close_to(model_type: str) -> tuple[str, ...]:
    """Names a person may have meant, the closest first."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(sorted(_names()))}
    wanted = re.sub(r"[^a-z0-9]", "", model_type.lower())
    found = [plain[name] for name in difflib.get_close_matches(wanted, plain, n=5, cutoff=0.6)]
    return tuple(dict.fromkeys([*found, *(name for name in sorted(_names()) if wanted and wanted in name)][:8]))


@lru_cache(maxsize=1)
def _names() -> frozenset[str]:
    from transformers import CONFIG_MAPPING

    return frozenset(CONFIG_MAPPING.keys()) | families().keys()


# --- the row ----------------------------------------------------------------------------------------------------------


def row_file(family: str) -> str:
    """The file that holds the row of this name, "" for none."""
    return _rows().get(family, ("", ""))[0]


def row_text(family: str) -> str:
    """The row as it is written there, reasons included; "" for none."""
    return _rows().get(family, ("", ""))[1]


@lru_cache(maxsize=1)
def _rows() -> dict[str, tuple[str, str]]:
    """Row name -> (file, its text)."""
    out = {}
    for file in FILES:
        text = _read(f"{file}.toml")
        starts = list(re.finditer(r"^\[families\.([^\].]+)\]", text, re.M))
        for start, end in zip(starts, [*(m.start() for m in starts[1:]), len(text)]):
            out[start[1].strip('"')] = (f"{file}.toml", text[start.start() : end].strip())
    return out


def _read(file: str) -> str:
    return resources.files("wisca_core.architecture").joinpath("rows", file).read_text(encoding="utf-8")


# --- the row in words -------------------------------------------------------------------------------------------------


def short_rule(family: Family | None) -> str:
    """The rule in a few words, for a table."""
    if family is None:
        return "no rule"
    if family.towers:
        own = [short_rule(part) for part in family.parts]
        return "; ".join([*dict.fromkeys(own), f"towers {', '.join(tower.config for tower in family.towers)}"])
    return "; ".join(dict.fromkeys(_short(part) for part in family.each))


def _short(part: Family) -> str:
    if any(expression == "True" for expression, _ in part.refuse):
        return "refused"
    words = [_rotation(part, short=True)]
    if part.latent:
        words.append("latent attention")
    elif part.q == part.k:
        words.append("fused q, k, v")
    if part.norm:
        words.append("gains of the norms on q and k" + ("" if part.norm_when == "True" else " where it has them"))
    if part.sub_norm:
        words.append("norm before Wo")
    if part.kv_source:
        words.append("keys and values shared by layers")
    if part.attention == "cross":
        words.append("cross-attention")
    return ", ".join(words)


def rule_lines(family: Family) -> tuple[str, ...]:
    """The whole rule in sentences: where the tensors lie, what ties their channels, what is refused and why."""
    lines = [
        f"Tower {tower.config}, where config.json has one: the rule of its own model type, tensors below "
        f"{_roots(tower.roots).rstrip('.') or 'the top'}."
        for tower in family.towers
    ]
    for part in family.parts or (() if family.towers else (family,)):
        lines += _part_lines(part, len(family.parts) > 1)
    return tuple(dict.fromkeys(lines))


def _part_lines(part: Family, is_one_of_several: bool) -> list[str]:
    kind = f"{part.stack.capitalize()}, {part.attention}-attention"
    where = f" in the layers where {part.when}" if is_one_of_several and part.when != "True" else ""
    always = [reason for expression, reason in part.refuse if expression == "True"]
    if always:
        return [f"{kind}{where}: refused, {reason}." for reason in always]
    lines = [f"{kind}{where}: {_roots(part.roots)}{part.layer} with {_tensors(part)}; {_layout(part)}."]
    lines.append(f"Rotation: {_rotation(part)}.")
    if part.norm:
        n = part.norm
        stored = "stored as gain - 1" if n.offset else "stored as they act"
        when = "" if part.norm_when == "True" else f" where {part.norm_when}"
        order = "before the rotation" if n.before_rope else "after the rotation, so that every channel is free"
        biases = ", biases follow" if n.bias else ""
        lines.append(
            f"Norms on q and k ({n.q}, {n.k}){when}, {order}: their gains carry the scale instead of Wq and Wk; "
            f"{PER[n.per]}, {stored}{biases}."
        )
    if part.latent:
        lines.append(
            f"Latent attention: keys and values come from {part.latent.kv_a} through {part.latent.kv_b}; "
            "the channels without rotation are free in each head, the rotating key is shared and tied over all heads."
        )
    if part.sub_norm:
        lines.append(f"A norm stands between the heads and Wo ({part.sub_norm}): its gain is live in the place of Wv.")
    if part.kv_source:
        lines.append("Layers that read the keys and values of an earlier layer follow its factors with their queries.")
    lines += [_follows(one) for one in part.follow]
    if part.otherwise:
        lines.append(f"Other layers: {part.otherwise}.")
    for words, rules in (
        ("Refused", part.refuse),
        ("QK refused", part.refuse_qk),
        ("VO refused", part.refuse_vo),
        ("MLP refused", part.refuse_mlp),
    ):
        lines += [
            f"{words}{'' if expression == 'True' else f' where {expression}'}: {reason}."
            for expression, reason in rules
        ]
    lines.append(
        "MLP pairs: none is looked for."
        if part.mlp == "none"
        else "MLP pairs: up and down, with a gate or ReLU between them; refused otherwise."
    )
    return lines


def _follows(one: Follower) -> str:
    return f"{one.tensor} follows the {one.side} side of {one.pair.upper()}, channel by channel of {one.like}."


def _roots(roots: tuple[str, ...]) -> str:
    return next(iter(roots), "")


def _tensors(part: Family) -> str:
    if part.latent:
        return f"{part.q}, {part.latent.kv_a}, {part.latent.kv_b}, {part.o}"
    return ", ".join(dict.fromkeys((part.q, part.k, part.v, part.o)))


def _layout(part: Family) -> str:
    names = _layouts()
    chosen = [(expression, names.get(layout, "")) for expression, layout in part.layouts]
    words = [f"{LAYOUTS.get(name, name)} where {expression}" for expression, name in chosen]
    name = names.get(part.layout, "")
    return ", else ".join([*words, LAYOUTS.get(name, name)])


@lru_cache(maxsize=1)
def _layouts() -> dict[tuple, str]:
    table = tomllib.loads(_read("defaults.toml"))["layouts"]
    return {tuple((role, tuple(grid)) for role, grid in layout.items()): name for name, layout in table.items()}


def _rotation(part: Family, short: bool = False) -> str:
    is_partial = part.rope_width != "head_dim" and not part.latent
    if short:
        words = SHORT_ROTATIONS.get(part.rope, "rotation as its config says")
        return f"{words} of a part" if is_partial and part.rope in ROTATIONS else words
    choice = re.fullmatch(r"'(\w+)' if (.+) else '(\w+)'", part.rope)
    if choice:
        first, condition, second = choice.groups()
        return f"where the config says `{condition}`: {_turning(first)}. Else: {_turning(second)}"
    behind = (
        f"; the first {part.rope_width} channels, those behind are free"
        if is_partial and part.rope in ROTATIONS
        else ""
    )
    return _turning(part.rope) + behind


def _turning(rope: str) -> str:
    if rope == "none":
        return "none, so every channel is free"
    return (
        f"{ROTATIONS[rope]}, and each pair shares a factor" if rope in ROTATIONS else f"as the config says by `{rope}`"
    )
