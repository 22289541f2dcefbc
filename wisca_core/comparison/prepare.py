"""Before the first cell: what model the spec stands for, and whether every arm has something to do on it.

The model is built without memory (on torch's meta device), its pairs are found and their rules proved on a miniature,
so that what cannot be done is said now and not once a cell.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from wisca_core.architecture.site import Refusal, Site, Sites, granularity_of
from wisca_core.comparison.paper import SETUPS
from wisca_core.comparison.spec import Arm, Spec
from wisca_core.comparison.spec_checks import refuse_coinciding
from wisca_core.comparison.tokens import N_TOKENS, tokenizer_of
from wisca_core.errors import ConfigMismatch, NothingToRescale, ProofFailed, SpecError, UnknownArchitecture
from wisca_core.pairs import DEFAULT_PAIRS, MODEL_PAIRS

# a vocabulary that may be one of bytes
FEW_TOKENS = 512


@dataclass(frozen=True)
class Facts:
    """The model in numbers. ``n_active``: parameters a token passes through; ``n_trained``: those that training
    changes. ``mlp_width``: of what a token passes through. ``sha256``: of config.json and, where training goes on from
    weights, of these, "" where the spec alone decides. ``refusals``: pairs left alone in every arm.
    """

    title: str
    n_parameters: int
    n_active: int
    n_trained: int
    width: int
    mlp_width: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    vocabulary: int
    sha256: str
    refusals: tuple[Refusal, ...]
    sites: tuple[Site, ...]


def prepare(spec: Spec) -> Facts:
    """Raises SpecError and what opening, building and proving raise: WiscaError."""
    from wisca_core.equivalence.miniature import quiet

    with quiet():
        return _prepare(spec)


def _prepare(spec: Spec) -> Facts:
    import torch

    from wisca_core.comparison.models import language_model_class, model_config
    from wisca_core.equivalence.proof import proved_only
    from wisca_core.equivalence.proving import prove
    from wisca_core.training.live import seen_as_checkpoint

    config = model_config(spec)
    cls = language_model_class(config)
    with torch.device("meta"):
        try:
            model = cls._from_config(config, attn_implementation="eager")
        except Exception as error:  # any value of a config may be one its class does not take
            raise ConfigMismatch(
                f"{cls.__name__} cannot be built from this config: {' '.join(str(error).split())[:300]}"
            ) from error
    _check_tokens(spec, config)
    checkpoint, found = seen_as_checkpoint(model, [pair for pair in spec.watched if pair in MODEL_PAIRS])
    whole = next((r for r in found.refusals if r.what == "model"), None)
    if whole:
        raise UnknownArchitecture(f"model: {whole.reason}")
    proof = prove(checkpoint, found)
    found = proved_only(found, proof)
    if not found.sites:
        raise ProofFailed(f"model: the rule {found.family} did not pass its proof on a miniature: {proof.reason}")
    _check_arms(spec, found, checkpoint)
    if spec.model.source in ("shrunk", "whole", "lora"):
        _check_looks_back(checkpoint.config)
    n = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    total, used = (getattr(config, name, None) or 1 for name in ("num_experts", "num_experts_per_tok"))
    total = getattr(config, "num_local_experts", None) or total
    a = found.attention
    mlp = getattr(config, "moe_intermediate_size", None)
    mlp = (
        mlp * used + (getattr(config, "shared_expert_intermediate_size", 0) or 0)
        if mlp
        else getattr(config, "intermediate_size", None) or 4 * a.hidden_size
    )
    return Facts(
        _title(spec, a),
        n,
        n - experts + experts * used // total,
        _n_trained(spec, model, n),
        a.hidden_size,
        int(mlp),
        a.n_layers,
        a.n_heads,
        a.n_kv_heads,
        config.vocab_size,
        model_sha256(spec),
        found.refusals,
        found.sites,
    )


def model_sha256(spec: Spec) -> str:
    """What the cells begin from, beside the spec; "" where that is all."""
    m = spec.model
    if m.source in ("decoder", "paper"):
        return ""
    from wisca_core.comparison.models import starting_point
    from wisca_core.untrusted import locate, open_regular

    config_json, checkpoint = starting_point(m)
    digest = hashlib.sha256(config_json.encode())
    if checkpoint is not None:
        for name in checkpoint.weight_files:
            with open_regular(locate(checkpoint.path, name)) as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()


def _title(spec: Spec, a) -> str:
    m = spec.model
    heads = f"{a.n_heads} query heads on {a.n_kv_heads} KV head{'' if a.n_kv_heads == 1 else 's'}"
    shape = f"width {a.hidden_size}, {a.n_layers} layers, {heads}"
    match m.source:
        case "decoder":
            return f"Decoder, {shape}"
        case "paper":
            return f"{SETUPS[m.setup].title}, {shape}"
        case "shrunk":
            return f"The open model's config made smaller: {shape}"
        case "whole":
            return f"The open model, {'from scratch' if m.weights == 'fresh' else 'its training continued'}: {shape}"
    return f"LoRA of rank {spec.lora.r} on the open model: {shape}"


def _n_trained(spec: Spec, model, n: int) -> int:
    if spec.model.source != "lora":
        return n
    from wisca_core.comparison.models import attention_names

    names = list(spec.lora.targets) or attention_names(model)
    found = [
        m
        for name, m in model.named_modules()
        if any(name == t or name.endswith("." + t) for t in names) and hasattr(m, "weight")
    ]
    if not found:
        raise SpecError("lora.targets", ", ".join(names), "names of linear layers of this model")
    return sum(spec.lora.r * sum(m.weight.shape) for m in found)


def _check_tokens(spec: Spec, config) -> None:
    vocabulary, longest = config.vocab_size, getattr(config, "max_position_embeddings", None)
    if longest and spec.data.context > longest:
        raise SpecError("data.context", spec.data.context, f"at most {longest}, the positions this model has")
    if spec.data.tokens == "bytes":
        if vocabulary < N_TOKENS:
            raise SpecError(
                "data.tokens", "bytes", f"tokenizer: bytes need {N_TOKENS} tokens, this model has {vocabulary}"
            )
        if spec.model.is_trained_before and vocabulary > FEW_TOKENS:
            raise SpecError(
                "data.tokens",
                "bytes",
                f"tokenizer: the weights at model.path know {vocabulary:,} tokens of their own, which are no bytes",
            )
    elif spec.model.source != "paper" or spec.data.tokenizer:
        n = len(tokenizer_of(spec))
        if n > vocabulary:
            raise SpecError(
                "data.tokenizer",
                spec.data.tokenizer or spec.model.path,
                f"a tokenizer of at most {vocabulary:,} tokens, the model's vocabulary; this one has {n:,}",
            )


def _check_arms(spec: Spec, found: Sites, checkpoint) -> None:
    from wisca_core.equivalence.basis_proof import check_basis
    from wisca_core.methods import method

    sites = found.sites

    def cells(arm: Arm) -> tuple:
        rank = (
            (spec.lora.r if granularity_of(arm.granularity, "lora") == "channel" else 1) if "lora" in arm.pairs else 0
        )
        return (rank, *(site.n_cells(arm.granularity) for site in sites if site.key.pair in arm.pairs))

    have = {site.key.pair for site in sites} | ({"lora"} if spec.model.source == "lora" else set())
    for i, arm in enumerate(spec.arms):
        if arm.kind == "none":
            continue
        # the usual pairs go without the one that a model lacks; what was asked for beside them has to be there
        if not have & set(arm.pairs) or set(arm.pairs) - have - set(DEFAULT_PAIRS):
            about = [r for r in found.refusals if any(f".{pair}" in r.what for pair in arm.pairs)] or found.refusals
            why = "; ".join(f"{r.what}: {r.reason}" for r in about[:3])
            raise SpecError(
                f"arms[{i}].pairs",
                list(arm.pairs),
                f"a pair this model has ({', '.join(sorted(have)) or 'it has none'}). {why}".strip(),
            )
        if arm.kind == "rates":
            _check_one_rate(i, found.only(lambda site: site.key.pair in arm.pairs), checkpoint)
        chosen = method(arm.method)
        mixed = [s for s in sites if s.key.pair in arm.pairs and chosen.changes_basis_of(s.key.pair)]
        for site in mixed:
            if wrong := chosen.why_not(site):
                raise SpecError(f"arms[{i}].method", arm.method, f"{Arm.method} for this model. {site.name}: {wrong}")
        check_basis(checkpoint, mixed, chosen)
    if not have:
        raise NothingToRescale("model: it has no pair that can be rescaled.")
    refuse_coinciding(spec, cells)


def _check_one_rate(i: int, sites: Sites, checkpoint) -> None:
    """Raises SpecError where a tensor holds several sides, or more than its side: it has one learning rate."""
    from wisca_core.training.rates import in_part

    shapes = {tensor.name: tensor.shape for tensor in checkpoint.tensors}
    shared = shares_a_rate(sites.sites) or next(iter(in_part(sites, shapes).values()), "")
    if shared:
        raise SpecError(f"arms[{i}].kind", "rates", f"balance for this model: {shared}")


def shares_a_rate(sites: Sequence[Site]) -> str:
    """Why arms of learning rates alone cannot be trained, "" where they can: a tensor that holds several sides."""
    held: dict[str, set[tuple[str, str]]] = {}
    for site in sites:
        for leg in site.legs:
            held.setdefault(leg.tensor, set()).add((site.key.pair, leg.side))
    shared = next((tensor for tensor, sides in held.items() if len(sides) > 1), "")
    return f"{shared} holds {len(held[shared])} sides of its pairs, and a tensor has one rate" if shared else ""


def _check_looks_back(config) -> None:
    """Raises UnknownArchitecture where a later token changes an earlier prediction: predicting it would be copying
    it.
    """
    import torch

    from wisca_core.comparison.models import language_model_class
    from wisca_core.equivalence.miniature import quiet
    from wisca_core.equivalence.model_config import config_object
    from wisca_core.equivalence.small_config import shrink

    with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        small = config_object(shrink(config))
        model = language_model_class(small)._from_config(small, attn_implementation="eager", dtype=torch.float32).eval()
        a = torch.randint(3, small.vocab_size, (1, 8))
        b = a.clone()
        b[0, -1] = 3 + (a[0, -1] - 2) % (small.vocab_size - 3)
        one, other = (model(input_ids=ids, use_cache=False).logits[0, :-1] for ids in (a, b))
    if not torch.allclose(one, other, atol=1e-5):
        raise UnknownArchitecture(
            f'model: with this config.json "{config.get("model_type")}" sees later tokens (an encoder), so it cannot '
            "be trained "
            "to predict the next one."
        )
