"""The pairs that declarations describe in a model."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from wisca_core.architecture.attention import attention_sites, norm_of
from wisca_core.architecture.declaration import NAME, Declaration
from wisca_core.architecture.declared_layer import declared_layer, feed_forward_sites, in_words
from wisca_core.architecture.declared_paths import layer_paths, root_of
from wisca_core.architecture.layer import Layer, Weights
from wisca_core.architecture.site import DEFAULT_PAIRS, Leg, Refusal, Site, Sites
from wisca_core.checkpoint import Checkpoint
from wisca_core.errors import DeclarationError


def declared_sites(
    checkpoint: Checkpoint, declarations: Sequence[Declaration], pairs: Iterable[str] = DEFAULT_PAIRS
) -> Sites:
    """The sites that these declarations describe in this model, of these pairs; tensors that cannot be rescaled
    (shared, quantised) as refusals.

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
        places = layer_paths(weights, one, root)
        for place in places:
            if one.kind == "feed_forward":
                found += [(one, site) for site in feed_forward_sites(weights, one, place)]
                continue
            layer = declared_layer(weights, one, place)
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
            for place in layer_paths(weights, one, root):
                out.setdefault(_name_of(one, one["kv_layer"]), []).append(declared_layer(weights, one, place))
    return out


def _check_readers(one: Declaration, layer: Layer, reading: Iterable[Layer]) -> None:
    for reader in reading:
        theirs, ours = ((x.n_kv_heads, x.head_dim, x.value_dim, x.rope, x.rope_width) for x in (reader, layer))
        if theirs != ours:
            raise DeclarationError(
                f"{one.title}: layer {reader.number} reads the keys and values of layer {layer.number}, but is "
                "declared with "
                f"{theirs[0]} key/value heads of {theirs[1]} and {theirs[2]}, rope {theirs[3]!r} in {theirs[4]} "
                "channels; "
                f"there are {ours[0]} of {ours[1]} and {ours[2]}, rope {ours[3]!r} in {ours[4]}."
            )


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
            f"{one.title}: {name} is {in_words(layer.weights.shape(name) or ())}; one bias of q, k and v has {at:,} "
            "values."
        )
    legs = []
    for role, side in (("q", "left"), ("k", "right")) if site.key.pair == "qk" else (("v", "left"),):
        index, channel = layer.separate(role)
        legs.append(Leg(name, 0, replace(index, start=firsts[role]), channel, side, role, measured=False))
    return replace(site, legs=(*site.legs, *legs))


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
                        f"{one.title} and {other.title} both claim the same rows of {leg.tensor} ({site.name}, "
                        f"{its.name})."
                        if other is not one
                        else f"{one.title}: {leg.tensor} is claimed twice ({site.name}, {its.name}). Check the names "
                        "of its modules."
                    )
            claims[place].append((one, site, rows))
        if site.name in names:
            raise DeclarationError(
                f"{one.title} and {names[site.name].title} both make a pair named {site.name}; give one of them "
                "another "
                "stack= or part=."
            )
        names[site.name] = one
