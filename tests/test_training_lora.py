"""LoRA adapters (peft): rank channels, Gram balance, and adapters on a base that is rescaled."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from wisca_core.equivalence.float64 import in_float64
from wisca_core.errors import BadOption, NothingToRescale
from wisca_core.training import Scaler, rescale_

KINDS = {
    "plain": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "with biases": {"lora_bias": True, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "modules_to_save": {"target_modules": ["k_proj", "v_proj"], "modules_to_save": ["q_proj", "o_proj"]},
}
EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "down_proj"]


@pytest.fixture
def adapted(small_model):
    """adapted(kind, fresh=False, model_type="llama") -> a peft model in float64; everything random unless ``fresh``
    (B = 0).
    """

    def adapted(kind="plain", fresh=False, model_type="llama", **more):
        changes = {"num_key_value_heads": 8, "attention_bias": True} if model_type == "llama" else {}
        base = AutoModelForCausalLM.from_pretrained(
            small_model(model_type, **changes), dtype=torch.float64, attn_implementation="eager"
        )
        options = {"r": 4, "lora_alpha": 6, "target_modules": EVERYWHERE} | KINDS[kind] | more
        model = get_peft_model(base, LoraConfig(**options), autocast_adapter_dtype=False).eval()
        if not fresh:
            randomise(model)
        return model

    return adapted


def randomise(model) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    for module in model.modules():
        if hasattr(module, "_cache_clear"):
            module._cache_clear()


def ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(seed))


def logits(model) -> torch.Tensor:
    with torch.no_grad(), in_float64():
        return model(input_ids=ids(), use_cache=False).logits


def relative(a, b) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("kind", KINDS)
def test_rank_channels_balance_and_the_function_stays(adapted, kind, granularity):
    model = adapted(kind)
    before = logits(model)
    done = rescale_(model, pairs=("lora",), granularity=granularity)
    per_layer = {"modules_to_save": 2, "with biases": 4}.get(kind, 5)
    assert len(done.factors.sites) == 2 * per_layer and done.proof is None
    assert all(len(fs) == (1 if granularity == "tensor" else 4) for _, fs in done.factors.sites)
    assert relative(logits(model), before) < 1e-12
    layer = model.base_model.model.model.layers[0].self_attn.k_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    if granularity == "tensor":
        assert abs(a.abs().sum() / b.abs().sum() - 1) < 1e-12
    else:
        assert torch.allclose(a.abs().sum(1), b.abs().sum(0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["plain", "rsLoRA", "DoRA"])
def test_merging_afterwards_gives_the_weights_it_gives_without(adapted, kind):
    model = adapted(kind)
    twin = copy.deepcopy(model)
    rescale_(model, pairs=("lora",), granularity="channel")
    merged, plain = model.merge_and_unload(), twin.merge_and_unload()
    for name, p in merged.named_parameters():
        assert relative(p, dict(plain.named_parameters())[name]) < 1e-13, name


def test_a_fresh_adapter_is_skipped_until_b_has_moved(adapted):
    model = adapted(fresh=True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    scaler = Scaler(model, optimizer, every=1, pairs=("lora",))  # at the start too
    assert scaler.kept["tensor"].sites == ()
    assert all(p.isfinite().all() for p in model.parameters())
    model(input_ids=ids(), labels=ids()).loss.backward()
    optimizer.step()
    done = scaler.step()
    assert len(done.factors.sites) == 10 and not done.skipped
    again = rescale_(adapted(fresh=True), pairs=("lora",))
    assert len(again.skipped) == 10 and all("lora_B.default.weight is zero" in why for why in again.skipped.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_adapters_follow_a_base_that_is_rescaled(adapted, kind, granularity):
    model = adapted(kind)
    before = logits(model)
    with pytest.warns(RuntimeWarning, match="adapter saved alone then fits only the rescaled base"):
        done = rescale_(model, frozen="scale", granularity=granularity)
    assert len(done.factors.sites) == 4
    assert relative(logits(model), before) < 1e-12
    merged = model.merge_and_unload()
    assert relative(logits(merged), before) < 1e-11
    attention = merged.model.layers[0].self_attn
    assert not torch.equal(
        attention.q_proj.weight, adapted(kind).merge_and_unload().model.layers[0].self_attn.q_proj.weight
    )


def test_a_base_with_fused_projections_takes_its_adapters_along(adapted):
    model = adapted(model_type="gpt2", target_modules=["c_attn", "c_proj"], fan_in_fan_out=True, use_dora=True)
    before = logits(model)
    assert rescale_(model, frozen="scale", granularity="group").factors.sites
    assert relative(logits(model), before) < 1e-12


def test_base_and_rank_channels_in_one_call(adapted):
    model = adapted("DoRA")
    before = logits(model)
    done = rescale_(model, pairs=("qk", "vo", "lora"), frozen="scale", granularity="channel")
    assert len(done.factors.sites) == 14
    assert relative(logits(model), before) < 1e-12


def test_several_adapters_follow_and_only_the_active_one_is_balanced(adapted):
    model = adapted()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj", "o_proj"]))
    model.double()
    randomise(model)
    model.set_adapter("other")
    of_other = logits(model)
    model.set_adapter("default")
    of_default = logits(model)
    done = rescale_(model, pairs=("qk", "vo", "lora"), frozen="scale")
    assert {name.split(".")[0] for name, _ in done.factors.sites} == {"decoder", "default"}
    assert relative(logits(model), of_default) < 1e-12
    model.set_adapter("other")
    assert relative(logits(model), of_other) < 1e-12


def test_the_frozen_base_is_left_alone_unless_asked_for(adapted):
    with pytest.raises(NothingToRescale, match="is frozen.*frozen='scale'"):
        rescale_(adapted())


def test_a_variant_of_lora_without_a_rule_is_refused(adapted):
    from peft.tuners.lora.variants import ALoraLinearVariant

    model = adapted()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.lora_variant["default"] = ALoraLinearVariant()
    reasons = {r.what: r.reason for r in rescale_(model, pairs=("qk", "vo", "lora"), frozen="scale").refusals}
    assert "ALoraLinear is a variant of LoRA without a rule" in reasons["default.0.self_attn_q_proj.lora"]
    assert "ALoraLinear" in reasons["decoder.0.self.qk"]


def test_a_model_without_adapters_has_no_lora_pair(small_model):
    model = AutoModelForCausalLM.from_pretrained(small_model("llama"))
    with pytest.raises(NothingToRescale, match="no LoRA adapters"):
        rescale_(model, pairs=("lora",))


# --- Gram balance -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "DoRA"])
def test_gram_balance_makes_the_two_grams_equal_and_keeps_the_product(adapted, kind):
    model = adapted(kind)
    before = logits(model)
    twin = copy.deepcopy(model)
    done = rescale_(model, pairs=("lora",), method="gram")
    assert not done.skipped and not done.factors.sites
    assert relative(logits(model), before) < 1e-12
    for new, old in zip(model.modules(), twin.modules(), strict=True):
        if hasattr(new, "lora_A") and "default" in new.lora_A:
            a, b = new.lora_A["default"].weight, new.lora_B["default"].weight
            old_a, old_b = old.lora_A["default"].weight, old.lora_B["default"].weight
            assert relative(a @ a.T, b.T @ b) < 1e-12
            assert relative(b @ a, old_b @ old_a) < 1e-13
            assert not torch.equal(a, old_a)
    at_rest = copy.deepcopy(model)
    rescale_(model, pairs=("lora",), method="gram")
    assert all(relative(p, q) < 1e-12 for p, q in zip(model.parameters(), at_rest.parameters(), strict=True))


def test_gram_balance_skips_adapters_of_incomplete_rank(adapted):
    model = adapted(fresh=True)
    done = rescale_(model, pairs=("lora",), method="gram")
    assert len(done.skipped) == 10 and all("full rank" in why for why in done.skipped.values())


def test_gram_balance_carries_momentum_and_refuses_adam(adapted):
    model = adapted()
    trained = [p for p in model.parameters() if p.requires_grad]
    sgd = torch.optim.SGD(trained, lr=0.01, momentum=0.9)
    model(input_ids=ids(), labels=ids()).loss.backward()
    sgd.step()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    # along its own buffer the product moves as before, to first order: B buf_A' and buf_B' A are what they were
    old = [sgd.state[p]["momentum_buffer"].clone() for p in (a, b)]
    x = [a.detach().clone(), b.detach().clone()]
    rescale_(model, sgd, pairs=("lora",), method="gram")
    m = torch.linalg.lstsq(x[1], b).solution  # B' = B M
    assert relative(sgd.state[a]["momentum_buffer"], m.T @ old[0]) < 1e-10
    assert relative(sgd.state[b]["momentum_buffer"], old[1] @ torch.linalg.inv(m).T) < 1e-10
    with pytest.raises(BadOption, match=r"AdamW.*optimizer_state='leave'"):
        rescale_(model, torch.optim.AdamW(trained), pairs=("lora",), method="gram")
    with pytest.raises(BadOption, match="knows no exact"):
        rescale_(model, pairs=("lora",), method="gram", exact=True)


def test_norms_that_dora_keeps_between_calls_are_forgotten(adapted):
    from peft.helpers import DoraCaching

    model = adapted("DoRA")
    with DoraCaching():
        before = logits(model)
        rescale_(model, frozen="scale")
        assert relative(logits(model), before) < 1e-12
