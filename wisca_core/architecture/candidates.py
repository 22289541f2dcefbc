"""Rows for a model type that no file has: read off the names and shapes of its tensors, and off usual keys of
config.json.

Nothing here is known to be right. Every row is tried under the proof by miniature (``equivalence.discovery``), the
finest ties first, and the first that holds is used; where none does the model is refused.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from wisca_core.architecture.expressions import evaluate
from wisca_core.checkpoint import Checkpoint

_NAMES = {
    "q": "q_proj query q_lin q wq Wq query_proj to_q project_q q_linear linear_q query_layer",
    "k": "k_proj key k_lin k wk Wk key_proj to_k project_k k_linear linear_k key_layer",
    "v": "v_proj value v_lin v wv Wv value_proj to_v project_v v_linear linear_v value_layer",
    "o": "o_proj out_proj dense wo Wo c_proj out_lin output to_out project_o attention_out linear_out proj o out",
    "qkv": "qkv_proj query_key_value Wqkv qkv c_attn in_proj wqkv to_qkv",
}
_NORMS = (
    ("q_norm", "k_norm"),
    ("q_layernorm", "k_layernorm"),
    ("query_norm", "key_norm"),
    ("query_layernorm", "key_layernorm"),
    ("norm_q", "norm_k"),
    ("q_ln", "k_ln"),
    ("ln_q", "ln_k"),
)
NUMBERS = {
    "n_layers": "num_hidden_layers or n_layer or n_layers or num_layers",
    "n_heads": "num_attention_heads or n_head or n_heads or num_heads",
    "n_kv_heads": "num_key_value_heads or num_kv_heads or n_head_kv or n_kv_heads or num_attention_heads or n_head or "
    "n_heads or num_heads",
    "hidden_size": "hidden_size or n_embd or d_model or dim",
}
HEAD_DIM = f"head_dim or ({NUMBERS['hidden_size']}) // ({NUMBERS['n_heads']})"
_SHARE = "(rope_parameters.partial_rotary_factor or partial_rotary_factor or rotary_pct or {share})"


@dataclass(frozen=True)
class FamilyGuess:
    """``fields``: what ``families.row`` takes; ``words``: what was guessed beyond the names."""

    fields: Mapping[str, object]
    words: str


@dataclass(frozen=True)
class AttentionNames:
    """Where one stack's attention lies: ``root`` before the layer path, ``layer`` with {i}, and its modules."""

    root: str
    layer: str
    modules: Mapping[str, str]
    extra: tuple[str, ...]  # further tensors of the module, relative names


def find_attention(checkpoint: Checkpoint) -> AttentionNames | None:
    """The first stack of layers with tensors named like projections; None where there is none."""
    layers: dict[str, set[str]] = {}
    for tensor in checkpoint.tensors:
        match = re.match(r"(.*?)\.(\d+)\.(.+)\.weight$", tensor.name)
        if match and len(tensor.shape) == 2:
            layers.setdefault(match[1], set()).add(match[3])
    for before, modules in sorted(layers.items(), key=lambda item: -len(item[1])):
        found = _modules(modules)
        if found:
            path, names = found
            root, _, stack = before.rpartition(".")
            prefix = f"{before}.{{i}}.{path}"
            numbered = re.compile(re.escape(prefix).replace(re.escape("{i}"), r"\d+"))
            inside = {numbered.sub("", t.name, count=1) for t in checkpoint.tensors if numbered.match(t.name)}
            known = {f"{m}.{kind}" for m in names.values() for kind in ("weight", "bias")}
            return AttentionNames(
                f"{root}." if root else "", f"{stack}.{{i}}.{path}", names, tuple(sorted(inside - known))
            )
    return None


def _modules(modules: set[str]) -> tuple[str, dict[str, str]] | None:
    """(path of the attention below its layer, role -> module below that path)."""
    for q, k, v in zip(*(_NAMES[role].split() for role in "qkv")):
        for name in sorted(modules):
            if name == q or name.endswith(f".{q}"):
                path = name.removesuffix(q)
                if f"{path}{k}" in modules and f"{path}{v}" in modules and (o := _output(modules, path)):
                    return _common(path, {"q": q, "k": k, "v": v}, *o)
    for fused in _NAMES["qkv"].split():
        for name in sorted(modules):
            if name == fused or name.endswith(f".{fused}"):
                path = name.removesuffix(fused)
                if o := _output(modules, path):
                    return _common(path, dict.fromkeys("qkv", fused), *o)
    return None


def _output(modules: set[str], path: str) -> tuple[str, str] | None:
    """(path, module) of Wo: beside the projections, or beside their parent ("self." and "output.dense")."""
    parent = path.rstrip(".").rpartition(".")[0]
    for place in (path, f"{parent}." if parent else ""):
        for name in (*_NAMES["o"].split(), "output.dense"):
            if f"{place}{name}" in modules and place:
                return place, name
    return None


def _common(path: str, names: dict[str, str], o_path: str, o: str) -> tuple[str, dict[str, str]]:
    inner = path.removeprefix(o_path)
    return o_path, {role: inner + name for role, name in names.items()} | {"o": o}


def vo_guesses(attention: AttentionNames) -> Iterator[FamilyGuess]:
    """Rows that differ in the layout; by ``qk_guesses`` then what remains open."""
    base = {
        **NUMBERS,
        "head_dim": HEAD_DIM,
        "rope_theta": "rope_parameters.rope_theta or rope_theta or 10000.0",
        "roots": [attention.root, ""],
        "layer": attention.layer,
        **attention.modules,
        "inert": [*attention.extra, "rotary_emb.inv_freq"],
        "rope": "none",
    }
    is_fused = attention.modules["q"] == attention.modules["k"]
    for layout in ("concat", "per_group", "per_head") if is_fused else ("separate", "gated_q"):
        yield FamilyGuess({**base, "layout": layout}, f"layout {layout}")


def qk_guesses(
    checkpoint: Checkpoint, attention: AttentionNames, settled: Mapping[str, object]
) -> Iterator[FamilyGuess]:
    """Rows over the ``settled`` fields, the finest ties first: no rotation, part of a head, all of it; halves or
    neighbours; with the norms on q and k that the tensors show, behind the rotation or before it.
    """
    for norm_fields, norm_words in _norms(checkpoint, attention):
        inert = (
            [name for name in settled["inert"] if not any(name.startswith(f"{norm_fields[role]}.") for role in "qk")]
            if norm_fields
            else settled["inert"]
        )
        ropes = [("none", 0.0)] + [(rope, share) for share in (0.25, 0.5, 1.0) for rope in ("half", "interleaved")]
        for before in (False, True) if norm_fields else (True,):
            for rope, share in ropes if before else [("none", 0.0)]:
                fields = {**settled, "rope": rope, "inert": inert}
                if rope != "none":
                    fields["rope_width"] = "rotary_dim or head_dim * " + _SHARE.format(share=share)
                if norm_fields:
                    fields["norm"] = {**norm_fields, "before_rope": before}
                turning = "no rotation" if rope == "none" else f"{share:g} of a head rotates, {rope}"
                yield FamilyGuess(fields, f"{turning}{norm_words}{' before it' if norm_fields and before else ''}")


def _norms(checkpoint: Checkpoint, attention: AttentionNames) -> Iterator[tuple[dict[str, object], str]]:
    yield from (({}, ""),) if not _norm_modules(attention) else ()
    shapes = {t.name: t.shape for t in checkpoint.tensors}
    head_dim = evaluate(HEAD_DIM, checkpoint.config)
    for q, k in _norm_modules(attention):
        first = next((shape for name, shape in shapes.items() if name.endswith(f".{q}.weight")), ())
        per = "head" if first == (head_dim,) else "width"
        bias = f"{q}.bias" in attention.extra
        for offset in (0.0, 1.0):
            stored = " stored less one" if offset else ""
            yield (
                {"q": q, "k": k, "per": per, "offset": offset, "bias": bias},
                f", gains of {q} a {'channel of a head' if per == 'head' else 'channel'}{stored}",
            )


def _norm_modules(attention: AttentionNames) -> list[tuple[str, str]]:
    return [(q, k) for q, k in _NORMS if f"{q}.weight" in attention.extra and f"{k}.weight" in attention.extra]
