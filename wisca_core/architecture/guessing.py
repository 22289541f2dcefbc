"""A declaration proposed from names and shapes, to be read and confirmed; nothing is applied."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from wisca_core.architecture.candidates import AttentionNames, find_attention
from wisca_core.architecture.declaration import Declaration, attention, feed_forward
from wisca_core.architecture.declaration_files import toml
from wisca_core.checkpoint import Checkpoint
from wisca_core.errors import DeclarationError
from wisca_core.wrappers import unwrapped_name

_HEADS = ("n_head", "n_heads", "num_heads", "num_attention_heads", "nhead", "heads")
_KV_HEADS = ("n_kv_heads", "n_kv_head", "num_kv_heads", "num_key_value_heads", "n_query_groups", "n_groups", "kv_heads")
_GATED = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("fc_1", "fc_2", "proj"))
_FUSED = (("attn", "proj"), ("in_proj_weight", "out_proj"), ("qkv", "proj"))
_ROPE = "rope: 'half', 'interleaved' or 'none' cannot be seen in names and shapes; the proof tells which holds."
N_HEADS = "n_heads: nothing says how many there are; "  # what stands in its place follows


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


def guess(model: object) -> Guess:
    """What the names and shapes of a torch module, or of an opened file, suggest; ``print`` it, correct it, and write
    it down as your own: it is never used by itself. Raises DeclarationError where nothing is named like an attention.

    >>> import wisca_core as wisca
    >>> from torch import nn
    >>> class Block(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.c_attn, self.c_proj, self.n_head = nn.Linear(8, 24), nn.Linear(8, 8), 2
    >>> print(wisca.guess(nn.ModuleDict({"h": nn.ModuleList([nn.ModuleDict({"attn": Block()})])})))
    # rope: 'half', 'interleaved' or 'none' cannot be seen in names and shapes; the proof tells which holds.
    sites = [
        wisca.attention('h.{i}.attn', qkv='c_attn', out='c_proj', n_heads=2),
    ]
    """
    checkpoint = _as_checkpoint(model)
    found = find_attention(checkpoint) or _fused_otherwise(checkpoint)
    if found is None:
        raise DeclarationError(
            "no layer has tensors named like query, key, value and output projections, so nothing can be proposed; "
            "write "
            "wisca.attention(...) by hand."
        )
    layer = found.root + found.layer.rstrip(".")
    shapes = {t.name: t.shape for t in checkpoint.tensors}
    numbers = _numbers(model, layer)
    questions = [_ROPE]
    heads = next((numbers[name] for name in _HEADS if name in numbers), 0)
    kv = next((numbers[name] for name in _KV_HEADS if name in numbers), None)
    m = found.modules
    names = {"qkv": m["q"]} if m["q"] == m["k"] else {role: m[role] for role in "qkv"}
    shape = {_numberless(name): shape for name, shape in reversed(shapes.items())}  # of the first layer
    first = shape[f"{layer}.{m['o']}.weight"]
    words: dict[str, object] = {}
    if "qkv" in names:
        fused = shape.get(f"{layer}.{m['q']}.weight", first)
        if fused[0] == first[0] and fused[1] > fused[0]:
            words["conv1d"] = True
        q_rows, k_rows = first[-1], (fused[1 if "conv1d" in words else 0] - first[-1]) // 2
    else:
        q_rows, k_rows = (shape.get(f"{layer}.{names[role]}.weight", first)[0] for role in "qk")
    if not heads:
        heads, least = _fewest(q_rows, k_rows)
        kv = kv or least
        questions.append(f"{N_HEADS}{heads} stands for it, the fewest that these shapes allow.")
    words["n_heads"] = heads
    if kv not in (None, heads):
        words["n_kv_heads"] = kv
    if "qkv" in names and kv not in (None, heads):
        questions.append("layout: 'concat' ([q; k; v]) is assumed; 'per_group' is the other usual one.")
    for q, k in (("q_norm", "k_norm"), ("norm_q", "norm_k"), ("q_layernorm", "k_layernorm"), ("q_ln", "k_ln")):
        if {f"{q}.weight", f"{k}.weight"} <= set(found.extra):
            words["qk_norm"] = (q, k)
    out = [attention(layer, **names, out=m["o"], **words)]
    out += _feed_forwards(shapes, found.root + found.layer.split("{i}")[0] + "{i}.")
    return Guess(tuple(out), tuple(questions))


def _numberless(name: str) -> str:
    return re.sub(r"\.\d+\.", ".{i}.", name, count=1)


def _fewest(q_rows: int, k_rows: int) -> tuple[int, int]:
    """Heads and key/value heads: one of these, and as many of those as its width goes into the queries."""
    return (q_rows // k_rows, 1) if 0 < k_rows < q_rows and not q_rows % k_rows else (1, 1)


def _fused_otherwise(checkpoint: Checkpoint) -> AttentionNames | None:
    """One matrix of three under names that discovery does not try: litgpt's attn, torch's own in_proj_weight, timm's
    qkv.
    """
    names = {t.name for t in checkpoint.tensors}
    for fused, out in _FUSED:
        for name in sorted(names):
            match = re.fullmatch(rf"((?:\w+\.)*?)(\w+\.\d+\.(?:\w+\.)*){re.escape(fused)}(\.weight)?", name)
            if match and f"{match[1]}{match[2]}{out}.weight" in names:
                layer = re.sub(r"\.\d+\.", ".{i}.", match[2], count=1)
                return AttentionNames(match[1], layer, {**dict.fromkeys("qkv", fused), "o": out}, ())
    return None


def _feed_forwards(shapes: Mapping, layer: str) -> Iterable[Declaration]:
    """Gated ones only: without a gate the activation decides, which no name says."""
    names = {_numberless(name) for name in shapes}
    inside = {name.removeprefix(layer).removesuffix(".weight") for name in names if name.startswith(layer)}
    for gate, up, down in _GATED:
        for one in sorted(inside):
            path = one.removesuffix(gate)
            if one.endswith(gate) and {path + up, path + down} <= inside and re.fullmatch(r"(\w+\.)*", path):
                yield feed_forward((layer + path).rstrip("."), gate=gate, up=up, down=down)


def _as_checkpoint(model: object) -> Checkpoint:
    if isinstance(model, Checkpoint):
        return model
    if hasattr(model, "checkpoint"):  # an opened model
        return model.checkpoint
    if not hasattr(model, "named_parameters"):
        raise DeclarationError(
            f"guess: a {type(model).__name__} was given; a torch module or an opened file is needed."
        )
    from wisca_core.checkpoint.live import module_checkpoint

    return module_checkpoint(model)


def _numbers(model: object, layer: str) -> dict[str, int]:
    """Whole numbers that the attention module, or a config of it or of the model, has under usual names."""
    if not hasattr(model, "named_modules"):
        return {}
    pattern = re.compile(re.escape(layer).replace(re.escape("{i}"), r"\d+"))
    holders = [module for path, module in model.named_modules() if pattern.fullmatch(unwrapped_name(path))][:1]
    holders += [config for one in (*holders, model) if (config := getattr(one, "config", None)) is not None]
    out: dict[str, int] = {}
    for holder in holders:
        values = holder if isinstance(holder, Mapping) else getattr(holder, "__dict__", {})
        for name in (*_HEADS, *_KV_HEADS):
            if isinstance(values.get(name), int) and not isinstance(values.get(name), bool):
                out.setdefault(name, values[name])
    return out
