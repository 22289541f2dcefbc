"""The outputs before and after a live rescale: what no proof saw is taken back to the bit, and nothing else is
touched.
"""

import random

import numpy as np
import pytest
import torch
from declared_models import GPT, MODELS, VOCABULARY, Llama

import wisca_core as wisca
from wisca_core.errors import BadOption, ProofFailed
from wisca_core.training import self_check, telemetry
from wisca_core.training.self_check import LIMIT, FromLoader

LLAMA = MODELS["Llama"][1]


def made(make=Llama, **sizes):
    torch.manual_seed(0)
    return make(**sizes)


def bits(model, optimizer):
    kept = {f"{i}.{key}": v for i, one in enumerate(optimizer.state.values()) for key, v in one.items()}
    return {name: value.clone() for name, value in {**dict(model.named_parameters()), **kept}.items()}


def different(one, other):
    return {name for name in one if not torch.equal(one[name], other[name])}


def trained(model):
    """One step of AdamW behind it, so that there is a state to carry."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    out = model(torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1)))
    (out[0] if isinstance(out, tuple) else out).square().mean().backward()
    optimizer.step()
    return optimizer


def test_what_the_proof_did_not_see_is_taken_back_to_the_bit_and_refused_by_name():
    """``build`` makes the plain class; the live one clamps its keys."""
    model = made()
    optimizer = trained(model)
    for layer in model.layers.values():
        layer.attention.wk.register_forward_hook(lambda module, args, out: out.clamp(-0.2, 0.2))
    before = bits(model, optimizer)
    with pytest.warns(RuntimeWarning, match="taken back to the bit and left alone from now on: decoder.self.qk"):
        done = wisca.rescale_(model, optimizer, sites=LLAMA, build=made)
    assert {name.split(".")[-1] for name, _ in done.factors.sites} == {"vo"}
    assert {r.what for r in done.refusals} == {"decoder.0.self.qk", "decoder.1.self.qk"}
    assert "the same weights rounded at random move them by" in done.refusals[0].reason
    changed = different(before, bits(model, optimizer))
    names = [name for name, _ in model.named_parameters()]
    of = {names[int(one.split(".")[0])] if one[0].isdigit() else one for one in changed}
    assert {name.split(".")[-2] for name in of} == {"wv", "wo"}
    with pytest.raises(ProofFailed, match="changed the function and was taken back to the bit. decoder.self.qk"):
        wisca.rescale_(model, optimizer, sites=LLAMA, build=made, pairs=("qk",))
    assert different(before, bits(model, optimizer)) == changed
    scaler = wisca.Scaler(model, optimizer, every=1, sites=LLAMA, build=made, check="never")
    assert different(before, bits(model, optimizer)) > changed and scaler.kept  # nothing looks, so nothing is seen


def test_a_refused_pair_is_left_alone_for_the_rest_of_the_run(tmp_path):
    model = made()
    optimizer = trained(model)
    model.layers["0"].attention.wq.register_forward_hook(lambda module, args, out: out.clamp(-0.1, 0.1))
    with pytest.warns(RuntimeWarning, match="left alone from now on"):
        scaler = wisca.Scaler(model, optimizer, every=1, sites=LLAMA, build=made, output=tmp_path)
    before = model.layers["1"].attention.wq.weight.clone()
    scaler.rescale_(1)
    rows = telemetry.read(tmp_path / "wisca.jsonl")
    assert all(not name.endswith("qk") for row in rows for name in row["factors"])
    assert torch.equal(before, model.layers["1"].attention.wq.weight)
    assert "check" in rows[0] and "check" not in rows[1]


def test_factors_that_were_given_are_done_whole_or_not_at_all():
    model = made()
    factors = wisca.rescale_(made(), sites=LLAMA).factors
    model.layers["0"].attention.wq.register_forward_hook(lambda module, args, out: out.clamp(-0.1, 0.1))
    optimizer = trained(model)
    before = bits(model, optimizer)
    with pytest.raises(ProofFailed, match="decoder.self.qk"):
        wisca.rescale_(model, optimizer, sites=LLAMA, build=made, plan=factors)
    assert not different(before, bits(model, optimizer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_right_rescales_stay_far_below_the_limit(dtype):
    for name, (make, sites, forward) in MODELS.items():
        torch.manual_seed(0)
        model = make().to(dtype)
        torch.set_default_dtype(dtype)
        try:
            done = wisca.rescale_(model, sites=sites, forward=forward, check="always")
        finally:
            torch.set_default_dtype(torch.float32)
        assert done.check.moved <= 0.5 * LIMIT * done.check.control and done.check.control > 0, name


def test_under_autocast_the_control_is_rounded_to_what_is_computed_in():
    class Mixed(Llama):
        def forward(self, tokens):
            with torch.autocast("cpu", torch.bfloat16):
                return super().forward(tokens).float()

    done = wisca.rescale_(made(Mixed), sites=LLAMA)
    assert 1e-4 < done.check.control < 0.1 and done.check.moved < 0.3 * LIMIT * done.check.control


def test_nothing_of_the_model_or_of_the_random_numbers_is_disturbed():
    class Counting(GPT):
        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, idx, targets=None):
            self.seen += 1
            self.lm_head.weight.data.add_(0)
            return super().forward(idx, targets)

    model = made(Counting).train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    optimizer = trained(model)
    random.seed(4), np.random.seed(4), torch.manual_seed(4)
    done = wisca.rescale_(model, optimizer, sites=MODELS["nanoGPT"][1], check="always")
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(4), np.random.seed(4), torch.manual_seed(4)
    assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())
    assert modes == [module.training for module in model.modules()]
    assert model.seen.item() == 1 and torch.is_grad_enabled() and not done.check.not_checked
    assert not any(module._forward_hooks for module in model.modules())


def test_a_run_with_checks_is_the_run_without_them_bit_for_bit():
    ends = []
    for check in ("never", "once", "always"):
        model = made(GPT).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        torch.manual_seed(1)
        scaler = wisca.Scaler(model, optimizer, every=2, sites=MODELS["nanoGPT"][1], check=check)
        for _ in range(4):  # with dropout: the random numbers go on as without a check
            model(torch.randint(VOCABULARY, (2, 9)), torch.randint(VOCABULARY, (2, 9)))[1].backward()
            optimizer.step()
            scaler.step()
            optimizer.zero_grad()
        ends.append(bits(model, optimizer))
    assert not different(ends[0], ends[1]) and not different(ends[0], ends[2])


def test_the_batch_is_the_given_one_the_trainers_or_made_up():
    class Calls(GPT):
        calls = []

        def forward(self, idx, targets=None):
            self.calls.append((tuple(idx.shape), targets is not None))
            return super().forward(idx, targets)

    sites = MODELS["nanoGPT"][1]
    tokens = torch.randint(VOCABULARY, (5, 11))
    for batch in ((tokens, tokens), {"idx": tokens, "targets": tokens}, lambda: [tokens, tokens]):
        Calls.calls.clear()
        done = wisca.rescale_(made(Calls), sites=sites, batch=batch)
        assert Calls.calls[-3:] == [((5, 11), True)] * 3 and done.check.inputs == "the batch that was given"
    done = wisca.rescale_(made(Calls), sites=sites, batch=tokens, forward=lambda model, given: model(given[:, :3]))
    assert Calls.calls[-1] == ((5, 3), False)
    done = wisca.rescale_(made(Calls), sites=sites)
    assert Calls.calls[-1] == ((2, 16), False) and done.check.inputs == "made-up ids"
    model = made(Calls)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(
        BadOption, match="Calls cannot be called with what was given .*unexpected keyword.*model is unchanged"
    ):
        wisca.rescale_(model, sites=sites, batch={"ids": tokens})
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(tokens, tokens), 4, shuffle=True)
    assert FromLoader(loader)()[0].shape == (2, 11)
    wisca.Scaler(made(Calls), sites=sites, loader=loader, every=None)
    assert Calls.calls[-1] == ((2, 11), True)


def test_where_it_cannot_look_it_says_so(tmp_path, monkeypatch):
    sites = MODELS["nanoGPT"][1]
    model = made()
    monkeypatch.setattr(self_check, "_ways", lambda *given: iter(()))
    wisca.Scaler(model, sites=LLAMA, every=None, output=tmp_path)
    assert telemetry.read(tmp_path / "wisca.jsonl")[0]["check"] == {
        "not_checked": "nothing is known that it could be called with; give batch="
    }
    monkeypatch.undo()
    monkeypatch.setattr(self_check, "memory_free", lambda: 10)
    done = wisca.rescale_(made(GPT), sites=sites)
    assert "a copy to go back to needs" in done.check.not_checked and "10 B are free" in done.check.not_checked
    with pytest.raises(BadOption, match="check: 'sometimes' was given; choose from once, always, never"):
        wisca.rescale_(model, sites=LLAMA, check="sometimes")


def test_known_classes_are_looked_at_too(tiny_llama, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path / "tiny", 2), dtype=torch.float32)
    done = wisca.rescale_(model)
    assert done.check.inputs == "made-up inputs" and 0 < done.check.moved < LIMIT * done.check.control
    # a hook between the layers, outside of every pair's modules, that own_code does not look at
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny", dtype=torch.float32)
    weights = {name: p.clone() for name, p in model.named_parameters()}
    norm = model.model.layers[0].self_attn.v_proj.weight

    def peeking(module, args, out):
        return out * norm.abs().mean() * 50

    model.model.layers[1].register_forward_hook(lambda module, args, out: peeking(module, args, out))
    with pytest.warns(RuntimeWarning, match="decoder.self.vo"):
        done = wisca.rescale_(model)
    assert {name.split(".")[-1] for name, _ in done.factors.sites} == {"qk"}
    assert torch.equal(weights["model.layers.0.self_attn.v_proj.weight"], norm)
