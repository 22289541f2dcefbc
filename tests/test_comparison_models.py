"""What a comparison can train: shrunk and whole open models, adapters on them, the paper's set-ups; and what is refused
before the first cell.
"""

import json
import shutil
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_comparison import never, numbers, train_all, work_here

from wisca_core.checkpoint import open_checkpoint
from wisca_core.cli import main
from wisca_core.comparison import cell as cell_module
from wisca_core.comparison import executor, folder, statistics
from wisca_core.comparison import prepare as preparing
from wisca_core.comparison.cell import train
from wisca_core.comparison.data import kept_corpus, load_corpus
from wisca_core.comparison.estimate import estimate, flops_per_step
from wisca_core.comparison.models import build_model, build_optimisers
from wisca_core.comparison.paper import SETUPS
from wisca_core.comparison.prepare import prepare
from wisca_core.comparison.presets import ARMS, LORA_ARMS, PRESETS, with_model
from wisca_core.comparison.report import unit
from wisca_core.comparison.shrunk import shrunk_config
from wisca_core.comparison.spec import Arm, DataSpec, LoraSpec, ModelSpec, OptimiserSpec, PilotSpec, Spec
from wisca_core.comparison.spec_checks import check_spec
from wisca_core.comparison.spec_reading import spec_from
from wisca_core.errors import HubError, PlanMismatch, SpecError, UnknownArchitecture, UnreadableInput

SAMPLE = Path(__file__).parents[1] / "sample_runs" / "gqa-docs" / "checkpoint-3600"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A byte-level Llama of 2 layers, 4 query heads on 2 KV heads, every parameter random, stored in bf16 as real ones
    are.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    from wisca_core.equivalence.miniature import randomise_

    place = tmp_path_factory.mktemp("base")
    config = LlamaConfig(
        vocab_size=258,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        attention_bias=True,
        bos_token_id=256,
        eos_token_id=256,
        pad_token_id=257,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        randomise_(model, 4)
    model.bfloat16().save_pretrained(place)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(SAMPLE / name, place / name)
    return place


@pytest.fixture
def lora(base, text):
    """lora(**changes) -> a spec of adapters on ``base`` whose cells take a second."""

    def lora(**changes) -> Spec:
        given = dict(
            name="small",
            model=ModelSpec(source="lora", path=str(base)),
            data=DataSpec("text", str(text), context=16, validation_windows=4, tokens="tokenizer"),
            steps=12,
            seeds=(1, 2),
            batch_size=2,
            arms=tuple(replace(LORA_ARMS[a], every=LORA_ARMS[a].every and 3) for a in LORA_ARMS),
            optimiser=OptimiserSpec(learning_rates=(0.01,), warmup_steps=2, weight_decay=0.0),
            evaluate_every=4,
            log_every=2,
            save_weights=False,
            lora=LoraSpec(r=4, alpha=8.0),
        )
        return check_spec(Spec(**{**given, **changes}))

    return lora


@pytest.mark.parametrize("name", ["late.safetensors", "late.bin"])
def test_training_goes_on_from_the_file_that_was_named(name, base, lora, tmp_path):
    both = shutil.copytree(base, tmp_path / "both")
    late = {key: tensor + 1 for key, tensor in load_file(both / "model.safetensors").items()}
    torch.save(late, both / name) if name.endswith(".bin") else save_file(late, both / name)
    assert open_checkpoint(both / name).place == both / name and open_checkpoint(both).place == both
    spec = lora(
        model=ModelSpec(source="whole", weights="continued", path=str(both / name)),
        arms=(ARMS["baseline"], ARMS["wisca"]),
    )
    held = build_model(spec, 1).state_dict()
    assert all(torch.equal(held[key], tensor.float()) for key, tensor in late.items())
    assert preparing.model_sha256(spec) != preparing.model_sha256(lora(model=ModelSpec(source="lora", path=str(both))))


def test_a_config_without_weights_is_enough_to_start_from_scratch(base, text, tmp_path):
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(base / "config.json", alone)
    data = DataSpec("text", str(text), context=16, validation_windows=4)
    given = dict(data=data, arms=(ARMS["baseline"], ARMS["wisca"]), steps=4, optimiser=OptimiserSpec(warmup_steps=1))
    model = ModelSpec(source="shrunk", width=16, n_layers=1, path=str(alone))
    assert build_model(check_spec(Spec(model=model, **given)), 1).config.hidden_size == 16
    whole = ModelSpec(source="whole", path=str(alone))
    prepare(check_spec(Spec(model=whole, **given)))
    with pytest.raises(UnreadableInput, match="no model weights"):
        build_model(check_spec(Spec(model=replace(whole, weights="continued"), **given)), 1)


# --- adapters on an open model ----------------------------------------------------------------------------------------


def test_all_lora_arms_of_a_seed_start_equal_and_leave_the_pair_alone_while_b_is_zero(tmp_path, lora):
    comparison = train_all(tmp_path / "c", lora(seeds=(1,)))
    curves = folder.curves(comparison)
    starts = curves[curves["step"] == 0].set_index("arm")
    assert starts["val_loss"].max() - starts["val_loss"].min() < 1e-6 * starts["val_loss"].min()
    statistics.check_starts(curves)
    assert starts["lora"].isna().all()  # |A| over zero is no ratio, and no factor was made of it
    # half of the width in heads: the base starts an octave out of balance and the base arm was balanced before step 0's
    # row
    assert (
        np.allclose(starts.loc["base", ["qk", "vo"]].astype(float), 0, atol=1e-6)
        and abs(starts.loc["lora_ab", "qk"]) > 0.5
    )
    last = curves[curves["step"] == 6].set_index("arm")["lora"]  # just before the second rescale
    assert last["baseline"] > 2 and abs(last["lora_ab"]) < last["baseline"] - 1
    ends = curves[curves["step"] == 12].set_index("arm")["val_loss"]
    assert (
        len(set(ends.drop("lora_placebo"))) == len(LORA_ARMS) - 1
        and abs(ends["lora_placebo"] - ends["baseline"]) < 1e-4
    )


def test_only_adapters_are_trained_and_the_same_seed_gives_the_same_ones(lora):
    spec = lora()
    a, b, c = (build_model(spec, seed) for seed in (1, 1, 2))
    trained = {n for n, p in a.named_parameters() if p.requires_grad}
    assert trained and all("lora_" in n for n in trained)
    assert (
        sum(p.numel() for n, p in a.named_parameters() if n in trained)
        == prepare(spec).n_trained
        == 4 * 2 * (64 + 48 + 48 + 64)
    )
    name = next(n for n in trained if "lora_A" in n)
    one, same, other = (dict(m.named_parameters())[name] for m in (a, b, c))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert {id(p) for o in build_optimisers(a, spec.optimiser, 1e-3) for g in o.param_groups for p in g["params"]} == {
        id(p) for p in a.parameters() if p.requires_grad
    }


@pytest.mark.parametrize("arm", ["base_and_ab", "lora_gram", "lora_placebo"])
def test_a_lora_cell_that_is_stopped_and_resumed_ends_at_the_numbers_of_an_unbroken_one(
    tmp_path, lora, monkeypatch, arm
):
    spec = lora(arms=(LORA_ARMS["baseline"], replace(LORA_ARMS[arm], every=3)), seeds=(1,))
    whole = train_all(tmp_path / "whole", spec).cells[1]
    broken = folder.read(folder.create(tmp_path / "broken", spec)).cells[1]
    corpus = load_corpus(spec)
    monkeypatch.setattr(cell_module, "CHECKPOINT_SECONDS", 1e9)
    calls = iter(range(100))
    assert not train(spec, broken, corpus, lambda: next(calls) == 6)
    kept = torch.load(broken.folder / "resume.pt", weights_only=True)["model"]
    assert not any("embed" in name or "mlp" in name for name in kept)  # nothing of a frozen base that no arm touches
    assert train(spec, broken, corpus, never)
    assert numbers(broken) == numbers(whole)


def test_final_adapters_fit_the_base_as_it_was_and_the_merged_model_opens(tmp_path, lora, base):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from wisca_core.checkpoint import open_checkpoint

    # 0.05 spread once: bf16 of the base is exact in float32, so every difference is arithmetic
    spec = lora(arms=(LORA_ARMS["baseline"], LORA_ARMS["base"]), seeds=(1,), save_weights=True)
    cell = train_all(tmp_path / "c", spec).cells[1]
    assert (
        open_checkpoint(cell.folder / "model").config["hidden_size"] == 32
        and (cell.folder / "model" / "tokenizer.json").is_file()
    )
    merged = AutoModelForCausalLM.from_pretrained(cell.folder / "model", dtype=torch.float32)
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), cell.folder / "adapter"
    )
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    ids = torch.arange(97, 113)[None]
    with torch.no_grad():
        a, b, c = (model.eval()(ids).logits for model in (merged, adapted, plain))
    assert (a - b).abs().max() < 1e-4 * a.abs().max() < 1e-2 * (a - c).abs().max()


def test_the_lora_preset_runs_from_the_command_line(tmp_path, base, text, monkeypatch, capsys):
    preset = PRESETS["lora"]
    quick = replace(
        preset,
        steps=30,
        seeds=(1,),
        pilot=PilotSpec(),
        optimiser=replace(preset.optimiser, learning_rates=(1e-2,), clip=0.0),
        data=replace(preset.data, source="text", path=str(text), context=16, validation_windows=4),
    )
    monkeypatch.setitem(PRESETS, "lora", quick)
    monkeypatch.setattr(executor, "_start", work_here)
    assert (
        main(
            [
                "compare",
                "--preset",
                "lora",
                "--model",
                str(base),
                "--out",
                str(tmp_path / "c"),
                "--workers",
                "1",
                "--json",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (
        found["state"] == "done"
        and found["unit"] == "nats per token"
        and found["subject"] == "LoRA's A and B balanced every 25 steps"
    )
    ends = {e["arm"]: e["mean_final"] for e in found["effects"]}
    assert ends.keys() == {"lora_ab", "lora_rates", "lora_rates_inverse"}
    # without clipping A's and B's own rates are the balance; the other way round is not
    off = abs(ends["lora_rates"] - ends["lora_ab"])
    assert off < 1e-4 and off < 0.1 * abs(ends["lora_rates_inverse"] - ends["lora_ab"])
    assert main(["compare", "--preset", "lora", "--estimate"]) == 2
    assert "model.path: '' was given" in capsys.readouterr().err


def test_lora_arms_that_come_to_the_same_are_refused(lora):
    same = [
        ("at the start B is zero", Arm("mine", every=None, pairs=("lora",))),
        ("a frozen base stays balanced", replace(LORA_ARMS["base"], name="mine", every=3)),
    ]
    for _, arm in same:
        with pytest.raises(SpecError, match="both do the same"):
            lora(arms=(LORA_ARMS["baseline"], LORA_ARMS["base"], arm))
    with pytest.raises(SpecError, match=r"arms\[1\].pairs.*lora needs model.source = lora"):
        spec_from({"arms": ["baseline", "lora_ab"]})


# --- open models made smaller, or whole -------------------------------------------------------------------------------

CONFIG = dict(
    model_type="llama",
    vocab_size=32000,
    hidden_size=2048,
    intermediate_size=5632,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    max_position_embeddings=2048,
    eos_token_id=2,
    attention_dropout=0.1,
)


def test_a_config_made_smaller_keeps_its_proportions():
    # 512 channels of queries at 8 query heads a KV head: 4 KV heads of 16 channels; 5632 / 2048 * 512 = 1408
    small = shrunk_config(CONFIG, 512, 6, 257)
    names = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "max_position_embeddings",
    )
    assert [small[n] for n in names] == [512, 1408, 6, 32, 4, 257, 2048]
    assert small["attention_dropout"] == 0 and small["eos_token_id"] == 2
    # 64 leave 8 channels to 8 heads: one KV head only
    tiny = shrunk_config(CONFIG, 64, 2)
    assert (
        tiny["num_attention_heads"],
        tiny["num_key_value_heads"],
        tiny["intermediate_size"],
        tiny["vocab_size"],
    ) == (8, 1, 176, 32000)
    with pytest.raises(SpecError, match=r"model.width: '100'.*8 query heads a KV head.*near are 80, 96, 112"):
        shrunk_config(CONFIG, 100, 2)
    kinds = {
        **CONFIG,
        "model_type": "gemma2",
        "head_dim": 64,
        "query_pre_attn_scalar": 64,
        "layer_types": ["sliding_attention", "full_attention"] * 11,
    }
    small = shrunk_config(kinds, 512, 3)
    assert (
        small["layer_types"] == ["sliding_attention", "full_attention", "sliding_attention"]
        and small["query_pre_attn_scalar"] == 16
    )
    with pytest.raises(SpecError, match="model.n_layers.*2 kinds"):
        shrunk_config(kinds, 512, 1)


def test_shrunk_fresh_and_continued_models_train_from_equal_starts(tmp_path, base, text):
    data = DataSpec("text", str(text), context=16, validation_windows=4)
    for model, used in (
        (ModelSpec(source="shrunk", path=str(base), width=16, n_layers=3), data),
        (ModelSpec(source="whole", path=str(base)), data),
        (ModelSpec(source="whole", path=str(base), weights="continued"), replace(data, tokens="tokenizer")),
    ):
        arms = (ARMS["baseline"], replace(ARMS["wisca"], every=2), replace(ARMS["gram"], every=2))
        spec = check_spec(
            Spec(
                "s",
                model,
                used,
                OptimiserSpec(warmup_steps=1),
                arms,
                steps=4,
                seeds=(1,),
                batch_size=2,
                evaluate_every=2,
                save_weights=False,
            )
        )
        facts = prepare(spec)
        comparison = train_all(tmp_path / f"{model.source}-{model.weights}", spec)
        curves = folder.curves(comparison)
        statistics.check_starts(curves)
        assert facts.n_parameters == sum(p.numel() for p in build_model(spec, 1).parameters())
        assert len(set(curves[curves["step"] == 4]["val_loss"])) == 3
    assert (facts.width, facts.n_heads, facts.n_kv_heads, facts.n_trained) == (32, 4, 2, facts.n_parameters)


def test_a_continued_model_starts_from_the_weights_in_the_folder(base, text):
    from transformers import AutoModelForCausalLM

    spec = check_spec(
        Spec(
            "s",
            ModelSpec(source="whole", path=str(base), weights="continued"),
            DataSpec("text", str(text), context=16, tokens="tokenizer"),
            arms=(ARMS["baseline"], ARMS["wisca"]),
        )
    )
    model, own = build_model(spec, 1), AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for (name, a), b in zip(model.named_parameters(), own.parameters()):
        assert torch.equal(a, b), name


def test_a_model_that_changed_is_not_gone_on_with(tmp_path, base, text):
    other = tmp_path / "model"
    shutil.copytree(base, other)
    spec = check_spec(
        Spec(
            "s",
            ModelSpec(source="whole", path=str(other), weights="continued"),
            DataSpec("text", str(text), context=16, tokens="tokenizer"),
            arms=(ARMS["baseline"], ARMS["wisca"]),
            steps=60,
        )
    )
    comparison = folder.read(folder.create(tmp_path / "c", spec))
    executor._same_corpus(comparison)
    weights = other / "model.safetensors"
    blob = bytearray(weights.read_bytes())
    blob[-1] ^= 1
    weights.write_bytes(blob)
    with pytest.raises(PlanMismatch, match="different models are never pooled"):
        executor._same_corpus(folder.read(comparison.path))


@pytest.mark.parametrize(
    ("model", "data", "field"),
    [
        (dict(source="whole"), {}, "model.path"),
        (dict(source="whole", path="BASE", width=32), {}, "model.width"),
        (dict(source="paper"), {}, "model.setup"),
        (dict(source="lora", path="hub:owner/name"), {}, "model.path"),
        (dict(source="whole", path="BASE"), dict(context=65), "data.context"),
        (dict(source="decoder"), dict(tokens="tokenizer"), "data.tokenizer"),
        (dict(source="decoder"), dict(tokens="tokenizer", tokenizer="TEXT"), "data.tokenizer"),
    ],
)
def test_what_cannot_be_is_named_by_its_field(base, text, model, data, field):
    put = {"BASE": str(base), "TEXT": str(text.parent)}
    with pytest.raises(SpecError) as found:
        prepare(
            spec_from(
                {
                    "model": {k: put.get(v, v) for k, v in model.items()},
                    "data": {k: put.get(v, v) for k, v in data.items()},
                }
            )
        )
    assert found.value.field == field


def test_an_encoder_and_an_arm_without_a_pair_are_refused_before_the_first_cell(small_model, edited, text):
    data = {"source": "text", "path": str(text), "context": 16}
    encoder = edited(small_model("bert"), config=lambda c: c.update(vocab_size=300))
    with pytest.raises(UnknownArchitecture, match="sees later tokens"):
        prepare(spec_from({"model": {"source": "whole", "path": str(encoder)}, "data": data}))
    # a type without a language model
    no_head = edited(small_model("llama"), config=lambda c: c.update(model_type="vit"), name="vit")
    with pytest.raises(Exception, match="vit|causal"):
        prepare(spec_from({"model": {"source": "whole", "path": str(no_head)}, "data": data}))


# --- a full change of basis -------------------------------------------------------------------------------------------


def test_a_full_change_of_basis_keeps_the_function_and_makes_both_gram_matrices_equal(base):
    from wisca_core.equivalence.miniature import load
    from wisca_core.training import rescale_

    model = load(base)  # float64
    ids = torch.arange(97, 113)[None]
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    model(ids).logits.square().mean().backward()
    optimiser.step()
    with torch.no_grad():
        before = model(ids).logits
        at = model.model.layers[1].self_attn
        whole, old = (
            at.o_proj.weight
            @ at.v_proj.weight.repeat_interleave(1, 0).reshape(2, 1, 8, 32).expand(2, 2, 8, 32).reshape(32, 32),
            at.v_proj.weight.clone(),
        )
    done = rescale_(model, optimiser, method="gram", pairs=("vo",))
    assert not done.skipped
    with torch.no_grad():
        assert (
            model(ids).logits - before
        ).abs().max() < 1e-6 * before.abs().max()  # transformers' norm is float32 inside
        v, o = at.v_proj.weight.view(2, 8, 32), at.o_proj.weight.view(32, 2, 2, 8)
        for j in range(2):
            assert torch.allclose(
                v[j] @ v[j].T, sum(o[:, j, h].T @ o[:, j, h] for h in range(2)), rtol=1e-10, atol=1e-12
            )
        after = at.o_proj.weight @ at.v_proj.weight.reshape(2, 1, 8, 32).expand(2, 2, 8, 32).reshape(32, 32)
    assert torch.allclose(after, whole, rtol=1e-11, atol=1e-12) and not torch.allclose(at.v_proj.weight, old, rtol=0.1)
    # and a second time there is nothing left to do
    held = at.v_proj.weight.detach().clone()
    rescale_(model, optimiser, method="gram", pairs=("vo",))
    assert torch.allclose(at.v_proj.weight, held, rtol=1e-9, atol=1e-12)


def test_momentum_follows_a_full_change_of_basis(base):
    """The same next step in both coordinates: SGD on W' = S^-1 W with momentum carried equals S^-1 of nothing else than
    g' = S g.
    """
    from wisca_core.equivalence.miniature import load
    from wisca_core.training import rescale_

    model = load(base)
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    ids = torch.arange(97, 113)[None]
    model(ids).logits.square().mean().backward()
    optimiser.step()
    at = model.model.layers[0].self_attn
    old, momentum = at.v_proj.weight.detach().clone(), optimiser.state[at.v_proj.weight]["momentum_buffer"].clone()
    rescale_(model, optimiser, method="gram", pairs=("vo",))
    new, carried = at.v_proj.weight.detach(), optimiser.state[at.v_proj.weight]["momentum_buffer"]
    for j in (slice(0, 8), slice(8, 16)):
        # <m, dW> is the change of the loss, which no change of basis changes: m'^T W' = m^T W
        assert torch.allclose(carried[j].T @ new[j], momentum[j].T @ old[j], rtol=1e-9, atol=1e-12)


def test_what_a_full_change_of_basis_does_not_pass_is_refused(small_model):
    from wisca_core.architecture.find import find_sites
    from wisca_core.checkpoint import open_checkpoint
    from wisca_core.equivalence.basis_proof import check_basis
    from wisca_core.equivalence.miniature import load
    from wisca_core.errors import BadOption, ProofFailed
    from wisca_core.methods import method
    from wisca_core.training import rescale_

    with pytest.raises(ProofFailed, match="differ by"):  # its output gate multiplies channel by channel
        gated = open_checkpoint(small_model("afmoe"))
        check_basis(gated, find_sites(gated).only(lambda site: site.key.pair == "vo").sites, method("gram"))
    model = load(small_model("llama"))
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(BadOption, match="squares AdamW keeps"):
        rescale_(model, torch.optim.AdamW(model.parameters()), method="gram")
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    for wrong, field in (
        ({"method": "gram"}, "optimizer_state"),
        ({"gram": True}, "optimizer_state"),  # as specs said it once
        ({"method": "gram", "kind": "inverse", "optimizer_state": "leave"}, "method"),
        ({"method": "gram", "pairs": ["qk"], "optimizer_state": "leave"}, "method"),
        ({"method": "gram", "strength": 0.5, "optimizer_state": "leave"}, "method"),
        ({"method": "gram", "when": 1.5, "optimizer_state": "leave"}, "method"),
        ({"method": "svd"}, "method"),
    ):
        with pytest.raises(SpecError) as found:
            spec_from({"arms": ["baseline", {"name": "mine", **wrong}]})
        assert found.value.field == f"arms[1].{field}"


# --- the paper's set-ups ----------------------------------------------------------------------------------------------


def test_the_papers_set_ups_have_the_published_numbers_of_parameters():
    # counted from the tensors of the published checkpoints
    known = {"tinyllama": 1_100_048_384, "qwen2": 1_543_714_304, "qwen15_moe": 14_315_784_192}
    for name, n in known.items():
        assert prepare(PRESETS[name]).n_parameters == n
    assert SETUPS["tinyllama"].paper == ((1.3193, 3.78), (1.2749, 3.62)) and all(
        PRESETS[n].arms[1].every == 250 for n in known
    )


def test_what_is_too_large_to_be_timed_is_reckoned_and_says_so(monkeypatch, capsys):
    monkeypatch.setattr("wisca_core.comparison.estimate.thread_flops", lambda: 2e11)
    monkeypatch.setattr(
        "wisca_core.comparison.estimate.measure_step",
        lambda spec, device: pytest.fail("a billion parameters were built"),
    )
    # without a net it would ask for the text six times, over 23 s
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    spec = PRESETS["tinyllama"]
    found, facts = estimate(spec, 2), prepare(spec)
    # 8 x 512 tokens, 6 a parameter and 12 a layer, channel and position for the scores
    work = 8 * 512 * (6 * 1_100_048_384 + 12 * 22 * 2048 * 512)
    assert (
        flops_per_step(spec, facts) == work
        and not found.is_measured
        and np.isclose(found.seconds_per_step, work / 1e11)
    )
    assert main(["compare", "--preset", "tinyllama", "--estimate"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "reckoned, not measured: 100 GFLOP/s a thread" in said
        and "an assumption, nothing was run" in said
        and "text not at hand" in said
    )


# --- tokens and data sets ---------------------------------------------------------------------------------------------


def test_a_tokenizer_is_used_recorded_and_counted_in_bytes(base, text):
    data = DataSpec("text", str(text), context=16, tokens="tokenizer")
    spec = Spec(
        "s", ModelSpec(source="whole", path=str(base)), data, arms=(ARMS["baseline"], ARMS["wisca"]), batch_size=2
    )
    corpus = load_corpus(spec)
    # the sample's tokenizer gives every byte its own id and 256 to the mark between documents
    assert corpus.train[:4].tolist() == [256, *b"The"] and corpus.facts["n_validation_tokens"] == 201
    assert corpus.facts["bytes_per_token"] == 200 / 201 and corpus.facts["tokens"] == "tokenizer"
    as_bytes = load_corpus(replace(spec, data=replace(data, tokens="bytes")))
    assert as_bytes.facts["sha256"] != corpus.facts["sha256"] and as_bytes.facts["bytes_per_token"] == 1.0
    assert unit(spec) == "nats per token" and unit(replace(spec, data=replace(data, tokens="bytes"))) == "nats per byte"


def test_so_many_bytes_and_no_more_are_read(text, tmp_path):
    of = lambda **data: load_corpus(Spec("s", data=DataSpec(context=8, **data), batch_size=2)).facts
    assert of(source="text", path=str(text), max_bytes=400)["n_train_tokens"] == 381
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": "x" * 50}) for _ in range(100)))
    assert of(source="jsonl", path=str(rows), max_bytes=2000)["n_documents"] == 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the library ``datasets``: load_dataset reads a parquet file of this machine and notes how it was
    asked.
    """
    pd.DataFrame({"story": [f"Once upon a time there was the number {i}. " * 5 for i in range(60)]}).to_parquet(
        tmp_path / "train.parquet"
    )
    asked: list = []

    def load_dataset(name, subset, **more):
        asked.append((name, subset, more))
        if name != "owner/stories":
            raise ConnectionError(f"couldn't reach {name}")
        return pd.read_parquet(tmp_path / "train.parquet").to_dict("records")

    def install(version: str):
        monkeypatch.setitem(
            sys.modules, "datasets", types.SimpleNamespace(__version__=version, load_dataset=load_dataset)
        )
        return asked

    return install


def test_a_data_set_of_the_hub_is_read_through_its_library_without_its_code(hub):
    data = DataSpec("hub", "hub:owner/stories@v1", column="story", context=8)
    for version, never_run in (("5.2.0", {}), ("3.6.0", {"trust_remote_code": False})):
        asked = hub(version)
        corpus = load_corpus(Spec("s", data=data, batch_size=2))
        assert asked[-1] == (
            "owner/stories",
            None,
            {"split": "train", "revision": "v1", "streaming": True, **never_run},
        )
        assert corpus.facts["n_documents"] == 60 and bytes(int(t) for t in corpus.train[1:5]) == b"Once"
    with pytest.raises(SpecError, match="data.column: 'text'.*row 0 of hub:owner/stories@v1 has story"):
        load_corpus(Spec("s", data=replace(data, column="text"), batch_size=2))
    with pytest.raises(HubError, match="owner/gone .*ConnectionError"):
        load_corpus(Spec("s", data=replace(data, path="hub:owner/gone"), batch_size=2))


def test_what_was_fetched_from_the_hub_is_fetched_once_and_shared(hub, tmp_path):
    asked = hub("5.2.0")
    spec = check_spec(
        Spec(
            "s",
            data=DataSpec("hub", "hub:owner/stories", column="story", context=8),
            arms=(ARMS["baseline"], ARMS["wisca"]),
            steps=60,
        )
    )
    path = folder.create(tmp_path / "c", spec)
    executor._same_corpus(folder.read(path))
    executor._same_corpus(folder.read(path))  # as a resumed comparison does
    mapped = kept_corpus(spec, path)
    assert len(asked) == 1 and isinstance(mapped.train, np.memmap)
    assert (
        np.array_equal(mapped.train, load_corpus(spec).train)
        and mapped.facts["sha256"] == folder.read(path).corpus["sha256"]
    )
    (path / "corpus" / "train.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UnreadableInput, match="is damaged"):
        kept_corpus(spec, path)


def test_hub_ids_that_are_none_and_folders_of_that_name_are_refused(hub, tmp_path, monkeypatch):
    hub("5.2.0")
    for path in ("owner/stories", "hub:../x/y", "hub:https://x/y", "hub:/a/b"):
        with pytest.raises(SpecError) as found:
            load_corpus(
                check_spec(Spec("s", data=DataSpec("hub", path, context=8), arms=(ARMS["baseline"], ARMS["wisca"])))
            )
        assert found.value.field == "data.path"
    (tmp_path / "owner" / "stories").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="would be read instead"):
        load_corpus(Spec("s", data=DataSpec("hub", "hub:owner/stories", context=8)))


def test_without_the_library_a_data_set_of_the_hub_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SpecError, match="needs the library datasets, which is not installed"):
        load_corpus(Spec("s", data=DataSpec("hub", "hub:owner/stories")))


def test_a_preset_takes_the_folder_it_leaves_open(base):
    assert with_model(PRESETS["lora"], base).model.path == str(base)
    assert with_model(PRESETS["tinyllama"], base).data.tokenizer == str(base)
    with pytest.raises(SpecError):
        with_model(PRESETS["default"], base)


def test_two_sessions_of_one_server_prepare_two_models_at_once(tmp_path, monkeypatch):
    """Building changes the whole process for a moment; mixed up, a proof fails for nothing and is kept as failed."""
    monkeypatch.setenv("WISCA_HOME", str(tmp_path / "home"))
    arms = (ARMS["baseline"], ARMS["wisca"])
    specs = [Spec("s", ModelSpec(source="whole", path=str(SAMPLE)), arms=arms), Spec("s", arms=arms)]
    with ThreadPoolExecutor(2) as pool:
        facts = list(pool.map(prepare, specs))
    assert [f.n_layers for f in facts] == [8, 4]
