"""Rescaling live models in a plain PyTorch loop: the function, the optimiser's state, and everything naive code gets
wrong.
"""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from wisca_core.equivalence.float64 import in_float64
from wisca_core.equivalence.proving import prove
from wisca_core.errors import (
    BadOption,
    NothingToRescale,
    PlanMismatch,
    ProofFailed,
    UnknownArchitecture,
    UnsupportedCheckpoint,
)
from wisca_core.planning.decide import decide
from wisca_core.planning.options import Options
from wisca_core.planning.plan import make_plan
from wisca_core.planning.schedule import Schedule
from wisca_core.rescale import rescaled_rows, scalings
from wisca_core.training import Factors, Scaler, rescale_

LLAMA = dict(model_type="llama", num_key_value_heads=8, attention_bias=True)
FAMILIES = {
    "biases and groups": LLAMA,
    "gains shared by heads": dict(model_type="qwen3", num_key_value_heads=8, head_dim=64),
    "gains stored as gain - 1": dict(model_type="gemma3_text"),
    "gains a channel": dict(model_type="olmo2", num_key_value_heads=8),
    "fused, stored [in, out]": dict(model_type="gpt2"),
    "encoder": dict(model_type="bert"),
    "latent": dict(model_type="minicpm3"),
}


@pytest.fixture
def make(small_model):
    """make(dtype=..., **config) -> a fresh live model in eval mode with every parameter random."""

    def make(dtype=torch.float64, **config):
        config = config or LLAMA
        kind = AutoModelForMaskedLM if config["model_type"] == "bert" else AutoModelForCausalLM
        return kind.from_pretrained(small_model(**config), dtype=dtype, attn_implementation="eager").eval()

    return make


def ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 60, (3, 11), generator=torch.Generator().manual_seed(seed))


def logits(model, x=None) -> torch.Tensor:
    with torch.no_grad(), in_float64():
        return model(
            input_ids=ids() if x is None else x, **({} if model.config.model_type == "bert" else {"use_cache": False})
        ).logits


def loss_of(model, x=None) -> torch.Tensor:
    out = model(input_ids=ids() if x is None else x).logits
    return torch.nn.functional.cross_entropy(
        out[:, :-1].reshape(-1, out.shape[-1]), (ids() if x is None else x)[:, 1:].reshape(-1)
    )


def step(model, optimizer, seed: int = 0) -> None:
    with in_float64():
        loss_of(model, ids(seed)).backward()
    optimizer.step()
    optimizer.zero_grad()


def relative(a, b) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


# --- the function -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_stays_and_the_norms_balance_at_every_granularity(make, family):
    for granularity in ("tensor", "group", "channel"):
        model = make(**FAMILIES[family])
        before = logits(model)
        done = rescale_(model, granularity=granularity)
        assert {site.split(".")[-1].split(":")[0] for site, _ in done.factors.sites} == {"qk", "vo"}
        assert max(abs(f - 1) for _, fs in done.factors.sites for f in fs) > 1e-3
        assert relative(logits(model), before) < 1e-12
        again = rescale_(model, granularity=granularity)
        assert all(abs(f - 1) < 1e-12 for _, fs in again.factors.sites for f in fs)


def test_content_and_rotary_queries_of_one_matrix_are_both_rescaled(make):
    """DeepSeek's q_b and kv_a hold the rows of two pairs; only the same rows in two pairs would be a conflict."""
    model = make(model_type="deepseek_v3", first_k_dense_replace=100)
    before = logits(model)
    done = rescale_(model, granularity="group")
    names = [site for site, _ in done.factors.sites]
    assert {"decoder.0.self.qk", "decoder.0.self.qk:rope", "decoder.0.self.vo"} <= set(names) and not done.refusals
    assert max(abs(f - 1) for _, fs in done.factors.sites for f in fs) > 1e-3
    assert relative(logits(model), before) < 1e-12
    assert all(abs(f - 1) < 1e-12 for _, fs in rescale_(model, granularity="group").factors.sites for f in fs)


@pytest.mark.parametrize(
    "config",
    [LLAMA, dict(model_type="nemotron"), dict(model_type="mixtral")],
    ids=["gated", "ReLU squared", "experts in one tensor"],
)
def test_the_feed_forward_balances_where_it_has_an_exact_pair(make, config):
    model = make(**config)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")  # the grouped kernels take no float64
    before = logits(model)
    for granularity in ("tensor", "channel"):
        done = rescale_(model, pairs=("mlp",), granularity=granularity)
        assert {site.split(".")[3] for site, _ in done.factors.sites} == {"mlp"}
        assert max(abs(f - 1) for _, fs in done.factors.sites for f in fs) > 1e-3
        assert relative(logits(model), before) < 1e-12
    assert all(abs(ratio - 1) < 1e-12 for ratio in rescale_(model, pairs=("mlp",)).ratios.values())


def test_each_pair_may_have_a_granularity_of_its_own(make):
    model = make()
    before = logits(model)
    done = rescale_(model, granularity={"qk": "channel", "vo": "group"})
    assert done.factors.granularity == "qk=channel,vo=group"
    n = {name: len(fs) for name, fs in done.factors.sites}
    heads = model.config.num_key_value_heads
    width = model.config.head_dim
    # rotary pairs are tied: half the channels of every KV head; values: one a KV head
    assert n["decoder.0.self.qk"] == heads * width // 2 and n["decoder.0.self.vo"] == heads
    assert relative(logits(model), before) < 1e-12
    rescale_(model, plan=done.factors.undone())
    assert relative(logits(model), before) < 1e-12
    assert rescale_(model, granularity="vo=tensor").factors.granularity == "tensor"
    for wrong in ({"qv": "channel"}, {"qk": "row"}, "qk=channel,", "qk", 3, {}):
        with pytest.raises(
            BadOption, match="granularity: .* was given; choose from tensor, group, channel, or one a pair"
        ):
            rescale_(model, granularity=wrong)


def test_with_when_only_pairs_further_out_than_that_are_touched(make):
    model = make()
    ratios = rescale_(make()).ratios
    out = {name: max(ratio, 1 / ratio) for name, ratio in ratios.items()}
    middle = sorted(out.values())[1] * 1.0001
    done = rescale_(model, when=middle)
    assert {name for name, _ in done.factors.sites} == {name for name, far in out.items() if far > middle}
    assert 0 < len(done.factors.sites) < 4
    with pytest.raises(BadOption, match="when: 0.5 was given; a ratio from 1"):
        rescale_(model, when=0.5)


def test_one_factor_a_matrix_is_the_root_of_the_ratio_of_the_sums(make):
    model = make()
    attention = model.model.layers[1].self_attn
    q, k = attention.q_proj.weight.detach().clone(), attention.k_proj.weight.detach().clone()
    bias = attention.q_proj.bias.detach().clone()
    rescale_(model, pairs=("qk",))
    s = (k.abs().sum() / q.abs().sum()) ** 0.5
    assert torch.allclose(attention.q_proj.weight, q * s, rtol=1e-14, atol=0)
    assert torch.allclose(attention.k_proj.weight, k / s, rtol=1e-14, atol=0)
    assert torch.allclose(attention.q_proj.bias, bias * s, rtol=1e-14, atol=0)


@pytest.mark.parametrize("norm", ["l2", "max", "rms"])
def test_the_other_norms_balance_too(make, norm):
    model = make()
    assert set(rescale_(model, norm=norm).ratios.values()) != {1.0}
    assert all(abs(ratio - 1) < 1e-12 for ratio in rescale_(model, norm=norm).ratios.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_powers_of_two_leave_every_bit_of_the_output(make, dtype):
    model = make(dtype)
    with torch.no_grad():
        before = model(input_ids=ids()).logits
        done = rescale_(model, exact=True, granularity="group")
        assert len(done.factors.sites) >= 2
        assert torch.equal(model(input_ids=ids()).logits, before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["biases and groups", "gains stored as gain - 1", "fused, stored [in, out]"])
def test_a_live_model_and_its_checkpoint_get_the_same_bits_from_the_same_factors(
    make, look, small_model, family, dtype
):
    opened = look(small_model(dtype=dtype, **FAMILIES[family]))
    decision = decide(opened.patterns, Options(granularity="group"))
    plan = make_plan(decision)
    model = AutoModelForCausalLM.from_pretrained(small_model(dtype=dtype, **FAMILIES[family]), dtype=dtype)
    tensors = {name: p.detach().clone() for name, p in model.named_parameters()}
    by_site = plan.factors.by_site
    expected = scalings(opened.sites, by_site, "group", {name: tuple(t.shape) for name, t in tensors.items()})
    assert len(expected) >= 4
    rescale_(model, plan=plan, granularity="group")
    for name, parameter in model.named_parameters():
        wanted = rescaled_rows(tensors[name], expected[name]) if name in expected else tensors[name]
        assert torch.equal(parameter, wanted), name
    # and left to itself the live model comes to the same factors
    live = AutoModelForCausalLM.from_pretrained(small_model(dtype=dtype, **FAMILIES[family]), dtype=dtype)
    found = rescale_(live, granularity="group").factors.by_site
    assert found.keys() == by_site.keys()
    worst = max(abs(a / b - 1) for name in by_site for a, b in zip(found[name], by_site[name], strict=True))
    assert worst < (1e-13 if dtype == torch.float64 else 1e-6)


# --- optimiser state --------------------------------------------------------------------------------------------------


def factor_of_parameters(before, after) -> dict[str, torch.Tensor]:
    return {name: after[name] / before[name] for name in before}


def snapshot(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_the_next_momentum_sgd_step_is_what_the_change_of_coordinates_says(make, granularity):
    """W' = c W: g' = g / c, so buf' = mu buf / c + g / c and W' moves by lr / c times what the old buffer says."""
    model = make()
    lr, mu = 0.05, 0.9
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=mu)
    for seed in range(3):
        step(model, optimizer, seed)
    twin = copy.deepcopy(model)
    buffers = {name: optimizer.state[p]["momentum_buffer"].clone() for name, p in model.named_parameters()}
    before = snapshot(model)
    rescale_(model, optimizer, granularity=granularity)
    start = snapshot(model)
    c = factor_of_parameters(before, start)
    with in_float64():
        loss_of(twin, ids(7)).backward()
    step(model, optimizer, 7)
    scaled = 0
    for name, old in twin.named_parameters():
        says = start[name] - lr * (mu * buffers[name] + old.grad) / c[name]
        assert relative(dict(model.named_parameters())[name], says) < 1e-12, name
        scaled += bool((c[name] - 1).abs().max() > 0.01)
    assert scaled >= 8


@pytest.mark.parametrize("kind", ["foreach", "for-loop", "fused", "amsgrad", "Adam"])
def test_the_next_adam_step_is_the_one_without_the_rescale(make, kind):
    """m / c over sqrt(v / c^2) is m over sqrt(v): every weight moves by the same amount as its unscaled twin."""
    models = [make(), make()]
    how = {
        "foreach": {"foreach": True},
        "for-loop": {"foreach": False},
        "fused": {"fused": True},
        "amsgrad": {"amsgrad": True},
        "Adam": {},
    }[kind]
    build = torch.optim.Adam if kind == "Adam" else torch.optim.AdamW
    optimizers = [build(m.parameters(), lr=0.01, weight_decay=0.0, eps=1e-40, **how) for m in models]
    for seed in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            step(model, optimizer, seed)
    rescale_(models[0], optimizers[0], granularity="group")
    starts = [snapshot(m) for m in models]
    assert any(not torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    for model, optimizer in zip(models, optimizers, strict=True):
        step(model, optimizer, 9)
    for name in starts[0]:
        moves = [dict(m.named_parameters())[name] - start[name] for m, start in zip(models, starts, strict=True)]
        assert relative(moves[0], moves[1]) < 1e-9, name


def test_leaving_the_state_alone_is_another_trajectory(make):
    moved = []
    for mode in ("transport", "leave"):
        model = make()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        step(model, optimizer)
        q = model.model.layers[0].self_attn.q_proj.weight
        before = optimizer.state[q]["exp_avg_sq"].clone()
        weight = q.detach().clone()
        rescale_(model, optimizer, optimizer_state=mode)
        c = (q / weight).mean()
        expected = before / c**2 if mode == "transport" else before
        assert torch.allclose(optimizer.state[q]["exp_avg_sq"], expected, rtol=1e-12, atol=0)
        step(model, optimizer, 3)
        moved.append(q.detach().clone())
    assert relative(moved[0], moved[1]) > 1e-4


@pytest.mark.parametrize("kind", ["torch", "transformers", "transformers with momentum"])
def test_adafactor_with_parameter_scaling_does_not_notice_a_factor_a_matrix(make, kind):
    """Its steps grow with the weights, so W' = c W stays so for ever."""
    from transformers.optimization import Adafactor

    models = [make(), make()]
    build = {
        "torch": lambda p: torch.optim.Adafactor(p, lr=0.05, weight_decay=0.0),
        "transformers": lambda p: Adafactor(p, lr=0.05, relative_step=False, scale_parameter=True),
        "transformers with momentum": lambda p: Adafactor(
            p, lr=0.05, relative_step=False, scale_parameter=True, beta1=0.9
        ),
    }[kind]
    # matrices alone: a bias of another size would hit the floor of its root mean square
    optimizers = [build([p for p in m.parameters() if p.dim() == 2]) for m in models]
    for model in models:
        for p in model.parameters():
            p.requires_grad_(p.dim() == 2)
    for seed in range(2):
        for model, optimizer in zip(models, optimizers, strict=True):
            step(model, optimizer, seed)
    before = snapshot(models[0])
    rescale_(models[0], optimizers[0], frozen="scale")
    c = factor_of_parameters(before, snapshot(models[0]))
    for seed in range(3, 6):
        for model, optimizer in zip(models, optimizers, strict=True):
            step(model, optimizer, seed)
    for name, p in models[1].named_parameters():
        assert relative(dict(models[0].named_parameters())[name], p.detach() * c[name].mean()) < 1e-9, name


def test_muon_keeps_its_momentum_in_the_new_coordinates(make):
    models = [make(torch.float32), make(torch.float32)]
    optimizers = [
        torch.optim.Muon([p for n, p in m.named_parameters() if p.dim() == 2 and "proj" in n], weight_decay=0.0)
        for m in models
    ]
    for model, optimizer in zip(models, optimizers, strict=True):
        for name, p in model.named_parameters():
            p.requires_grad_(p.dim() == 2 and "proj" in name)
        loss_of(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    rescale_(models[0], optimizers[0], exact=True, frozen="scale")
    starts = [snapshot(m) for m in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        loss_of(model, ids(4)).backward()
        optimizer.step()
    changed = 0
    for name in starts[0]:
        new = [dict(m.named_parameters())[name] - start[name] for m, start in zip(models, starts, strict=True)]
        changed += not torch.equal(starts[0][name], starts[1][name])
        assert torch.allclose(new[0], new[1], rtol=0, atol=2e-6), name  # the orthogonal step does not know its scale
    assert changed >= 4


def test_an_optimiser_without_a_rule_is_refused_by_name_and_nothing_changes(make):
    model = make()
    before = snapshot(model)
    with pytest.raises(BadOption, match=r"Rprop.*AdamW.*optimizer_state='leave'"):
        rescale_(model, torch.optim.Rprop(model.parameters()))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    rescale_(model, torch.optim.Rprop(model.parameters()), optimizer_state="leave")
    assert not torch.equal(
        model.model.layers[0].self_attn.q_proj.weight, before["model.layers.0.self_attn.q_proj.weight"]
    )


def test_adafactors_column_means_are_refused_where_channels_get_factors_of_their_own(make):
    model = make()
    optimizer = torch.optim.Adafactor(model.parameters())
    step(model, optimizer)
    before = snapshot(model)
    with pytest.raises(BadOption, match="granularity='tensor'.*leave"):
        rescale_(model, optimizer, granularity="channel")
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_gradients_of_a_half_done_accumulation_follow(make):
    models = [make(), make()]
    for model in models:
        with in_float64():
            loss_of(model, ids(1)).backward()
    before = snapshot(models[0])
    rescale_(models[0])
    c = factor_of_parameters(before, snapshot(models[0]))
    for model in models:
        with in_float64():
            loss_of(model, ids(2)).backward()
    for name, p in models[0].named_parameters():
        assert relative(p.grad * c[name], dict(models[1].named_parameters())[name].grad) < 1e-11, name


# --- parameters that are not alone ------------------------------------------------------------------------------------


def test_a_layer_used_twice_is_scaled_once(make):
    model = make()
    model.model.layers[1].self_attn = model.model.layers[0].self_attn
    before = logits(model)
    q = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    done = rescale_(model)
    assert [name for name, _ in done.factors.sites] == ["decoder.0.self.qk", "decoder.0.self.vo"]
    assert torch.allclose(model.model.layers[0].self_attn.q_proj.weight, q * done.factors.sites[0][1][0])
    assert relative(logits(model), before) < 1e-12


def test_tensors_shared_in_part_are_refused_by_name(make):
    model = make()
    model.model.layers[1].self_attn.k_proj.weight = model.model.layers[0].self_attn.k_proj.weight
    model.model.layers[0].self_attn.v_proj.weight = model.model.layers[0].self_attn.k_proj.weight
    before = logits(model)
    done = rescale_(model)
    assert [name for name, _ in done.factors.sites] == ["decoder.1.self.vo"]
    reasons = {r.what: r.reason for r in done.refusals}
    assert "shares its storage with model.layers.0.self_attn.v_proj.weight" in reasons["decoder.0.self.qk"]
    assert relative(logits(model), before) < 1e-12


def test_a_pair_with_one_frozen_side_is_refused_or_done_as_configured(make):
    model = make()
    frozen = model.model.layers[0].self_attn.k_proj.weight
    frozen.requires_grad_(False)
    kept = frozen.detach().clone()
    done = rescale_(model)
    assert "decoder.0.self.qk" not in dict(done.factors.sites) and "decoder.0.self.vo" in dict(done.factors.sites)
    assert [r.reason for r in done.refusals if r.what == "decoder.0.self.qk"][0].startswith(
        "model.layers.0.self_attn.k_proj.weight is frozen"
    )
    assert torch.equal(frozen, kept)
    assert "decoder.0.self.qk" in dict(rescale_(model, frozen="scale").factors.sites)
    assert not torch.equal(frozen, kept)


def test_nothing_trained_at_all_is_an_error_that_names_the_way_out(make):
    with pytest.raises(NothingToRescale, match="frozen='scale'"):
        rescale_(make().requires_grad_(False))


def test_averages_of_the_weights_follow(make):
    model = make()
    averaged, shadow = AveragedModel(make()), {f"module.{n}": p.detach().clone() for n, p in make().named_parameters()}
    with torch.no_grad():
        for p in averaged.parameters():
            p.mul_(1.1)
    before = logits(averaged.module)
    weight = model.model.layers[0].self_attn.q_proj.weight
    old = weight.detach().clone()
    rescale_(model, also=[averaged, shadow])
    assert relative(logits(averaged.module), before) < 1e-12
    c = (weight / old).mean()
    assert abs(c - 1) > 0.01
    assert torch.allclose(averaged.module.model.layers[0].self_attn.q_proj.weight, 1.1 * old * c, rtol=1e-13, atol=0)
    assert torch.allclose(shadow["module.model.layers.0.self_attn.q_proj.weight"], old * c, rtol=1e-13, atol=0)
    with pytest.raises(PlanMismatch, match="scaled twice"):
        rescale_(model, also=[model])
    with pytest.raises(PlanMismatch, match=r"the copy has no model\.layers"):
        rescale_(model, also=[{"other": old}])


def test_kept_factors_take_a_checkpoint_back_to_the_other_side(make):
    model = make()
    start = snapshot(model)
    scaler = Scaler(model, every=1, granularity="group")
    scaler.step()
    kept = Factors.from_json(scaler.state_dict()["kept"][0], "kept")
    rescale_(model, plan=kept.undone(), granularity="group")
    assert all(relative(p, start[n]) < 1e-14 for n, p in model.named_parameters())


# --- the loops people have --------------------------------------------------------------------------------------------


def test_compiled_and_checkpointed_models_see_the_edit_without_compiling_again(make):
    compiled_graphs = []

    def backend(graph, inputs):
        compiled_graphs.append(graph)
        return graph.forward

    model = make(torch.float32).train()
    model.gradient_checkpointing_enable()
    compiled = torch.compile(model, backend=backend)
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=1e-3)
    x = ids()
    for _ in range(2):
        loss_of(compiled, x).backward()
        optimizer.step()
        optimizer.zero_grad()
    n, before = len(compiled_graphs), loss_of(compiled, x)
    done = rescale_(compiled, optimizer)
    assert len(done.factors.sites) == 4 and n > 0
    after = loss_of(compiled, x)
    after.backward()
    optimizer.step()
    assert len(compiled_graphs) == n
    assert abs(after.item() / before.item() - 1) < 1e-5


def test_under_autocast_with_a_gradient_scaler_only_real_steps_are_counted(make):
    model = make(torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    amp = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaler = Scaler(model, optimizer, every=2, at_start=False)
    done = []
    for i in range(5):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(model, ids(i))
        amp.scale(loss).backward()
        if i == 1:
            model.lm_head.weight.grad[0, 0] = torch.inf
        amp.step(optimizer)
        amp.update()
        done.append(scaler.step() is not None)
        optimizer.zero_grad()
    assert done == [False, False, True, False, True]  # step 1 was skipped
    assert scaler.steps == 4


def test_a_fused_optimisers_skipped_step_is_not_counted_either(make):
    model = make(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    scaler = Scaler(model, optimizer, every=100, at_start=False)
    for found in (0.0, 1.0, 0.0):
        loss_of(model).backward()
        optimizer.found_inf = torch.tensor(found)
        optimizer.step()
        scaler.step()
    assert scaler.steps == 2


def test_calls_between_optimiser_steps_do_not_count(make):
    model = make(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scaler = Scaler(model, optimizer, every=2, at_start=False)
    for i in range(8):
        loss_of(model, ids(i)).backward()
        if i % 2:
            optimizer.step()
            optimizer.zero_grad()
        scaler.step()
    assert scaler.steps == 4


def test_a_wrapped_optimiser_is_looked_through(make):
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    plain = make()
    model, optimizer = accelerator.prepare(plain, torch.optim.AdamW(plain.parameters(), lr=0.01))
    with in_float64():
        accelerator.backward(loss_of(model))
    optimizer.step()
    q = plain.model.layers[0].self_attn.q_proj.weight
    m, old = optimizer.optimizer.state[q]["exp_avg"].clone(), q.detach().clone()
    rescale_(model, optimizer)
    assert torch.allclose(optimizer.optimizer.state[q]["exp_avg"], m / (q / old).mean(), rtol=1e-12, atol=0)


# --- schedule ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, due",
    [
        ({}, [0, 250, 500, 750, 1000]),
        ({"at_start": False}, [250, 500, 750, 1000]),
        ({"every": None}, [0]),
        ({"every": 100, "start": 300, "stop": 500}, [300, 400, 500]),
        ({"every": 100, "start": 0.3, "stop": 0.5}, [300, 400, 500]),
    ],
)
def test_steps_at_which_a_rescale_is_due(options, due):
    assert [step for step in range(1001) if Schedule(**options).of_run(1000).due(step)] == due


@pytest.mark.parametrize(
    "options",
    [
        {"every": 0},
        {"every": -1},
        {"every": 2.5},
        {"every": True},
        {"start": -1},
        {"start": 9, "stop": 3},
        {"start": 1.5},
        {"start": 0.5, "stop": 0.25},
        {"every": None, "at_start": False},
        {"every": None, "start": 5},
    ],
)
def test_schedules_that_cannot_be_are_refused(options):
    with pytest.raises(BadOption):
        Schedule(**options)


def test_a_fraction_of_a_run_of_unknown_length_is_refused(make):
    with pytest.raises(BadOption, match="start: a fraction of the run was given, and how long the run is is not known"):
        Scaler(make(), start=0.5)


def test_the_scaler_rescales_at_the_start_and_then_as_scheduled(make):
    model = make(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen = []
    scaler = Scaler(model, optimizer, every=3, on_rescale=lambda step, done: seen.append(step))
    for i in range(7):
        loss_of(model, ids(i)).backward()
        optimizer.step()
        optimizer.zero_grad()
        scaler.step()
    assert seen == [0, 3, 6]


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"pairs": ("qk", "kv")}, "pairs: kv was given; choose from qk, vo, mlp, lora"),
        ({"pairs": "qk,kv"}, "pairs: kv was given; choose from qk, vo, mlp, lora"),
        ({"pairs": ("qk", 3)}, "names such as"),
        ({"pairs": ()}, "pairs: nothing"),
        ({"granularity": "row"}, "granularity"),
        ({"norm": "l3"}, "norm"),
        ({"strength": 2}, "strength"),
        ({"optimizer_state": "keep"}, "choose from transport, leave"),
        ({"frozen": "yes"}, "choose from refuse, scale"),
        ({"speed": 3}, "speed"),
    ],
)
def test_options_that_cannot_be_are_named(make, options, words):
    with pytest.raises(BadOption, match=words):
        rescale_(make(), **options)


def test_a_module_that_is_no_transformers_model_is_refused():
    with pytest.raises(UnknownArchitecture, match="Linear holds no transformers model"):
        rescale_(nn.Linear(3, 3))


def test_an_architecture_without_a_rule_is_refused_by_name():
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(UnknownArchitecture, match="mamba: the model has no attention"):
        rescale_(model)


def test_an_attention_of_ones_own_is_refused_because_the_proof_is_not_of_it(make):
    from transformers.models.llama.modeling_llama import LlamaAttention

    class Clipped(LlamaAttention):
        def forward(self, hidden_states, **kwargs):
            return super().forward(hidden_states.clamp(-1, 1), **kwargs)

    model = make()
    for layer in model.model.layers:
        layer.self_attn.__class__ = Clipped
    with pytest.raises(NothingToRescale, match="Clipped, not transformers' own"):
        rescale_(model)


def test_a_rule_that_fails_its_proof_changes_nothing(make, monkeypatch):
    from dataclasses import replace

    from wisca_core.training import live

    monkeypatch.setattr(
        live, "prove", lambda *given: replace(prove(*given), passed=False, reason="the outputs differ by 1e-3.")
    )
    model = make()
    before = snapshot(model)
    with pytest.raises(ProofFailed, match=r"llama: the rule llama did not pass its proof.*1e-3.*unchanged"):
        rescale_(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_tensor_the_rule_does_not_know_is_refused(make):
    model = make()
    model.model.layers[0].self_attn.register_parameter("extra", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    reasons = {r.what: r.reason for r in rescale_(model).refusals}
    assert reasons["decoder.0.self.qk"].startswith("model.layers.0.self_attn.extra is not part of the llama rule")


def test_factors_of_another_model_are_refused(make):
    model = make()
    with pytest.raises(PlanMismatch, match="2 factors for decoder.0.self.qk; this model has 1"):
        rescale_(model, plan=Factors("tensor", (("decoder.0.self.qk", (1.0, 2.0)),)))
    with pytest.raises(PlanMismatch, match="no such pair"):
        rescale_(model, plan=Factors("tensor", (("decoder.9.self.qk", (2.0,)),)))
    with pytest.raises(PlanMismatch, match="positive"):
        rescale_(model, plan=Factors("tensor", (("decoder.0.self.qk", (float("nan"),)),)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("granularity", ["tensor", "group"])
def test_nan_weights_leave_their_pair_alone_are_warned_of_once_and_never_spread(make, tmp_path, value, granularity):
    model = make()
    scaler = Scaler(model, every=1, at_start=False, granularity=granularity, output=tmp_path)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight[3, 2] = value
    q, k = (getattr(model.model.layers[1].self_attn, f"{x}_proj").weight.detach().clone() for x in "qk")
    with pytest.warns(
        RuntimeWarning, match=r"decoder\.1\.self\.qk is left alone: a norm is not finite.*layers\.1\.self_attn\.q_proj"
    ):
        scaler.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        done = scaler.step()
    assert list(done.skipped) == ["decoder.1.self.qk"]
    assert torch.equal(model.model.layers[1].self_attn.k_proj.weight, k)
    assert torch.equal(model.model.layers[1].self_attn.q_proj.weight.isfinite(), q.isfinite())
    assert sum((~p.isfinite()).sum() for p in model.parameters()) == 1
    assert "q_proj.weight holds NaN or infinite values" in (tmp_path / "wisca.jsonl").read_text()


def test_a_side_of_zeros_is_left_alone(make):
    model = make()
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
    done = rescale_(model)
    assert "o_proj.weight is zero" in done.skipped["decoder.0.self.vo"]
    assert all(p.isfinite().all() for p in model.parameters())


def test_float16_values_that_would_overflow_are_left_alone(make):
    model = make(torch.float16)
    attention = model.model.layers[0].self_attn
    with torch.no_grad():
        attention.q_proj.weight.fill_(1e-4)
        attention.q_proj.bias.fill_(3e4)
        attention.k_proj.weight.fill_(10.0)
    done = rescale_(model)
    assert "float16" in done.skipped["decoder.0.self.qk"]
    assert all(p.isfinite().all() for p in model.parameters())


def test_an_optimiser_of_another_copy_is_refused(make):
    with pytest.raises(BadOption, match="is in no parameter group"):
        rescale_(make(), torch.optim.AdamW(make().parameters()))
    with pytest.raises(BadOption, match="a torch optimiser"):
        rescale_(make(), "adamw")


def test_parameters_that_are_not_there_are_refused(make):
    model = make()
    model.to("meta")
    with pytest.raises((NothingToRescale, UnsupportedCheckpoint), match="meta"):
        rescale_(model)


def test_fsdp1_is_refused_by_name(make):
    from torch.distributed.fsdp import FullyShardedDataParallel

    class Wrapped(FullyShardedDataParallel):  # a real one needs an accelerator
        def __init__(self, model):
            nn.Module.__init__(self)
            self.inner = model

        __getattr__ = nn.Module.__getattr__

    with pytest.raises(UnsupportedCheckpoint, match=r"FullyShardedDataParallel \(FSDP1\).*fully_shard"):
        rescale_(Wrapped(make()))
