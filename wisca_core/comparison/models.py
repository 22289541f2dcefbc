"""The model of a cell and its optimiser, both decided by the spec and the seed alone."""

import math

import torch
from torch import nn

from wisca_core.comparison.data import DOCUMENT, N_TOKENS
from wisca_core.comparison.spec import ModelSpec, OptimiserSpec, Spec


def build_model(spec: Spec, seed: int) -> nn.Module:
    """A fresh float32 LlamaForCausalLM; the same seed gives the same weights."""
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(model_config(spec))


def model_config(spec: Spec):
    from transformers import LlamaConfig

    m: ModelSpec = spec.model
    return LlamaConfig(
        vocab_size=N_TOKENS, hidden_size=m.width, intermediate_size=m.mlp_width, num_hidden_layers=m.n_layers,
        num_attention_heads=m.n_heads, num_key_value_heads=m.n_kv_heads, head_dim=m.width // m.n_heads,
        max_position_embeddings=spec.data.context, initializer_range=m.init_std, tie_word_embeddings=True,
        bos_token_id=DOCUMENT, eos_token_id=DOCUMENT, pad_token_id=None,
    )  # fmt: skip


def n_parameters(m: ModelSpec) -> int:
    """Counted, not built: for an estimate of a model that may not fit."""
    head = m.width // m.n_heads
    layer = 2 * m.width * m.n_heads * head + 2 * m.width * m.n_kv_heads * head + 3 * m.width * m.mlp_width + 2 * m.width
    return N_TOKENS * m.width + m.n_layers * layer + m.width


def build_optimisers(model: nn.Module, o: OptimiserSpec, rate: float) -> list[torch.optim.Optimizer]:
    """One, or for muon two: the matrices of the layers, and the rest under AdamW."""
    matrices = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    others = [p for p in model.parameters() if p.ndim == 1]

    def adamw(decayed: list, plain: list) -> torch.optim.Optimizer:
        groups = [dict(params=decayed, weight_decay=o.weight_decay), dict(params=plain, weight_decay=0.0)]
        return torch.optim.AdamW([g for g in groups if g["params"]], lr=rate, betas=(0.9, 0.95), eps=1e-8)

    if o.name == "adamw":
        return [adamw(list(matrices.values()), others)]
    if o.name == "sgd":
        return [torch.optim.SGD(model.parameters(), lr=rate, momentum=o.momentum)]
    inner = {n: p for n, p in matrices.items() if ".layers." in n}
    muon = torch.optim.Muon(inner.values(), lr=rate, momentum=o.momentum, weight_decay=o.weight_decay)
    return [muon, adamw([p for n, p in matrices.items() if n not in inner], others)]


def learning_rate(o: OptimiserSpec, rate: float, step: int, steps: int) -> float:
    """Of the update that ends at ``step`` (1..steps): a straight warm-up, then constant or a cosine down to a tenth."""
    if step <= o.warmup_steps:
        return rate * step / o.warmup_steps
    if o.schedule == "constant":
        return rate
    part = (step - o.warmup_steps) / max(1, steps - o.warmup_steps)
    return rate * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * part)))


def loss_nats(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy a token of ``rows`` (n, context + 1), 0-d float32. A token is a byte."""
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
