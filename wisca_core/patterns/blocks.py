"""Blocks: the places in a model that hold one pair a layer (or one an expert), and what they are called.

Several blocks may share a layer: an encoder-decoder's self- and cross-attention, the content and the rotary part of
latent attention, experts beside a shared one. Tables carry a ``block`` column; nothing is summed over several of them.
"""

from collections.abc import Iterable

from wisca_core.architecture.site import SiteKey

_ATTENTIONS = {"self": "self-attention", "cross": "cross-attention", "none": "feed-forward", "experts": "experts"}
_PARTS = {"": "content part", "rope": "rotary part"}
_ORDINALS = ("first", "second", "third", "fourth")


def block_of(key: SiteKey) -> str:
    """``decoder.self``, ``decoder.self:rope``, ``decoder.experts``, ``decoder.none:shared_expert``. The adapted parts
    of a layer stay together, as lines of one table.
    """
    where = "experts" if key.expert >= 0 else key.attention
    part = f":{key.part}" if key.part and key.pair != "lora" else ""
    return f"{key.stack}.{where}{part}"


def unit_of(pair: str, block: str) -> str:
    """What the ``group`` column counts: "KV group", "expert", "adapted layer"; "layer" of feed-forward blocks without
    experts, which have one group a layer.
    """
    if pair == "lora":
        return "adapted layer"
    return "expert" if _split_block(block)[1] == "experts" else "layer" if pair == "mlp" else "KV group"


def site_unit(pair: str, block: str) -> str:
    """What one pair of that kind is a pair of: "layer", "expert" or "adapted layer", of which a layer has several."""
    unit = unit_of(pair, block)
    return "layer" if unit == "KV group" else unit


def titles(blocks: Iterable[str]) -> dict[str, str]:
    """block -> its name among the blocks of one pair, in words of a sentence; "" where it is the only one.

    Names of parts come from tensor names, so they are foreign text.
    """
    split = {block: _split_block(block) for block in dict.fromkeys(blocks)}
    stacks = {stack for stack, _, _ in split.values()}
    out = {}
    for block, (stack, where, part) in split.items():
        if len(split) == 1:
            return {block: ""}
        of_stack = [(w, p) for s, w, p in split.values() if s == stack]
        words = [stack.replace("_", " ")] if len(stacks) > 1 else []
        wheres = {w for w, _ in of_stack}
        parts = {p for w, p in of_stack if w == where}
        if part and where == "none":
            words.append(f"{_ordinal(part)} dense block" if part.isdigit() else part.replace("_", " "))
        elif where == "none" and "experts" in wheres:
            words.append("dense layers")
        elif len(wheres) > 1 or (where == "none" and len(parts) > 1):
            words.append(_ATTENTIONS.get(where, where))
        out[block] = ", ".join(filter(None, (" ".join(words), "" if where == "none" else _part(part, parts))))
    return out


def _split_block(block: str) -> tuple[str, str, str]:
    place, _, part = block.partition(":")
    stack, _, where = place.partition(".")
    return stack, where, part


def _part(part: str, siblings: set[str]) -> str:
    """ "0.rope" -> "first attention, rotary part". ``siblings``: all parts at the same place."""
    if siblings == {part}:
        return _PARTS.get(part, part.replace("_", " ")) if part else ""
    number, _, rest = part.partition(".")
    if not number.isdigit():
        return _PARTS.get(part, part.replace("_", " "))
    words = [f"{_ordinal(number)} attention"]
    if any(other.startswith(f"{number}.") for other in siblings):
        words.append(_PARTS.get(rest, rest.replace("_", " ")))
    return ", ".join(words)


def _ordinal(number: str) -> str:
    return _ORDINALS[int(number)] if int(number) < len(_ORDINALS) else f"number {number}"
