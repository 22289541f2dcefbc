"""From config.json and tensor names to sites: look the family up, check every shape, refuse by name what does not fit.

No tensor is read here, only names, shapes and dtypes.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from wisca_core.architecture.adapter import adapter_sites
from wisca_core.architecture.attention import attention_sites, norm_of
from wisca_core.architecture.declared_sites import declared_sites
from wisca_core.architecture.expressions import evaluate, whole
from wisca_core.architecture.families import Family, families
from wisca_core.architecture.layer import Layer, Weights, numbers
from wisca_core.architecture.mlp import mlp_sites
from wisca_core.architecture.site import DEFAULT_PAIRS, Attention, Refusal, Site, Sites
from wisca_core.checkpoint import Checkpoint, quantisation
from wisca_core.errors import ConfigMismatch, UnknownArchitecture
from wisca_core.words import ranges


def pairs_to_find(pairs: Iterable[str]) -> tuple[str, ...]:
    """The pairs to look for where ``pairs`` are to be balanced: the paper's two together, so that one table and one
    proof serve every choice among them, and feed-forward pairs, which are most of a model, only where they are asked
    for.
    """
    return (*DEFAULT_PAIRS, "mlp") if "mlp" in pairs else DEFAULT_PAIRS


def find_sites(checkpoint: Checkpoint, family: Family | None = None, pairs: Iterable[str] = DEFAULT_PAIRS) -> Sites:
    """All sites of ``pairs`` in the checkpoint, with everything that was refused and why. ``family``: judge by this row
    instead of the one that the family files have for the model type.

    Never raises for a model it does not know or whose config.json and weights disagree: the result then has no sites
    and a refusal of ``model``, so that the tensors can still be looked at. Raises DeclarationError where sites were
    declared that do not fit.
    """
    if checkpoint.adapter_json:
        return adapter_sites(checkpoint)
    if checkpoint.declared is not None:
        return declared_sites(checkpoint, checkpoint.declared.sites, pairs)
    config = checkpoint.config
    model_type = str(config.get("model_type", ""))
    try:
        row = family or _family(checkpoint, config, model_type)
        sites = _sites(checkpoint, config, model_type, row, tuple(pairs))
        return sites if family is None else replace(sites, discovered=family)
    except (UnknownArchitecture, ConfigMismatch) as error:
        return Sites(family="", model_type=model_type, attention=None, refusals=(Refusal("model", str(error)),))


def _family(checkpoint: Checkpoint, config: dict, model_type: str) -> Family:
    if not checkpoint.config_json:
        raise UnknownArchitecture(
            "there is no config.json beside the weights; put the model's own config.json there, or declare its pairs "
            "(wisca "
            "inspect FILE --sites sites.toml)."
        )
    quantised = quantisation(checkpoint)
    if quantised:
        raise UnknownArchitecture(
            f"the checkpoint is quantised ({quantised}); rescale the unquantised one and quantise again."
        )
    family = families().get(model_type)
    if family is None:
        custom = " It brings its own code (auto_map), which is never run." if "auto_map" in config else ""
        named = f'model_type "{model_type}"' if model_type else "config.json without model_type"
        raise UnknownArchitecture(f"{named} has no site rule.{custom} {_closest(checkpoint)}".strip())
    return family


def _closest(checkpoint: Checkpoint) -> str:
    """A hint in words: the family whose attention module names occur in the tensor names. Never used to rescale."""
    names = "\n".join(t.name for t in checkpoint.tensors)
    for family in dict.fromkeys(families().values()):
        modules = dict.fromkeys((family.q, family.k, family.v, family.o))
        layer = re.escape(family.layer).replace(re.escape("{i}"), r"\d+")
        if not family.towers and all(re.search(rf"{layer}{re.escape(m)}\.weight$", names, re.M) for m in modules):
            return f"By its tensor names it is closest to {family.name}."
    return "No known family has attention tensors of these names."


def _sites(checkpoint: Checkpoint, config: dict, model_type: str, family: Family, pairs: tuple[str, ...]) -> Sites:
    weights = Weights.of(checkpoint)
    found: list[Site | Refusal] = []
    remarks: list[str] = []
    attention = None
    problems: list[ConfigMismatch | UnknownArchitecture] = []
    inside = list(each_part(family, config))
    for part, numbers_of in inside:
        if isinstance(part, Refusal):
            found.append(part)
            continue
        try:
            for expression, reason in part.refuse:
                if evaluate(expression, numbers_of):
                    raise UnknownArchitecture(f"{model_type}: {reason}.")
            one = _part(weights, part, numbers_of, pairs, remarks)
        except (ConfigMismatch, UnknownArchitecture) as error:
            if len(inside) == 1:
                raise
            problems.append(error)
            found.append(Refusal(f"{part.stack}.{part.attention}", str(error)))
            continue
        attention = attention or one[0]
        found += one[1]
    if attention is None and problems:
        raise problems[0]
    if attention is None and not found:
        raise ConfigMismatch(f"the weights hold no attention tensors of a {model_type}. {' '.join(remarks)}".strip())
    if "auto_map" in config:
        remarks.append(
            "config.json names custom code (auto_map); it is never run, and the proof is of transformers' own class."
        )
    sites = tuple(one for one in found if isinstance(one, Site) and one.key.pair in pairs)
    refusals = tuple(one for one in found if isinstance(one, Refusal) and _is_asked(one, pairs))
    return Sites(family.name, model_type, attention, sites, refusals, tuple(dict.fromkeys(remarks)))


def _is_asked(refusal: Refusal, pairs: tuple[str, ...]) -> bool:
    parts = refusal.what.split(":")[0].split(".")
    return len(parts) < 4 or parts[3] in pairs


def each_part(family: Family, config: Mapping, depth: int = 0) -> Iterable[tuple[Family | Refusal, Mapping]]:
    """(row, the config its numbers are read from), towers looked into."""
    for part in family.each:
        inner = _inner(config, part.config) if part.config else config
        if part.config and isinstance(inner, Mapping):
            inner = _with_defaults(str(inner.get("model_type", "")), inner)
        yield part, inner if isinstance(inner, Mapping) else {}
    for tower in family.towers:
        inner = _inner(config, tower.config)
        if inner is None:
            continue
        model_type = str(inner.get("model_type") or tower.model_type)
        row = families().get(model_type)
        if row is None or depth > 2:
            yield Refusal(f"{tower.stack}.{tower.config}", f'its model_type "{model_type}" has no site rule'), {}
            continue
        inside = list(each_part(row, _with_defaults(model_type, inner), depth + 1))
        n_stacks = len({part.stack for part, _ in inside if not isinstance(part, Refusal)})
        for part, numbers_of in inside:
            if isinstance(part, Refusal):
                yield part, numbers_of
                continue
            roots = tuple(dict.fromkeys(before + behind for before in tower.roots for behind in (*part.roots, "")))
            yield replace(part, roots=roots, stack=tower.stack if n_stacks == 1 else part.stack), numbers_of


def _inner(config: Mapping, key: str) -> Mapping | None:
    """The config of a tower: as the file has it, else as transformers reads it from a file that leaves its type out or
    keeps its numbers at the top (Qwen2-VL's first ones). None where there is no such tower.
    """
    inner = config.get(key)
    inner = inner if isinstance(inner, Mapping) else None
    if inner is not None and inner.get("model_type"):
        return inner
    from transformers import CONFIG_MAPPING

    outer = config.get("model_type")
    if outer not in CONFIG_MAPPING or any(
        isinstance(value, int) and value > 1 << 17 for name, value in config.items() if "layer" in name
    ):
        return inner
    try:
        made = getattr(CONFIG_MAPPING[outer].from_dict(dict(config)), key)
        return made.to_dict() | {"model_type": made.model_type}
    except Exception:  # any key may hold anything; the class raises whatever it meets
        return inner


def _with_defaults(model_type: str, inner: Mapping) -> Mapping:
    """An inner config with the defaults of its class: transformers leaves equal ones out when it writes them, and some
    follow from others (a head's width from the hidden size).
    """
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        return inner
    given = {
        key: value
        for key, value in inner.items()
        if value is not None and not key.startswith("_") and "attn_implementation" not in key
    }
    try:
        full = CONFIG_MAPPING[model_type](
            **{key: value for key, value in given.items() if key != "model_type"}
        ).to_dict()
    except Exception:  # any key may hold anything; what is wrong is named where it is used
        full = CONFIG_MAPPING[model_type]().to_dict()
    return {**full, **given}


def _part(
    weights: Weights, part: Family, config: Mapping, pairs: tuple[str, ...], remarks: list[str]
) -> tuple[Attention | None, list[Site | Refusal]]:
    places = _places(part, config)
    n_layers = len(places)
    numbers_at = [
        dict(config) | {"stage": stage, "inside": inside, "layer": number}
        for number, (stage, inside) in enumerate(places)
    ]
    wanted = [i for i in range(n_layers) if evaluate(part.when, numbers_at[i])]
    root, present = _layers(weights, part, places)
    if part.is_optional and not present:
        remarks.append(f"{part.stack}.{part.attention}: the file holds no such tensors ({root}{part.layer}).")
        return None, []
    if (
        not part.is_sparse
        and part.when == "True"
        and len(present) < n_layers
        and present == list(range(len(present)))
        or not present
    ):
        # the head counts first: what they say explains more than a missing tensor
        numbers(weights, part, numbers_at[0], 0, "")
        raise ConfigMismatch(
            f"config.json claims {n_layers:,} layers; the weights hold attention tensors of {len(present):,} "
            f"({root}{part.layer}). Check num_hidden_layers, or whether a shard is missing."
        )

    def layer_at(i: int) -> Layer:
        stage, inside = places[i]
        return numbers(weights, part, numbers_at[i], i, root + part.layer.format(s=stage, i=inside))

    layers = [layer_at(i) for i in wanted]
    if part.is_sparse:
        layers = [layer for layer in layers if layer.weights.shape(layer.tensor(layer.module("q"))) is not None]
    found: list[Site | Refusal] = []
    for layer, readers in _with_readers(layers):
        found += attention_sites(layer, readers)
    if "mlp" in pairs and part.mlp != "none":
        beside = part.mlp_at or part.layer.split("{i}")[0] + "{i}."
        for layer in layers if part.when != "True" else [layer_at(i) for i in range(n_layers)]:
            stage, inside = places[layer.number]
            found += mlp_sites(layer, root + beside.format(s=stage, i=inside))
    _remark(part, layers, n_layers, present, remarks)
    if not layers:
        return numbers(weights, part, numbers_at[0], 0, "").attention(n_layers), found
    return layers[0].attention(n_layers), found


def _with_readers(layers: list[Layer]) -> Iterable[tuple[Layer, list[Layer]]]:
    """Each layer that has keys and values of its own, with the layers that read them."""
    by_number = {layer.number: layer for layer in layers}
    readers: dict[int, list[Layer]] = {number: [] for number in by_number}
    for layer in layers:
        source = _source(layer)
        if source in by_number:
            readers[source].append(layer)
            del readers[layer.number]
    for number, found in readers.items():
        yield by_number[number], found


def _remark(part: Family, layers: list[Layer], n_layers: int, present: list[int], remarks: list[str]) -> None:
    normed = [layer for layer in layers if norm_of(layer)]
    if normed:
        norm = normed[0].family.norm
        remarks.append(
            f"{norm.q} and {norm.k}, {len(normed)} layers: the norm absorbs the scale of Wq and Wk, "
            "so scaling those does nothing; its gains are the live pair and are balanced instead."
        )
    if part.sub_norm and layers:
        remarks.append(
            f"{part.sub_norm}, {len(layers)} layers: the norm absorbs the scale of Wv; its gain is balanced against Wo "
            "instead."
        )
    shared = [layer.number for layer in layers if _source(layer) is not None]
    if shared:
        remarks.append(
            f"Layers {ranges(shared)} read the keys and values of an earlier layer; their queries follow its factors."
        )
    others = sorted(set(range(n_layers)) - {layer.number for layer in layers})
    if others and part.otherwise:
        remarks.append(f"Layers {ranges(others)}: {part.otherwise}.")
    beyond = [layer for layer in present if layer >= n_layers]
    if beyond:
        remarks.append(
            f"The weights hold {len(beyond)} further layers ({beyond[0]} to {beyond[-1]}) beyond the {n_layers} of "
            "config.json; "
            "the model does not run them, and they are left as they are."
        )


def _source(layer: Layer) -> int | None:
    """The layer whose keys and values it reads, None where it has its own."""
    if not layer.family.kv_source:
        return None
    source = evaluate(layer.family.kv_source, dict(layer.config) | {"layer": layer.number})
    return None if source == layer.number else source


def _places(part: Family, config: Mapping) -> list[tuple[int, int]]:
    """(stage, number in the stage) of every layer in order; one stage where the family names none."""
    if not part.stages:
        return [(0, i) for i in range(whole(part.n_layers, config, "layers", at_most=1 << 14))]
    depths = evaluate(part.stages, config)
    if not isinstance(depths, list) or len(depths) > 64:
        raise ConfigMismatch(
            f"config.json gives the depths of its stages as {depths!r:.60} ({part.stages}); a list is needed."
        )
    each = [whole("depth", {"depth": depth}, "layers of a stage", at_least=0, at_most=1 << 12) for depth in depths]
    if not sum(each):
        raise ConfigMismatch(f"config.json gives no layer in any stage ({part.stages} = {depths!r:.60}).")
    return [(stage, i) for stage, depth in enumerate(each) for i in range(depth)]


def _layers(weights: Weights, family: Family, places: list[tuple[int, int]]) -> tuple[str, list[int]]:
    """(root, layers present): the first root below which tensors of this family's attention are found. Layers beyond
    the config's are counted on behind them.
    """
    number = {place: i for i, place in enumerate(places)}
    for root in family.roots:
        pattern = (
            re.escape(root + family.layer)
            .replace(re.escape("{i}"), r"(?P<i>\d{1,6})")
            .replace(re.escape("{s}"), r"(?P<s>\d{1,6})")
        )
        beginning = (root + family.layer).split("{")[0]
        matches = [m for name in weights.below(beginning) if (m := re.match(pattern, name))]
        found = {(int(m.groupdict().get("s", 0)), int(m.groupdict().get("i", 0))) for m in matches}
        if found:
            beyond = sorted(found - number.keys())
            if not family.stages:
                return root, sorted(i for _, i in found)
            return root, sorted(number[place] for place in found & number.keys()) + [
                len(places) + i for i in range(len(beyond))
            ]
    return family.roots[0], []
