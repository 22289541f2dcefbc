"""What stands before and behind the product of a head's matrices: the norm that its inputs come out of, and the scale,
the soft cap and the rotary factor of its logits. Data with a reason in ``inputs.toml``; what is not known is said, not
guessed.
"""

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import pandas as pd

from wisca_core.architecture.expressions import evaluate
from wisca_core.architecture.families import Family, families
from wisca_core.architecture.find import each_part
from wisca_core.architecture.site import Refusal, Sites
from wisca_core.checkpoint import Checkpoint
from wisca_core.circuits.layout import Head, HeadRows
from wisca_core.errors import ConfigMismatch

_GAINS = ("weight", "gamma", "scale")
_BIASES = ("bias", "beta")


@dataclass(frozen=True)
class InputNorm:
    """The norm a projection reads. ``gain`` and ``bias`` are tensors, "" for none; ``offset`` is added to the stored
    gain; ``centred``: it takes the mean away first (LayerNorm); ``stream``: it normalises the residual stream.
    """

    name: str
    gain: str = ""
    bias: str = ""
    offset: float = 0.0
    centred: bool = False
    stream: bool = True


@dataclass(frozen=True)
class Settings:
    """Of one head's logits: ``scale`` times q.k, at most ``cap`` (None for no soft cap); ``turn``: what the rotation
    multiplies q.k by where it also stretches (YaRN); ``note``: what the bound leaves out.
    """

    scale: float
    cap: float | None = None
    turn: float = 1.0
    note: str = ""


@lru_cache(maxsize=1)
def _data() -> dict:
    return tomllib.loads(resources.files(__package__).joinpath("inputs.toml").read_text(encoding="utf-8"))


class Inputs:
    """Answers for one checkpoint."""

    def __init__(self, sites: Sites, checkpoint: Checkpoint):
        self._shapes = {tensor.name: tensor.shape for tensor in checkpoint.tensors}
        self._type = sites.model_type
        family = sites.discovered or families().get(sites.model_type)
        found = each_part(family, checkpoint.config) if family else ()
        self._parts = [(part, config) for part, config in found if not isinstance(part, Refusal)]

    def norm(self, rows: HeadRows, role: str, rule: str, live: str) -> InputNorm | None:
        """The norm whose output the matrix reads; None where it is not known, or where the circuit is of gains."""
        if role == "o" or live == "gains":
            return None
        place = self._place(rows.tensor, rule)
        if place is None:
            return None
        part, config, root, stem, before, number = place
        if not evaluate(_data()["when"].get(rule, "True"), config):
            return None
        module = rows.tensor.removeprefix(stem).removeprefix(".").removesuffix(".weight")
        lines = _data()["norms"]
        of_family: Mapping[str, str] = lines.get(
            f"{rule} {config.get('model_type') or self._type}", lines.get(rule, {})
        )
        keys = (f"{part.attention} {module.split('.')[-1]}", f"{part.attention} {role}", part.attention)
        line = next((of_family[key] for key in keys if key in of_family), "")
        if not line:
            return None
        kind, *names = line.split()
        for name in names:
            if name == "-":
                return InputNorm("a norm without a gain", centred=kind.startswith("ln"))
            where, base = name[0], name[1:].format(part=part.part)
            if where == "<" and not before or where in "^~" and number:
                continue
            full = {
                "<": f"{before}.{base}",
                "^": f"{root}{base}",
                "~": f"{stem.rsplit('.', 2)[0]}.{base}",
                "@": f"{self._attention(part, stem)}{base}",
            }.get(where, f"{stem}.{name.format(part=part.part)}")
            norm = self._norm(full, kind, where != "@")
            if norm is not None:
                return norm
        return None

    def _norm(self, module: str, kind: str, stream: bool) -> InputNorm | None:
        gain = next((f"{module}.{one}" for one in _GAINS if len(self._shapes.get(f"{module}.{one}", ())) == 1), "")
        if not gain:
            return None
        bias = next((f"{module}.{one}" for one in _BIASES if f"{module}.{one}" in self._shapes), "")
        name = re.sub(r"^.*?\d+\.", "", module) if re.search(r"\d+\.", module) else module
        return InputNorm(
            name, gain, bias, 1.0 if kind.endswith("+1") else 0.0, kind.startswith("ln") or bool(bias), stream
        )

    def _place(self, tensor: str, rule: str) -> tuple[Family, Mapping, str, str, str, int] | None:
        """(part, its config, root, path of the layer, path of the layer before or "", number in its stage)."""
        for part, config in self._parts:
            if part.name != rule:
                continue
            head, _, tail = part.layer.partition("{i}")
            beginning = re.escape(head).replace(re.escape("{s}"), r"\d+")
            for root in part.roots:
                match = re.match(rf"({re.escape(root)}{beginning})(\d+){re.escape(tail)}", tensor)
                if match:
                    number = int(match[2])
                    before = f"{match[1]}{number - 1}" if number else ""
                    return part, config, root, f"{match[1]}{number}", before, number
        return None

    @staticmethod
    def _attention(part: Family, stem: str) -> str:
        return stem + part.layer.partition("{i}")[2]

    def settings(self, head: Head) -> Settings:
        """Scale, soft cap and rotary factor of a head's logits; the note says what is left out of a bound."""
        meeting = head.qk[0]
        place = self._place(meeting.q.tensor, meeting.site.rule)
        config = place[1] if place else {}
        width = sum(one.q.width for one in head.qk)
        names = dict(config) | {"layer": head.layer, "width": width}
        note = ""
        biases = {rows.bias.tensor for one in head.qk for rows in (one.q, one.k) if rows.bias}
        loose = sorted(
            {
                ".".join(leg.tensor.split(".")[-2:])
                for one in head.qk
                for leg in one.site.legs
                if not leg.measured and leg.tensor not in biases
            }
        )
        if loose:
            note = f"Logit bounds leave out terms of position ({', '.join(loose[:3])})."
        if config.get("attn_temperature_tuning") or _rope(config).get("llama_4_scaling_beta"):
            note = f"{note} Logit bounds leave out a temperature that grows with the position.".strip()
        scale = self._scale(meeting.site.rule, names, width)
        cap = config.get("attn_logit_softcapping") or config.get("attention_logit_cap")
        cap = float(cap) if isinstance(cap, (int, float)) and not isinstance(cap, bool) and cap > 0 else None
        return Settings(scale, cap, _turn(config), note)

    def _scale(self, rule: str, names: Mapping, width: int) -> float:
        plain = width**-0.5
        special = _data()["scale"].get(rule)
        if special is not None:
            try:
                power, value = special.split(" ", 1)
                found = evaluate(value, names)
                if isinstance(found, (int, float)) and found > 0:
                    return float(found) ** float(power)
            except ConfigMismatch:
                return plain
        multiplier = names.get("attention_multiplier")
        if _positive(multiplier):
            return float(multiplier)
        if _positive(names.get("query_pre_attn_scalar")):
            return float(names["query_pre_attn_scalar"]) ** -0.5
        return plain * (_latent_factor(names) if rule in _data()["yarn_in_scale"]["families"] else 1.0)

    def remarks(self, table: pd.DataFrame) -> list[str]:
        """What is not folded in, in words."""
        out = []
        weights = table[(table["qk_of"] == "weights") | (table["ov_of"] == "weights")]
        bare = weights[weights["folded"] == ""]
        if len(bare):
            which = (
                "none of the heads"
                if len(bare) == len(table)
                else f"{len(table) - len(bare):,} of {len(table):,} heads"
            )
            out.append(
                f"The norm before the projections is folded in for {which}; for the others it is not known which one "
                "their inputs "
                "pass, so their circuits are of the matrices as stored and their logit bounds hold for inputs of unit "
                "RMS behind that norm."
            )
        if (table["qk_of"] == "gains").any():
            out.append(
                "Under a QK-norm Wq^T Wk is not what a head computes: its QK columns are of the norm's gains, on "
                "queries and keys "
                "of unit RMS."
            )
        return out


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e30


def _rope(config: Mapping) -> Mapping:
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return found if isinstance(found, Mapping) else {}


def _turn(config: Mapping) -> float:
    """What YaRN and LongRoPE multiply q.k by: their attention factor stretches cosine and sine alike, so twice."""
    rope = _rope(config)
    kind = rope.get("rope_type") or rope.get("type")
    factor, given = rope.get("factor"), rope.get("attention_factor")
    if kind == "yarn" and (_positive(given) or _positive(factor)):
        if _positive(given):
            return float(given) ** 2
        mscale, every = rope.get("mscale"), rope.get("mscale_all_dim")
        if _positive(mscale) and _positive(every):
            return (_mscale(factor, mscale) / _mscale(factor, every)) ** 2
        return _mscale(factor, 1.0) ** 2
    if kind == "longrope":
        if _positive(given):
            return float(given) ** 2
        first = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
        longest = config.get("max_position_embeddings")
        if _positive(first) and _positive(longest):
            factor = longest / first
        if _positive(factor) and factor > 1 and _positive(first) and first > 1:
            return 1 + math.log(factor) / math.log(first)
    return 1.0


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _latent_factor(config: Mapping) -> float:
    """DeepSeek puts YaRN's factor over all channels into the scale of its logits, squared."""
    rope = _rope(config)
    factor, every = rope.get("factor"), rope.get("mscale_all_dim")
    if (rope.get("rope_type") or rope.get("type")) not in (None, "default") and _positive(factor) and _positive(every):
        return _mscale(factor, every) ** 2
    return 1.0
