"""The state of more optimisers carried over: with powers of two a rescale and the rates that amount to it are one
training bit for bit, whatever the optimiser keeps.
"""

import pytest
import torch
from transformers import AutoModelForCausalLM

from wisca_core.errors import BadOption
from wisca_core.training import rescale_
from wisca_core.training.choices import Choices
from wisca_core.training.rates import Rates
from wisca_core.training.rescaling import Rescaler

LLAMA = dict(model_type="llama", num_key_value_heads=2, attention_bias=True)


@pytest.fixture
def make(small_model):
    def make(dtype=torch.float32, **changes):
        return AutoModelForCausalLM.from_pretrained(small_model(**(LLAMA | changes)), dtype=dtype).eval()

    return make


def step(model, optimizer, seed: int) -> None:
    ids = torch.randint(5, 60, (3, 11), generator=torch.Generator().manual_seed(seed))
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def of_bitsandbytes(name: str, **more):
    def build(parameters):
        import bitsandbytes

        return getattr(bitsandbytes.optim, name)(parameters, lr=1e-3, weight_decay=0.0, **more)

    return build


def lion(parameters):
    import pytorch_optimizer

    return pytorch_optimizer.Lion(parameters, lr=1e-3, weight_decay=0.01)


class Subclass(torch.optim.AdamW):
    """Keeps what its parent keeps."""


class Unknown(torch.optim.Optimizer):
    """A user's own, for which the user gives the rule."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1e-3, "weight_decay": 0.0, "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    mean = state.setdefault("mean", torch.zeros_like(p)).mul_(0.9).add_(p.grad)
                    squares = state.setdefault("squares", torch.zeros_like(p)).mul_(0.9).addcmul_(p.grad, p.grad)
                    p.addcdiv_(mean, squares.sqrt().add_(group["eps"]), value=-group["lr"])


KINDS = {
    "Lion": lion,
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "RMSprop, centred, with momentum": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3, weight_decay=0.125, decoupled_weight_decay=True),
    "Adamax": lambda p: torch.optim.Adamax(p, lr=1e-3),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-3, initial_accumulator_value=0.25),
    "a subclass of AdamW": lambda p: Subclass(p, lr=1e-3),
    "bitsandbytes, 32 bit": of_bitsandbytes("AdamW32bit"),
    "bitsandbytes, 8 bit": of_bitsandbytes("AdamW8bit", min_8bit_size=16),
    "bitsandbytes, Lion 8 bit": of_bitsandbytes("Lion8bit", min_8bit_size=16),
    "a rule of the user's": Unknown,
}
OWN = {Unknown: {"mean": -1, "squares": -2}}


@pytest.mark.parametrize("kind", KINDS)
def test_its_state_is_carried_over(make, kind):
    models = [make(), make()]
    optimizers = [KINDS[kind](m.parameters()) for m in models]
    for seed in range(2):
        for model, optimizer in zip(models, optimizers):
            step(model, optimizer, seed)
    choices = Choices(exact=True, optimizer_rules=OWN if kind == "a rule of the user's" else {})
    by_weights = Rescaler(models[0], optimizers[0], choices)
    done = by_weights.rescale_()
    rates = Rates(models[1], optimizers[1], choices)
    rates.renew()
    assert rates.factors.by_site.items() >= done.factors.by_site.items() and done.factors.sites
    for seed in range(2, 5):
        for model, optimizer in zip(models, optimizers):
            step(model, optimizer, seed)
    by_weights.rescale_(plan=done.factors.undone())
    apart = [n for (n, p), q in zip(models[0].named_parameters(), models[1].parameters()) if not torch.equal(p, q)]
    assert not apart
    if "8 bit" in kind:
        assert optimizers[0].state[next(models[0].parameters())]["state1"].dtype == torch.uint8


def test_eight_bit_blocks_that_lie_in_several_cells_are_refused_and_nothing_changes(make):
    model = make()
    optimizer = KINDS["bitsandbytes, 8 bit"](model.parameters())
    step(model, optimizer, 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(BadOption, match=r"8-bit state of .* one scale for 256 values.*granularity='tensor'"):
        rescale_(model, optimizer, granularity="channel")
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_eight_bit_blocks_of_whole_rows_take_the_factor_of_their_row(make):
    from wisca_core.training.optimizer_state import States

    weight = torch.nn.Parameter(torch.randn(3, 512))
    optimizer = KINDS["bitsandbytes, 8 bit"]([weight])
    weight.grad = torch.randn(3, 512)
    optimizer.step()
    plan = States.of(optimizer, "transport").plan(weight, "w", uniform=False, axes=(0,))
    shapes = {(tuple(t.shape), power) for t, power in plan if t is not weight.grad}
    assert shapes == {((3, 2), -1), ((3, 2), -2)}
    view = next(t for t, power in plan if power == -1 and t is not weight.grad)
    assert view.data_ptr() == optimizer.state[weight]["absmax1"].data_ptr()


@pytest.mark.parametrize("kind", ["RAdam", "GaLore", "Unknown"])
def test_those_without_a_rule_are_refused_with_the_reason_and_the_ways_out(make, kind):
    import pytorch_optimizer

    model = make()
    build, words = {
        "RAdam": (lambda p: torch.optim.RAdam(p), "first steps follow the size of the gradient"),
        "GaLore": (lambda p: pytorch_optimizer.GaLore(p), "its momentum lies in a subspace"),
        "Unknown": (Unknown, "no rule for the state of .*Unknown.*optimizer_rules={Unknown: "),
    }[kind]
    with pytest.raises(BadOption, match=rf"{words}.*optimizer_state='leave'.*by='rates'"):
        rescale_(model, build(model.parameters()))


def test_a_subclass_that_keeps_more_is_refused(make):
    class More(torch.optim.AdamW):
        def step(self, closure=None):
            super().step(closure)
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["largest"] = p.detach().abs()

    model = make()
    optimizer = More(model.parameters())
    step(model, optimizer, 0)
    with pytest.raises(BadOption, match="More keeps 'largest' for .*, which has no rule"):
        rescale_(model, optimizer)


@pytest.mark.parametrize("rules", [{"exp_avg": -1}, {Unknown: {"mean": 0.5}}, [("mean", -1)], {3: {"mean": -1}}])
def test_rules_that_are_none_are_named(make, rules):
    with pytest.raises(BadOption, match="optimizer_rules: .* was given; needed is a class"):
        rescale_(make(), optimizer_rules=rules)
