"""The model of a cell and its optimiser, both decided by the spec and the seed alone.

Models are built in float32 and in evaluation mode, which has no dropout: a comparison draws no random numbers while it
trains, so a resumed run is the unbroken one.
"""

import math
import re

import torch
from torch import nn

from wisca_core.checkpoint import Checkpoint, open_checkpoint, parse_config
from wisca_core.checkpoint.folder import MAX_CONFIG_BYTES
from wisca_core.comparison.paper import SETUPS
from wisca_core.comparison.shrunk import shrunk_config, without_dropout
from wisca_core.comparison.spec import LoraSpec, ModelSpec, OptimiserSpec, Spec
from wisca_core.comparison.tokens import DOCUMENT, N_TOKENS, tokenizer_of
from wisca_core.equivalence.loadable import loadable
from wisca_core.equivalence.miniature import load, quiet
from wisca_core.equivalence.model_config import config_object
from wisca_core.errors import BadOption, ConfigMismatch, UnknownArchitecture
from wisca_core.storage import workplace
from wisca_core.untrusted import named_path, read_json_object


@quiet()
def build_model(spec: Spec, seed: int) -> nn.Module:
    """A float32 language model; the same seed gives the same weights (and the same adapters).

    Raises ConfigMismatch, UnknownArchitecture, UnsupportedCheckpoint, BadOption.
    """
    m = spec.model
    if not m.is_trained_before:
        torch.manual_seed(seed)
        return _fresh(model_config(spec))
    model = _pretrained_model(spec)
    if m.source == "lora":
        torch.manual_seed(seed)
        return with_adapters(model, spec.lora).eval()
    return model


def model_config(spec: Spec):
    """The transformers config that the cells of ``spec`` train."""
    from transformers import LlamaConfig

    m: ModelSpec = spec.model
    if m.source == "decoder":
        vocabulary = N_TOKENS if spec.data.tokens == "bytes" else len(tokenizer_of(spec))
        return LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=m.width,
            intermediate_size=m.mlp_width,
            num_hidden_layers=m.n_layers,
            num_attention_heads=m.n_heads,
            num_key_value_heads=m.n_kv_heads,
            head_dim=m.width // m.n_heads,
            max_position_embeddings=spec.data.context,
            initializer_range=m.init_std,
            tie_word_embeddings=True,
            bos_token_id=DOCUMENT if spec.data.tokens == "bytes" else None,
            eos_token_id=DOCUMENT if spec.data.tokens == "bytes" else None,
            pad_token_id=None,
        )
    if m.source == "paper":
        return config_object(SETUPS[m.setup].config)
    config = parse_config(starting_point(m)[0])
    if m.source == "shrunk":
        config = shrunk_config(config, m.width, m.n_layers, N_TOKENS if spec.data.tokens == "bytes" else None)
    return config_object(without_dropout(config))


def starting_point(m: ModelSpec) -> tuple[str, Checkpoint | None]:
    """(text of config.json, the looked-through weights) of the model at ``m.path``, a folder or one weight file beside
    its config.json; None where training starts from scratch, for which a folder with a config.json is enough. Raises
    WiscaError.
    """
    path = named_path(m.path)
    if not m.is_trained_before and path.is_dir():
        return read_json_object(path, "config.json", MAX_CONFIG_BYTES, unique_keys=False)[0], None
    checkpoint = open_checkpoint(m.path)
    checkpoint.check_rescalable()
    return checkpoint.config_json, checkpoint if m.is_trained_before else None


def language_model_class(config):
    """transformers' own causal language model for ``config``. Raises UnknownArchitecture."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnknownArchitecture(
            f'model_type "{config.model_type}" has no causal language model in transformers, so it predicts no next '
            "token; "
            "comparisons train on predicting the next token."
        )
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _fresh(config) -> nn.Module:
    cls = language_model_class(config)
    for kernel in ("sdpa", "eager"):
        try:
            return cls._from_config(config, attn_implementation=kernel, dtype=torch.float32).eval()
        except ValueError as error:  # a class without that kernel says so
            failed = error
    raise ConfigMismatch(
        f"{cls.__name__} cannot be built from this config: {' '.join(str(failed).split())[:300]}"
    ) from failed


def _pretrained_model(spec: Spec) -> nn.Module:
    """The model in the folder or file, its weights as float32."""
    wanted = language_model_class(model_config(spec))
    with workplace(spec.model.path) as place:
        folder = loadable(open_checkpoint(spec.model.path), place / "model")
        model = load(folder, dtype=torch.float32, allow_extra=False)
    model.name_or_path = model.config._name_or_path = spec.model.path  # what peft writes down as the base
    if not isinstance(model, wanted):
        raise ConfigMismatch(
            f"model.path: {spec.model.path} holds a {type(model).__name__}; a {wanted.__name__}, which predicts the "
            "next token, is needed."
        )
    try:
        model.set_attn_implementation("sdpa")
    except (ValueError, AttributeError):
        pass  # eager, as it was loaded
    model.config.use_cache = False
    return model.eval()


def with_adapters(model: nn.Module, lora: LoraSpec) -> nn.Module:
    """The model with LoRA adapters on frozen weights. Raises BadOption where peft is missing or a target is not
    there.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise BadOption(
            'model.source: "lora" was given and peft is not installed. Install it with: pip install peft'
        ) from None
    targets = list(lora.targets) or attention_names(model)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=targets,
        use_rslora=lora.rslora,
        lora_dropout=0.0,
        bias="none",
        init_lora_weights=True if lora.init == "kaiming" else "gaussian",
        task_type="CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise BadOption(f"lora.targets: {', '.join(targets)}: {' '.join(str(error).split())[:300]}") from error


def attention_names(model: nn.Module) -> list[str]:
    """Last names of the linear layers that QK and VO pairs are made of."""
    from wisca_core.training.live import seen_as_checkpoint

    _, found = seen_as_checkpoint(model)
    modules = dict(model.named_modules())
    names = {leg.tensor.rsplit(".", 1)[0] for site in found.sites for leg in site.legs}
    return sorted(
        {
            name.rsplit(".", 1)[-1]
            for name in names
            if isinstance(modules.get(name), nn.Linear) or type(modules.get(name)).__name__ == "Conv1D"
        }
    )


def build_optimisers(model: nn.Module, o: OptimiserSpec, rate: float) -> list[torch.optim.Optimizer]:
    """One, or for muon two: the matrices of the layers, and the rest under AdamW. Frozen parameters are left out."""
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    matrices = {n: p for n, p in trained.items() if p.ndim > 1}
    others = [p for p in trained.values() if p.ndim == 1]

    def adamw(decayed: list, plain: list) -> torch.optim.Optimizer:
        groups = [dict(params=decayed, weight_decay=o.weight_decay), dict(params=plain, weight_decay=0.0)]
        # fused: 4 to 7 % of a small model's step. Not beside muon, which grows its other rounding into digits
        return torch.optim.AdamW(
            [g for g in groups if g["params"]], lr=rate, betas=(0.9, 0.95), eps=o.epsilon, fused=o.name == "adamw"
        )

    if o.name == "adamw":
        return [adamw(list(matrices.values()), others)]
    if o.name == "sgd":
        return [torch.optim.SGD(trained.values(), lr=rate, momentum=o.momentum)]
    inner = {n: p for n, p in matrices.items() if re.search(r"\.\d+\.", n) and p.ndim == 2}
    muon = torch.optim.Muon(inner.values(), lr=rate, momentum=o.momentum, weight_decay=o.weight_decay)
    rest = [p for n, p in matrices.items() if n not in inner]
    return [muon, adamw(rest, others)] if rest or others else [muon]


def learning_rate(o: OptimiserSpec, rate: float, step: int, steps: int) -> float:
    """Of the update that ends at ``step`` (1..steps): a straight warm-up, then constant or a cosine down to a tenth."""
    if step <= o.warmup_steps:
        return rate * step / o.warmup_steps
    if o.schedule == "constant":
        return rate
    part = (step - o.warmup_steps) / max(1, steps - o.warmup_steps)
    return rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * part)))


def loss_nats(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy a token of ``rows`` (n, context + 1), 0-d float32."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())


@torch.no_grad()
def mean_loss(model: nn.Module, rows: torch.Tensor, at_once: int = 16) -> float:
    """``loss_nats`` over many rows, some at a time."""
    was = model.training
    model.eval()
    total = sum(loss_nats(model, part).item() * len(part) for part in rows.split(at_once))
    model.train(was)
    return total / len(rows)
