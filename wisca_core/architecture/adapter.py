"""A LoRA adapter folder (peft): what adapts which linear layer, by tensor names, and its rank channels as sites.

A linear layer computes W x + scaling B (A x). Rank channel r is written by A's row r and read by B's column r, so A's
rows times s and B's columns over s keep the product. rsLoRA changes only the scaling and DoRA only what is done with
the product, so both keep the rule; biases of B are added behind it.

Not covered, refused by name: adapters of embeddings, convolutions and single parameters (experts), variants of LoRA
that compute something else, and every other kind of adapter.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace

from wisca_core.architecture.site import Grid, Leg, Refusal, Site, SiteKey, Sites
from wisca_core.checkpoint import RESCALABLE, Checkpoint
from wisca_core.untrusted import printable

ROOT = "base_model.model."
_PART = re.compile(r"(.+)\.(?:lora_(A|B)\.(weight|bias)|lora_(magnitude_vector)(?:\.weight)?|lora_(embedding_[AB]))")
_ANY_PART = re.compile(r"\.lora_|_lora\.|\.(?:hada|lokr|oft|ia3|vera|boft|hra)_")

# Keys of adapter_config.json that change nothing about which products are computed; any other one that is set refuses.
_HARMLESS = frozenset(
    (
        "task_type",
        "peft_type",
        "auto_mapping",
        "peft_version",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
        "r",
        "target_modules",
        "exclude_modules",
        "lora_alpha",
        "lora_dropout",
        "fan_in_fan_out",
        "bias",
        "use_rslora",
        "use_dora",
        "modules_to_save",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "megatron_core",
        "trainable_token_indices",
        "layer_replication",
        "runtime_config",
        "lora_bias",
        "ensure_weight_tying",  # of embeddings and heads, which no pair reads through
        # refused module by module: there A and B hold the ranks of many experts in different orders
        "target_parameters",
        "qalora_group_size",  # of use_qalora, which is refused
        # what the adapter was filled with before its first step
        "init_lora_weights",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
    )
)


@dataclass(frozen=True)
class AdaptedLayer:
    """One adapted layer: its path in the base model, and the names of the adapter's tensors, "" where it has none.

    ``unknown``: why no rule covers it, "" where one does.
    """

    module: str
    a: str = ""
    b: str = ""
    bias: str = ""
    magnitude: str = ""
    unknown: str = ""


def adapter_sites(checkpoint: Checkpoint) -> Sites:
    """One site an adapted linear layer, and everything that was refused; never raises."""
    config = checkpoint.adapter
    kind, reason = _kind(config)
    modules = () if reason else adapted_layers(checkpoint)
    if not reason and not modules:
        reason = "its weights have no lora_A and lora_B tensors; they are not those that adapter_config.json describes."
    if reason:
        return Sites("", kind, None, refusals=(Refusal("model", reason),))
    keys = _keys([one.module for one in modules])
    sites, refusals = [], []
    for one in modules:
        key = keys[one.module]
        if one.unknown:
            refusals.append(Refusal(str(key), one.unknown))
        else:
            sites.append(_site(key, one, checkpoint))
    order = sorted(range(len(sites)), key=lambda i: (sites[i].key.stack, sites[i].key.layer, sites[i].key.part))
    return Sites(
        kind, kind, None, tuple(sites[i] for i in order), tuple(refusals), tuple(_remarks(checkpoint, modules))
    )


def _kind(config: dict) -> tuple[str, str]:
    """What kind of adapter it is, and why all of it is refused, "" where it is not."""
    stated = str(config.get("peft_type", ""))[:40]
    if stated != "LORA":
        return "adapter", f"peft_type {printable(stated)!r} in adapter_config.json is no LoRA; no rule covers it."
    kind = "LoRA" if not config.get("use_rslora") else "rsLoRA"
    kind += " with DoRA" if config.get("use_dora") else ""
    odd = [key for key, value in config.items() if key not in _HARMLESS and value]
    if odd:
        return kind, (
            f"adapter_config.json sets {', '.join(printable(key, 60) for key in odd[:4])}: a variant of LoRA without a "
            "rule, "
            f"so nothing of it is rescaled."
        )
    return kind, ""


def adapted_layers(checkpoint: Checkpoint) -> tuple[AdaptedLayer, ...]:
    """Every adapted layer, in order of the stored tensors."""
    config = checkpoint.adapter
    owners = dict(checkpoint.aliases)
    shared = {*owners, *owners.values()}
    found: dict[str, AdaptedLayer] = {}
    for name in (*checkpoint.by_name, *owners):
        match = _PART.fullmatch(name.removeprefix(ROOT))
        if not match:
            continue
        module, part, kind, magnitude, embedding = match.groups()
        one = found.get(module) or AdaptedLayer(module)
        if embedding:
            one = replace(one, unknown="a LoRA on an embedding, which has no rule yet; left as it is")
        elif magnitude:
            one = replace(one, magnitude=name)
        else:
            one = replace(one, **{("bias" if kind == "bias" else part.lower()): name})
        if name in shared and not magnitude and not embedding:
            one = replace(one, unknown=f"{name} shares its storage with another tensor; never scaled twice")
        found[module] = one
    ranks = _ranks(config)
    targets = config.get("target_parameters") or ()
    return tuple(
        one if one.unknown else replace(one, unknown=_why_unknown(one, checkpoint, ranks, targets))
        for one in found.values()
    )


def _ranks(config: dict) -> set[int]:
    pattern = config.get("rank_pattern")
    return {
        r for r in (config.get("r"), *(pattern.values() if isinstance(pattern, dict) else ())) if isinstance(r, int)
    }


def _why_unknown(one: AdaptedLayer, checkpoint: Checkpoint, ranks: set[int], targets: object) -> str:
    a, b = checkpoint.by_name.get(one.a), checkpoint.by_name.get(one.b)
    if a is None or b is None:
        return f"it has no lora_{'A' if a is None else 'B'}, so there is no product to keep"
    of = re.sub(r"(\.base_layer)+$", "", one.module)
    for target in targets if isinstance(targets, (list, tuple)) else ():
        if f".{of}".endswith(f".{str(target).rpartition('.')[0]}"):
            return (
                "a LoRA on a parameter (target_parameters): its A and B hold many experts in different orders; "
                "left "
                "as it is"
            )
    if len(a.shape) != 2 or len(b.shape) != 2:
        return f"A is {_by(a.shape)} and B is {_by(b.shape)}: a LoRA on a convolution, which has no rule; left as it is"
    if not (a.n_elements and b.n_elements):
        return "A or B holds no values"
    if a.shape[0] != b.shape[1]:
        return f"A is {_by(a.shape)} and B is {_by(b.shape)}; they do not meet in rank channels"
    if a.shape[0] not in ranks:
        return (
            f"A and B have {a.shape[0]} rank channels, adapter_config.json gives r = "
            f"{printable(checkpoint.adapter.get('r'), 20)}; left as it is"
        )
    for tensor in (a, b):
        if tensor.dtype not in RESCALABLE:
            return f"{tensor.name} is stored as {tensor.dtype}; left as it is"
    return ""


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _site(key: SiteKey, one: AdaptedLayer, checkpoint: Checkpoint) -> Site:
    rank = checkpoint.by_name[one.a].shape[0]
    grid = Grid(0, (1, 1, rank), (0, 0, 1))
    legs = (Leg(one.a, 0, grid, grid, "left", "a"), Leg(one.b, 1, grid, grid, "right", "b"))
    return Site(key, rank, 1, legs, (), (Grid(0, (1, rank), (0, 1)),), "weights", "lora")


def _keys(modules: list[str]) -> dict[str, SiteKey]:
    """Names of the sites: decoder.3.none.lora:self_attn.q_proj; where two would be equal, the stack is the whole
    path.
    """
    keys = {module: _key(module) for module in modules}
    count = Counter(map(str, keys.values()))
    out = {m: _key(m, whole=True) if count[str(key)] > 1 else key for m, key in keys.items()}
    taken: Counter[str] = Counter()
    for module, key in out.items():  # names that differ only in signs a site name does not hold
        taken[str(key)] += 1
        if taken[str(key)] > 1:
            out[module] = replace(key, part=f"{key.part}_{taken[str(key)]}")
    return out


def _key(module: str, whole: bool = False) -> SiteKey:
    match = re.search(r"(?:^|\.)(\d{1,6})\.", module)
    if not match:
        return SiteKey("outside", 0, "none", "lora", part=_word(module))
    before = module[: match.start()]
    stack = next((part for part in before.split(".") if part in ("encoder", "decoder")), "decoder")
    return SiteKey(
        re.sub(r"\W", "_", before) if whole and before else stack,
        int(match[1]),
        "none",
        "lora",
        part=_word(module[match.end() :]),
    )


def _word(text: str) -> str:
    return ".".join(re.sub(r"[^\w-]", "_", part) or "_" for part in text.split("."))


def _remarks(checkpoint: Checkpoint, modules: tuple[AdaptedLayer, ...]) -> list[str]:
    config = checkpoint.adapter
    base = config.get("base_model_name_or_path")
    out = [
        f"A LoRA adapter of {printable(base, 80) if base else 'a base model it does not name'}: rank "
        f"{printable(config.get('r', 'unknown'), 20)}. Its rank "
        f"channels are balanced, A against B; the base model stays as it is."
    ]
    if config.get("use_dora"):
        out.append("DoRA: the magnitudes see only the product B A, which does not change; they are copied.")
    known = {name for one in modules for name in (one.a, one.b, one.bias, one.magnitude)}
    others = [t.name for t in checkpoint.tensors if t.name not in known and not _ANY_PART.search(t.name)]
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        out.append(
            "Copied unchanged, they are no LoRA (modules_to_save, biases): "
            f"{', '.join(printable(n, 80) for n in others[:3])}{more}."
        )
    return out
