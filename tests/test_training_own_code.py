"""Somebody's own code among the modules of a pair is refused by name; what trainers and libraries put there is not."""

import copy
import math

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, AutoModelForCausalLM
from transformers.models.llama import modeling_llama

from wisca_core.equivalence.float64 import in_float64
from wisca_core.errors import NothingToRescale
from wisca_core.training import rescale_

LLAMA = dict(model_type="llama", num_key_value_heads=8, attention_bias=True)


@pytest.fixture
def make(small_model):
    def make(dtype=torch.float64):
        return AutoModelForCausalLM.from_pretrained(small_model(**LLAMA), dtype=dtype).eval()

    return make


def ids() -> torch.Tensor:
    return torch.randint(5, 60, (3, 11), generator=torch.Generator().manual_seed(0))


def logits(model) -> torch.Tensor:
    with torch.no_grad(), in_float64():
        return model(input_ids=ids(), use_cache=False).logits


def relative(a, b) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


# --- refused ----------------------------------------------------------------------------------------------------------


def squashing(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    scores = torch.tanh(query @ key.transpose(2, 3) * scaling / math.pi) * math.pi
    return (scores.softmax(-1) @ value.clamp(-1, 1)).transpose(1, 2).contiguous(), None


class Clamped(nn.Linear):
    def forward(self, x):
        return super().forward(x).clamp(-0.05, 0.05)


def own_forward(self, hidden_states, **kwargs):
    return modeling_llama.LlamaAttention.forward(self, hidden_states, **kwargs)


def clamp_output(module, args, output):
    return output.clamp(-0.05, 0.05)


def clamp_input(module, args):
    return (args[0].clamp(-0.05, 0.05),)


def an_attention_function(model, monkeypatch):
    AttentionInterface.register("squashing", squashing)
    model.set_attn_implementation("squashing")


def a_linear_class(model, monkeypatch):
    for layer in model.model.layers:
        layer.self_attn.q_proj.__class__ = Clamped


def a_forward_of_the_instance(model, monkeypatch):
    for layer in model.model.layers:
        layer.self_attn.forward = own_forward.__get__(layer.self_attn)


def a_forward_of_the_class(model, monkeypatch):
    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", own_forward)


def a_function_it_calls(model, monkeypatch):
    def turned(q, k, cos, sin, *args, **kwargs):
        return q.clamp(-1, 1), k

    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", turned)


def a_hook(model, monkeypatch):
    for layer in model.model.layers:
        for projection in (layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.register_forward_hook(clamp_output)


def a_hook_before(model, monkeypatch):
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(clamp_input)
        layer.self_attn.q_proj.register_forward_pre_hook(clamp_input)


def a_hook_everywhere(model, monkeypatch):
    def clamp(module, args, output):
        return output.clamp(-0.05, 0.05) if isinstance(module, nn.Linear) else None

    monkeypatch.setattr(nn.modules.module, "_global_forward_hooks", {0: clamp})


def a_parametrization(model, monkeypatch):
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            nn.utils.parametrizations.weight_norm(getattr(layer.self_attn, name))


OWN = {
    an_attention_function: "attn_implementation='squashing' is .*squashing, an attention function that transformers "
    "does not",
    a_linear_class: r"self_attn\.q_proj is a .*Clamped, not transformers' own",
    a_forward_of_the_instance: r"self_attn has the forward .*own_forward instead of LlamaAttention's",
    a_forward_of_the_class: r"self_attn has the forward .*own_forward instead of LlamaAttention's",
    a_function_it_calls: "calls .*turned where transformers has apply_rotary_pos_emb",
    a_hook: r"self_attn\.k_proj has the forward hook .*clamp_output",
    a_hook_before: r"self_attn\.q_proj has the forward pre hook .*clamp_input",
    a_parametrization: "",  # its parameters have other names already
}


@pytest.mark.parametrize("put", OWN, ids=lambda put: put.__name__)
def test_own_code_in_a_known_class_is_refused_by_name_and_nothing_changes(make, monkeypatch, put):
    model = make()
    put(model, monkeypatch)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NothingToRescale, match=OWN[put]):
        rescale_(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_the_pairs_it_lies_in_are_refused(make):
    model = make()
    model.model.layers[1].self_attn.q_proj.register_forward_hook(clamp_output)
    done = rescale_(model)
    assert {name for name, _ in done.factors.sites} == {"decoder.0.self.qk", "decoder.0.self.vo"}
    assert {r.what for r in done.refusals} == {"decoder.1.self.qk", "decoder.1.self.vo"}


def prompted(model, config):
    from peft import get_peft_model

    torch.manual_seed(0)
    return get_peft_model(model, config).double().eval()


def test_prefix_tuning_feeds_keys_and_values_from_outside_and_is_refused(make):
    from peft import PrefixTuningConfig

    model = prompted(make(), PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(NothingToRescale, match="prompt encoder .PREFIX_TUNING. feeds keys and values from outside"):
        rescale_(model, frozen="scale")


def test_prompts_that_are_embeddings_follow_like_any_token(make):
    from peft import PromptTuningConfig

    model = prompted(make(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    before = logits(model)
    assert len(rescale_(model, frozen="scale").factors.sites) == 4
    assert relative(logits(model), before) < 1e-12


@pytest.mark.parametrize("kind", ["Vera", "LoHa", "LoKr", "OFT", "FourierFT", "IA3"])
def test_other_adapters_of_peft_on_a_pair_are_refused(make, kind):
    import peft

    options = {"target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    more = {
        "IA3": {"feedforward_modules": []},
        "OFT": {"oft_block_size": 4},
        "FourierFT": {"n_frequency": 8},
        "Vera": {"r": 2},
        "LoHa": {"r": 2},
        "LoKr": {"r": 2},
    }
    model = peft.get_peft_model(make(), getattr(peft, f"{kind}Config")(**options, **more[kind]))
    with pytest.raises(NothingToRescale, match=r"q_proj"):
        rescale_(model, frozen="scale")


# --- left alone -------------------------------------------------------------------------------------------------------


def by_accelerate_in_bfloat16(model):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # one a process, whatever another test has made it
    return Accelerator(cpu=True, mixed_precision="bf16").prepare(model)


def dispatched_by_accelerate(model):
    from accelerate import dispatch_model

    out = dispatch_model(model, {"": "cpu"}, main_device="cpu", force_hooks=True)
    assert any("forward" in vars(m) for m in out.modules())
    return out


def with_hooks_of_accelerate_on_every_module(model):
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    for module in model.modules():
        if not list(module.children()):
            add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"))
            add_hook_to_module(module, AlignDevicesHook(execution_device="cpu"), append=True)
    assert "forward" in vars(model.model.layers[0].self_attn.q_proj)
    return model


def to_be_offloaded_by_accelerate(model):
    from accelerate import cpu_offload_with_hook

    return cpu_offload_with_hook(model, execution_device="cpu")[0]


def compiled(model):
    return torch.compile(model, backend="eager")


def compiled_in_place(model):
    model.compile(backend="eager")
    for layer in model.model.layers:
        layer.self_attn.forward = torch.compile(layer.self_attn.forward, backend="eager")
    return model


def checkpointed(model):
    model.gradient_checkpointing_enable()
    return model.train()


def with_adapters(model):
    import peft

    return peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["q_proj", "o_proj"], modules_to_save=["v_proj"], task_type="CAUSAL_LM")
    ).eval()


@pytest.mark.parametrize(
    "wrap",
    [
        by_accelerate_in_bfloat16,
        dispatched_by_accelerate,
        with_hooks_of_accelerate_on_every_module,
        to_be_offloaded_by_accelerate,
        compiled,
        compiled_in_place,
        checkpointed,
        with_adapters,
    ],
    ids=lambda wrap: wrap.__name__,
)
def test_what_trainers_and_libraries_put_there_is_allowed(make, wrap):
    model = wrap(make())
    before = logits(model)
    assert len(rescale_(model, frozen="scale").factors.sites) == 4
    assert relative(logits(model), before) < (1e-12 if wrap is not by_accelerate_in_bfloat16 else 3e-2)


def test_a_hook_of_accelerates_kind_that_is_somebodys_own_is_refused(make):
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Clamping(ModelHook):
        def post_forward(self, module, output):
            return output.clamp(-0.05, 0.05)

    model = make()
    for layer in model.model.layers:
        add_hook_to_module(layer.self_attn.q_proj, Clamping())
    with pytest.raises(NothingToRescale, match=r"q_proj has the hook .*Clamping"):
        rescale_(model)
