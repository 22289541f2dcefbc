"""A rescale as learning rates: the same training as by weights, to the last digits of float64, and nobody sees a split."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from wisca_core.equivalence.float64 import lifted
from wisca_core.training.choices import Choices
from wisca_core.training.factors import Factors
from wisca_core.training.rates import Rates
from wisca_core.training.rescaling import Rescaler

LLAMA = dict(model_type="llama", num_key_value_heads=2, attention_bias=True)


@pytest.fixture
def make(small_model):
    """make(dtype=..., **config) -> a fresh live model with every parameter random; two query heads a KV head."""

    def make(dtype=torch.float64, **config):
        folder = small_model(**(config or LLAMA))
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()

    return make


def loss_of(model, step: int) -> torch.Tensor:
    ids = torch.randint(5, 60, (3, 11), generator=torch.Generator().manual_seed(step))
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


def relative(a, b) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


OPTIMISERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1, eps=1e-3),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1, eps=1e-3, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1, eps=1e-3, fused=True),
    "AdamW, amsgrad": lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1, eps=1e-3, amsgrad=True),
    "Adam, coupled decay": lambda p: torch.optim.Adam(p, lr=2e-3, weight_decay=0.1, eps=1e-3),
    "SGD, momentum and coupled decay": lambda p: torch.optim.SGD(p, lr=2e-2, momentum=0.9, weight_decay=0.01),
}


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_steps_at_rates_are_steps_of_rescaled_weights(make, kind):
    """Sixty steps (of the variants fifteen), rescaled at every third of them, with biases, a decay, an epsilon that matters, a scheduler and clipping that binds: every
    training loss, and the weights once the factors are taken back, within 1e-12.
    """
    models = [make(), make()]
    optimizers = [OPTIMISERS[kind](m.parameters()) for m in models]
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 80) for o in optimizers]
    by_weights, by_rates = Rescaler(models[0], optimizers[0], Choices()), Rates(models[1], optimizers[1])
    kept = Factors("tensor")
    losses: list[list[float]] = [[], []]
    clipped, n_steps = 0, 60 if kind == "AdamW" else 15
    for step in range(n_steps):
        if step % (n_steps // 3) == 0:
            kept = kept.then(by_weights.rescale_().factors)
            by_rates.renew()
        for i, model in enumerate(models):
            with lifted():
                loss = loss_of(model, step)
                loss.backward()
            losses[i].append(loss.item())
        with lifted():
            norms = [torch.nn.utils.clip_grad_norm_(models[0].parameters(), 1.0), by_rates.clip_grad_norm_(1.0)]
        clipped += bool(norms[0] > 1)
        assert abs(norms[1] / norms[0] - 1) < 1e-11
        for optimizer, scheduler in zip(optimizers, schedulers):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert max(abs(a / b - 1) for a, b in zip(*losses)) < 1e-12
    assert clipped > n_steps / 6 and max(abs(m - 1) for m in by_rates.multipliers.values()) > 0.3
    by_weights.rescale_(plan=kept.undone())
    assert all(relative(p, q) < 1e-11 for p, q in zip(*(m.parameters() for m in models)))


def test_left_to_its_plain_rates_the_training_is_another(make):
    """The bound above means something: without the rates the losses part by far more."""
    losses = []
    for strength in (0.0, 1.0):
        model = make()
        optimizer = OPTIMISERS["AdamW"](model.parameters())
        Rates(model, optimizer, strength=strength).renew()
        for step in range(10):
            with lifted():
                loss = loss_of(model, step)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert abs(losses[0] / losses[1] - 1) > 1e-4


@pytest.mark.parametrize("strength", [-1, 0.5, 1, 1.5])
def test_rates_are_powers_of_the_root_of_the_ratio_and_are_replaced(make, strength):
    model = make()
    rates = Rates(model, OPTIMISERS["AdamW"](model.parameters()), strength=strength)
    attention = model.model.layers[1].self_attn
    for _ in range(2):  # a second renewal of unmoved weights changes nothing: own coordinates
        done = rates.renew()
        m = (attention.q_proj.weight.abs().sum() / attention.k_proj.weight.abs().sum()).item() ** (strength / 2)
        of = done.rates
        for name, expected in (("q_proj", m), ("k_proj", 1 / m)):
            for kind in ("weight", "bias"):
                assert abs(of[f"model.layers.1.self_attn.{name}.{kind}"] / expected - 1) < 1e-12
        n = (attention.o_proj.weight.abs().sum() / attention.v_proj.weight.abs().sum()).item() ** (strength / 2)
        assert abs(of["model.layers.1.self_attn.o_proj.weight"] / n - 1) < 1e-12
        assert abs(of["model.layers.1.self_attn.v_proj.bias"] * n - 1) < 1e-12
    assert not done.factors.sites and len(of) == 14
