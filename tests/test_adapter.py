"""LoRA adapter folders: rank channels as sites, proof, export as adapters, and adapters that follow a rescaled base."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wisca_core import rescale_adapter as following
from wisca_core.architecture.adapter import adapted_layers
from wisca_core.architecture.find import find_sites
from wisca_core.architecture.site import SiteKey
from wisca_core.checkpoint import open_checkpoint
from wisca_core.cli import main
from wisca_core.equivalence import adapter_proof, pair_proof
from wisca_core.equivalence.adapter_miniature import build_adapter, load_adapted
from wisca_core.equivalence.memory_names import _lies_in
from wisca_core.equivalence.outputs import difference, outputs
from wisca_core.equivalence.proving import prove
from wisca_core.errors import BadOption, ConfigMismatch, UnreadableInput, UnsupportedCheckpoint
from wisca_core.planning.decide import decide
from wisca_core.planning.options import Options, default_pairs
from wisca_core.rescale import Scaling, scalings

TARGETS = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
ROOT = "base_model.model.model.layers."


def by_hand(folder: Path, tensors: dict[str, torch.Tensor], **config) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}))
    return folder


def pair_of(module: str, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
    return {f"{ROOT}{module}.lora_A.weight": a, f"{ROOT}{module}.lora_B.weight": b}


@pytest.fixture(scope="module")
def small(small_model, tmp_path_factory):
    """(base folder, make): make(**adapter settings) -> folder of a random adapter on it, every value random."""
    base = small_model("llama")
    made: dict[str, Path] = {}

    def make(targets=TARGETS, **settings) -> Path:
        key = json.dumps([targets, settings], sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("adapter") / "adapter"
            build_adapter(base, made[key], settings, targets, seed=9)
        return made[key]

    return base, make


# Sites


def test_rank_channels_are_sites_and_balance_by_hand(tmp_path, look):
    # A's rows have L1 norms 2 and 16, B's columns 8 and 4: factors 2 and 1/2 balance them at 4 and 8
    a = torch.tensor([[1.0, -1.0], [8.0, 8.0]])
    b = torch.tensor([[4.0, 1.0], [-4.0, 3.0], [0.0, 0.0]])
    folder = by_hand(tmp_path / "adapter", pair_of("7.self_attn.q_proj", a, b))
    found = look(folder)
    (site,) = found.sites.sites
    assert site.name == "decoder.7.none.lora:self_attn.q_proj" and SiteKey.parse(site.name) == site.key
    assert (site.n_channels, site.n_cells("tensor"), site.n_cells("group"), site.n_cells("channel")) == (2, 1, 1, 2)
    assert default_pairs(found.sites) == ("lora",)
    channel = decide(found.patterns, Options(("lora",), granularity="channel"))
    assert channel.factor.tolist() == [2.0, 0.5]
    assert channel.side_norms(after=True).tolist() == [[4.0, 8.0], [4.0, 8.0]]
    whole = decide(found.patterns, Options(("lora",)))  # |A| = 18, |B| = 12
    assert whole.factor.tolist() == [pytest.approx((12 / 18) ** 0.5, rel=1e-15)]
    assert not decide(found.patterns, Options()).changed_sites.any()  # qk and vo alone ask for nothing here


def test_names_tell_layers_stacks_and_the_parts_outside_them_apart(tmp_path):
    def one(module):
        return {f"base_model.model.{module}.lora_{p}.weight": torch.ones(2, 2) for p in "AB"}

    modules = [
        "model.encoder.layers.0.fc1",
        "model.decoder.layers.0.fc1",
        "lm_head",
        "vision.blocks.0.mlp.fc1",
        "text.blocks.0.mlp.fc1",
    ]
    folder = by_hand(tmp_path / "adapter", {k: v for m in modules for k, v in one(m).items()})
    names = {s.name for s in find_sites(open_checkpoint(folder)).sites}
    assert names == {
        "encoder.0.none.lora:fc1",
        "decoder.0.none.lora:fc1",
        "outside.0.none.lora:lm_head",
        "vision_blocks.0.none.lora:mlp.fc1",
        "text_blocks.0.none.lora:mlp.fc1",
    }
    assert all(str(SiteKey.parse(name)) == name for name in names)


@pytest.mark.parametrize(
    ("tensors", "config", "reason"),
    [
        (pair_of("0.q", torch.ones(2, 3), torch.ones(4, 3)), {}, "do not meet in rank channels"),
        (pair_of("0.q", torch.ones(3, 3), torch.ones(4, 3)), {}, "3 rank channels, adapter_config.json gives r = 2"),
        (pair_of("0.q", torch.ones(2, 3, 1, 1), torch.ones(4, 2, 1, 1)), {}, "convolution"),
        (pair_of("0.q", torch.ones(2, 3).to(torch.int8), torch.ones(4, 2)), {}, "stored as I8"),
        ({f"{ROOT}0.q.lora_A.weight": torch.ones(2, 3)}, {}, "no lora_B"),
        (
            {f"{ROOT}0.e.lora_embedding_A": torch.ones(2, 3), f"{ROOT}0.e.lora_embedding_B": torch.ones(3, 2)},
            {},
            "embedding",
        ),
        (
            pair_of("0.mlp.experts", torch.ones(2, 3), torch.ones(4, 2)),
            {"target_parameters": ["mlp.experts.down_proj"]},
            "many experts",
        ),
    ],
)
def test_what_has_no_rule_is_left_alone_by_name(tmp_path, tensors, config, reason):
    sites = find_sites(open_checkpoint(by_hand(tmp_path / "adapter", tensors, **config)))
    assert not sites.sites
    (refusal,) = sites.refusals
    assert refusal.what.startswith("decoder.0.none.lora:") and reason in refusal.reason


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"peft_type": "IA3"}, "'IA3'.*is no LoRA"),
        ({"peft_type": ["LORA"]}, "is no LoRA"),
        ({"use_qalora": True}, "sets use_qalora: a variant of LoRA without a rule"),
        ({"alora_invocation_tokens": [5]}, "alora_invocation_tokens"),
        ({"use_something_new": 1}, "use_something_new"),
    ],
)
def test_other_kinds_of_adapter_are_refused_whole(tmp_path, config, reason):
    folder = by_hand(tmp_path / "adapter", pair_of("0.q", torch.ones(2, 3), torch.ones(4, 2)), **config)
    sites = find_sites(open_checkpoint(folder))
    assert not sites.sites and sites.refusals[0].what == "model"
    assert re.search(reason, sites.refusals[0].reason)
    assert main(["inspect", str(folder)]) == 1


def test_a_config_of_odd_types_is_no_crash(tmp_path):
    folder = by_hand(
        tmp_path / "adapter",
        pair_of("0.q", torch.ones(2, 3), torch.ones(4, 2)),
        r=[2],
        rank_pattern=[1],
        target_parameters="x",
        base_model_name_or_path=["y"],
        lora_alpha={},
    )
    assert "rank channels" in find_sites(open_checkpoint(folder)).refusals[0].reason


def test_a_zero_b_is_left_alone_with_its_reason(small, tmp_path, look):
    base, make = small
    copy = tmp_path / "fresh"
    shutil.copytree(make(), copy)
    tensors = load_file(copy / "adapter_model.safetensors")
    name = f"{ROOT}1.self_attn.o_proj.lora_B.weight"
    save_file(
        tensors | {name: torch.zeros_like(tensors[name])}, copy / "adapter_model.safetensors", metadata={"format": "pt"}
    )
    decision = decide(look(copy).patterns, Options(("lora",)))
    (left,) = decision.refusals
    assert left.what == "decoder.1.none.lora:self_attn.o_proj" and f"every value of {name} in it is zero" in left.reason
    assert int(decision.changed_sites.sum()) == 5


# Opening


def test_adapter_files_are_opened_by_folder_config_or_weights(small):
    _, make = small
    whole = open_checkpoint(make())
    assert whole.adapter["peft_type"] == "LORA" and whole.kind == "safetensors"
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert open_checkpoint(make() / name).tensors == whole.tensors


def test_weights_without_config_and_config_without_weights_are_named(small, tmp_path):
    _, make = small
    for name, message in (
        ("adapter_model.safetensors", "without adapter_config.json"),
        ("adapter_config.json", "without the adapter's weights"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(make() / name, folder / name)
        with pytest.raises(UnreadableInput, match=message):
            open_checkpoint(folder)
    with pytest.raises(UnreadableInput, match="no weights of its own; there are adapters in"):
        open_checkpoint(make().parent)


def test_torch_adapters_open_and_shared_storage_is_never_scaled_twice(tmp_path):
    a, b = torch.randn(2, 3), torch.randn(4, 2)
    folder = tmp_path / "adapter"
    folder.mkdir()
    names = [f"base_model.model.m.{i}.q.lora_{p}.weight" for i in (0, 1, 2) for p in "AB"]
    torch.save(dict(zip(names, (a, b, a, b.clone(), a.clone(), b.clone()))), folder / "adapter_model.bin")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2}))
    sites = find_sites(open_checkpoint(folder))
    assert [s.name for s in sites.sites] == ["decoder.2.none.lora:q"]
    assert {r.what: "shares its storage" in r.reason for r in sites.refusals} == {
        "decoder.0.none.lora:q": True,
        "decoder.1.none.lora:q": True,
    }


# Proof and mistakes


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}], ids=str)
def test_rank_channels_are_proved_by_products_and_through_peft(small, settings):
    base, make = small
    checkpoint = open_checkpoint(make(**settings))
    sites = find_sites(checkpoint)
    assert len(sites.sites) == 6 and not sites.refusals
    alone = prove(checkpoint, sites)
    assert alone.passed and alone.max_rel < 1e-14 and alone.liveness > 0.1 and alone.n_cases == 3
    both = adapter_proof.prove_adapter(checkpoint, sites, open_checkpoint(base))
    assert (
        both.passed and both.max_rel < 1e-13 and both.n_cases == 3 + 11 and "peft on a miniature of llama" in both.what
    )
    assert "the adapter on its base model, which was not given" in alone.not_checked
    assert "the adapter on its base model, which was not given" not in both.not_checked


def test_wrong_rank_rules_are_caught(small, monkeypatch):
    _, make = small
    checkpoint = open_checkpoint(make(use_rslora=False))
    right = find_sites(checkpoint)
    from dataclasses import replace

    def spoilt(change):
        return replace(right, sites=tuple(replace(s, legs=tuple(change(leg) for leg in s.legs)) for s in right.sites))

    wrong = {
        "one rank channel off": lambda leg: (
            replace(
                leg, index=replace(leg.index, start=1, sizes=(1, 1, 3)), channel=replace(leg.channel, sizes=(1, 1, 3))
            )
            if leg.role == "b"
            else leg
        ),
        "both sides the same way": lambda leg: replace(leg, side="left"),
        "B's rows instead of its columns": lambda leg: replace(leg, axis=0) if leg.role == "b" else leg,
    }
    for name, change in wrong.items():
        proof = adapter_proof.prove_adapter(checkpoint, spoilt(change))
        assert not proof.passed, name


# Export


def test_an_adapter_is_exported_as_an_adapter_with_everything_else_copied(small, tmp_path, capsys):
    base, make = small
    source = tmp_path / "source"
    shutil.copytree(make(use_dora=True), source)
    saved = {**load_file(source / "adapter_model.safetensors"), "base_model.model.score.weight": torch.randn(5, 4)}
    save_file(saved, source / "adapter_model.safetensors", metadata={"format": "pt"})
    (source / "other").mkdir()
    shutil.copy(make() / "adapter_model.safetensors", source / "other" / "adapter_model.safetensors")
    (source / "optimizer.pt").write_bytes(b"x")
    out = tmp_path / "out"
    assert main(["rescale", str(source), str(out), "--granularity", "channel", "--base", str(base)]) == 0
    said = capsys.readouterr().out
    assert "6 of 6 pairs change, by 24 factors" in said and "A side" in said and "peft on a miniature" in said
    assert (out / "adapter_config.json").read_bytes() == (source / "adapter_config.json").read_bytes()
    assert (out / "other" / "adapter_model.safetensors").is_file() and not (out / "optimizer.pt").exists()
    before, after = load_file(source / "adapter_model.safetensors"), load_file(out / "adapter_model.safetensors")
    touched = {name for name in before if not torch.equal(before[name], after[name])}
    assert touched == {name for name in before if ".lora_A." in name or ".lora_B." in name}
    for one in adapted_layers(open_checkpoint(source)):
        assert torch.allclose(after[one.b] @ after[one.a], before[one.b] @ before[one.a], rtol=0, atol=1e-12)
        assert torch.allclose(after[one.a].abs().sum(1), after[one.b].abs().sum(0), rtol=1e-12)
    original, new = (outputs(load_adapted(base, f), seed=3) for f in (make(use_dora=True), out))
    assert difference(original, new).max_rel < 1e-13
    assert main(["verify", str(source), str(out)]) == 0
    assert "equivalent up to rounding" in capsys.readouterr().out


def test_powers_of_two_keep_every_product_to_the_bit(small, tmp_path, capsys):
    _, make = small
    out = tmp_path / "out"
    assert main(["rescale", str(make()), str(out), "--exact", "--granularity", "channel", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (
        told["full_check"]["bit_identical"]
        and told["full_check"]["n_values"] > 10_000
        and told["bit_identical_expected"]
    )
    report = json.loads((out / "wisca_report.json").read_text())
    assert report["plan"]["options"]["pairs"] == ["lora"]


def test_a_spoilt_product_is_told_by_the_check(small, tmp_path, look):
    from wisca_core.equivalence.checking import compare_folder

    _, make = small
    copy = tmp_path / "copy"
    shutil.copytree(make(), copy)
    tensors = load_file(copy / "adapter_model.safetensors")
    tensors[f"{ROOT}0.self_attn.q_proj.lora_A.weight"][2] *= 1.01
    save_file(tensors, copy / "adapter_model.safetensors", metadata={"format": "pt"})
    found = look(make())
    check = compare_folder(found.checkpoint, found.sites, None, copy)
    assert not check.bit_identical and check.max_rel > 1e-4 and check.control_max_rel < 1e-14
    assert main(["verify", str(make()), str(copy)]) == 1


# An adapter on a base that is rescaled


@pytest.mark.parametrize(
    ("model_type", "targets", "settings"),
    [
        (
            "llama",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
            {"use_dora": True, "use_rslora": True},
        ),
        ("qwen2", ("q_proj", "v_proj"), {"lora_bias": True}),
        ("gpt2", ("attn.c_attn", "attn.c_proj"), {"use_dora": True}),  # stored [in, out]
        ("phi3", ("qkv_proj", "o_proj"), {}),
        ("bert", ("query", "attention.output.dense"), {}),
    ],
)
def test_base_and_adapter_are_proved_together(small_model, tmp_path, model_type, targets, settings):
    base = small_model(model_type)
    build_adapter(base, tmp_path / "adapter", settings, targets, seed=2)
    checkpoint = open_checkpoint(base)
    proof = pair_proof.prove_pair(checkpoint, find_sites(checkpoint), open_checkpoint(tmp_path / "adapter"))
    assert proof.passed and proof.max_rel < 1e-13, proof.reason
    assert proof.liveness > 0.05  # the adapter left as it was


def test_followers_are_what_was_worked_out_by_hand(tmp_path):
    """W is 2 x 2; rows times (2, 3), columns times (5, 7) in turn; DoRA's magnitude by the growth of W + 2 B A's
    rows.
    """
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    a, b = torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    base = tmp_path / "base"
    base.mkdir()
    save_file({"model.layers.0.o.weight": weight}, base / "model.safetensors")
    tensors = pair_of("0.o", a, b) | {
        f"{ROOT}0.o.lora_magnitude_vector": torch.tensor([1.0, 10.0], dtype=torch.float64)
    }
    adapter = open_checkpoint(by_hand(tmp_path / "adapter", tensors, r=1, lora_alpha=2, use_dora=True))
    checkpoint = open_checkpoint(base)
    for role, axis, along in (("q", 0, {0: np.array([2.0, 3.0])}), ("o", 1, {1: np.array([5.0, 7.0])})):
        from wisca_core.architecture.site import Grid, Leg, Site, Sites

        grid = Grid(0, (1, 1, 2), (0, 0, 1))
        leg = Leg("model.layers.0.o.weight", axis, grid, grid, "left", role)
        sites = Sites("x", "x", None, (Site(SiteKey("decoder", 0, "self", "vo"), 2, 1, (leg,)),))
        got = following.follow(checkpoint, sites, {leg.tensor: Scaling(along)}, adapter)
        parts = {
            name.rpartition("lora_")[2].removesuffix(".weight"): {k: v.tolist() for k, v in s.along.items()}
            for name, s in got.items()
        }
        if role == "q":
            assert parts == {"B": {0: [2.0, 3.0]}, "magnitude_vector": {0: [2.0, 3.0]}}
        else:  # W + 2 B A = [[3, 4], [7, 8]]; with columns [[15, 28], [35, 56]]
            grown = [(15**2 + 28**2) ** 0.5 / 5, (35**2 + 56**2) ** 0.5 / (7**2 + 8**2) ** 0.5]
            assert parts == {"A": {1: [5.0, 7.0]}, "magnitude_vector": {0: pytest.approx(grown, rel=1e-15)}}


def test_wrong_followers_are_caught(small, monkeypatch, tmp_path):
    base, make = small
    checkpoint, adapter = open_checkpoint(base), open_checkpoint(make(use_dora=True))
    sites = find_sites(checkpoint)
    right = following.follow

    def without(part):
        return lambda *arguments: {name: s for name, s in right(*arguments).items() if f"lora_{part}" not in name}

    for part in ("A", "B", "magnitude_vector"):
        monkeypatch.setattr(pair_proof, "follow", without(part))
        monkeypatch.setenv("WISCA_HOME", str(tmp_path / part))
        proof = pair_proof.prove_pair(checkpoint, sites, adapter)
        assert not proof.passed and proof.max_rel > 1e-3, part
    monkeypatch.setattr(following, "_growth", lambda *arguments: 1.0)  # DoRA on columns forgotten
    monkeypatch.setattr(pair_proof, "follow", right)
    monkeypatch.setenv("WISCA_HOME", str(tmp_path / "growth"))
    assert not pair_proof.prove_pair(checkpoint, sites, adapter).passed


def test_base_and_adapter_are_exported_together_and_taken_back(small, tmp_path, capsys):
    base, make = small
    adapter = make(use_dora=True)
    out = tmp_path / "out"
    command = ["rescale", str(base), str(out), "--granularity", "channel", "--adapter", str(adapter), "--no-check"]
    assert main([*command, "--dry-run"]) == 0 and not out.exists()
    assert main(command) == 0
    beside = tmp_path / "out-adapter"
    assert "4 adapted layers of rescaled weights" in capsys.readouterr().out
    config = json.loads((beside / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(out) and config["use_dora"] is True
    original, new = outputs(load_adapted(base, adapter), seed=3), outputs(load_adapted(out, beside), seed=3)
    assert difference(original, new).max_rel < 1e-13
    assert difference(original, outputs(load_adapted(out, adapter), seed=3)).max_rel > 0.01  # left alone it breaks
    assert json.loads((beside / "wisca_report.json").read_text())["products_max_rel"] < 1e-13
    back = [
        "rescale",
        str(out),
        str(tmp_path / "back"),
        "--undo",
        str(out / "wisca_report.json"),
        "--adapter",
        str(beside),
        "--adapter-out",
        str(tmp_path / "back-adapter"),
        "--no-check",
    ]
    assert main(back) == 0
    before, again = (load_file(f / "adapter_model.safetensors") for f in (adapter, tmp_path / "back-adapter"))
    assert all(torch.allclose(before[name], again[name], rtol=1e-13, atol=0) for name in before)


def test_an_adapter_left_behind_is_said(small, tmp_path, capsys):
    base, make = small
    shutil.copytree(base, tmp_path / "model")
    shutil.copytree(make(), tmp_path / "model" / "adapter")
    beside = tmp_path / "mine"
    shutil.copytree(make(), beside)
    config = json.loads((beside / "adapter_config.json").read_text()) | {
        "base_model_name_or_path": str(tmp_path / "model")
    }
    (beside / "adapter_config.json").write_text(json.dumps(config))
    shutil.copytree(make(), tmp_path / "somebody-elses")  # names another base
    assert following.adapters_near(open_checkpoint(tmp_path / "model")) == (tmp_path / "model" / "adapter", beside)
    assert main(["rescale", str(tmp_path / "model"), "--dry-run", "--adapter", str(beside)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Left behind: the LoRA adapter in {tmp_path / 'model' / 'adapter'} belongs to these weights" in said
    assert f"Left behind: the LoRA adapter in {beside}" not in said
    shutil.copy(make() / "adapter_config.json", tmp_path / "model" / "adapter_config.json")
    assert any("A LoRA adapter lies in this folder" in remark for remark in open_checkpoint(tmp_path / "model").remarks)


def test_adapters_of_another_base_or_start_are_refused(small, small_model, tmp_path):
    base, make = small
    checkpoint = open_checkpoint(base)
    sites = find_sites(checkpoint)
    shapes = {t.name: t.shape for t in checkpoint.tensors}
    scaling = scalings(sites, adapter_proof.extreme(sites, 1), "channel", shapes)

    def changed(name, config=None, tensors=None):
        shutil.copytree(make(), tmp_path / name)
        path = tmp_path / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | (config or {})))
        if tensors:
            save_file(
                tensors(load_file(tmp_path / name / "adapter_model.safetensors")),
                tmp_path / name / "adapter_model.safetensors",
            )
        return open_checkpoint(tmp_path / name)

    for name, config, error in (
        ("pissa", {"init_lora_weights": "pissa"}, "begun from its base's weights"),
        ("repeats", {"layer_replication": [[0, 1]]}, r"layer_replication .* gives no layer for model.layers.1"),
        ("odd", {"layer_replication": "all"}, "pairs of first and last layer are expected"),
    ):
        with pytest.raises((UnsupportedCheckpoint, ConfigMismatch), match=error):
            following.follow(checkpoint, sites, scaling, changed(name, config))
    with pytest.raises(ConfigMismatch, match="no tensor of that name.*another base"):
        following.follow(
            checkpoint,
            sites,
            scaling,
            changed("deeper", None, lambda t: {n.replace("layers.1.", "layers.9."): v for n, v in t.items()}),
        )
    with pytest.raises(ConfigMismatch, match="maps 5 inputs"):
        following.follow(
            checkpoint,
            sites,
            scaling,
            changed(
                "wider", None, lambda t: {n: v[:, :5].clone() if "q_proj.lora_A" in n else v for n, v in t.items()}
            ),
        )
    with pytest.raises(ConfigMismatch, match="is a model, not a LoRA adapter"):
        following.follow(checkpoint, sites, scaling, checkpoint)


def test_a_layer_without_a_rule_stops_only_what_it_lies_on(small, tmp_path):
    base, make = small
    checkpoint = open_checkpoint(base)
    sites = find_sites(checkpoint)
    scaling = scalings(sites, adapter_proof.extreme(sites, 1), "channel", {t.name: t.shape for t in checkpoint.tensors})
    embedding = {
        "base_model.model.model.embed_tokens.lora_embedding_A": torch.ones(4, 61),
        "base_model.model.model.embed_tokens.lora_embedding_B": torch.ones(32, 4),
    }
    odd_k = {f"{ROOT}0.self_attn.k_proj.lora_{p}.weight": torch.ones(3, 3, 3) for p in "AB"}
    for name, more in (("embedding", embedding), ("k_proj", odd_k)):
        shutil.copytree(make(), tmp_path / name)
        save_file(
            load_file(tmp_path / name / "adapter_model.safetensors") | more,
            tmp_path / name / "adapter_model.safetensors",
        )
    right = following.follow(checkpoint, sites, scaling, open_checkpoint(make()))
    assert following.follow(checkpoint, sites, scaling, open_checkpoint(tmp_path / "embedding")).keys() == right.keys()
    for tensor, module, inside in (
        ("model.layers.0.a.k.weight", "model.layers.0.a.k", True),
        ("layers.0.a.k.weight", "model.layers.0.a.k", True),
        ("model.layers.0.a.k.weight", "layers.0.a.k", True),
        ("model.layers.0.e.7.up.weight", "model.layers.0.e", True),
        ("model.layers.0.a.k.weight", "model.layers.1.a.k", False),
        ("model.layers.0.a.k.weight", "model.embed_tokens", False),
    ):
        assert _lies_in(tensor, module) is inside
    with pytest.raises(UnsupportedCheckpoint, match="k_proj of the adapter .* cannot follow its base: .*convolution"):
        following.follow(checkpoint, sites, scaling, open_checkpoint(tmp_path / "k_proj"))


def test_saved_modules_and_biases_follow_like_the_base(small, tmp_path):
    base, make = small
    checkpoint = open_checkpoint(base)
    sites = find_sites(checkpoint)
    scaling = scalings(sites, adapter_proof.extreme(sites, 1), "channel", {t.name: t.shape for t in checkpoint.tensors})
    copy = tmp_path / "copy"
    shutil.copytree(make(), copy)
    name = "model.layers.0.self_attn.k_proj.weight"
    saved = {
        f"base_model.model.{name}": load_file(base / "model.safetensors")[name],
        "base_model.model.lm_head.weight": torch.ones(3, 3),
    }
    save_file(load_file(copy / "adapter_model.safetensors") | saved, copy / "adapter_model.safetensors")
    got = following.follow(checkpoint, sites, scaling, open_checkpoint(copy))
    assert got[f"base_model.model.{name}"] is scaling[name] and "base_model.model.lm_head.weight" not in got


def test_a_copy_that_meets_no_tensor_is_refused_and_a_head_of_its_own_is_not(small, tmp_path):
    base, make = small
    checkpoint = open_checkpoint(base)
    for name, tensor, is_refused in (
        ("layer", "model.language_model.layers.0.self_attn.o_projection.weight", True),
        ("tower", "model.score.weight", True),
        ("head", "score.weight", False),
        ("deep-head", "classifier.dense.weight", False),
    ):
        shutil.copytree(make(), tmp_path / name)
        path = tmp_path / name / "adapter_model.safetensors"
        save_file(load_file(path) | {f"base_model.model.{tensor}": torch.ones(3, 3)}, path)
        adapter = open_checkpoint(path.parent)
        if is_refused:
            with pytest.raises(ConfigMismatch, match="stands for no tensor of the base"):
                following.copies(checkpoint, adapter)
        else:
            assert following.copies(checkpoint, adapter) == {f"base_model.model.{tensor}": ()}


# Adapters as peft writes them


def written_by_peft(base: Path, folder: Path, seed: int = 3, **settings) -> Path:
    """An adapter of the model in ``base``, every value of it random, saved by peft."""
    from peft import LoraConfig, get_peft_model

    from wisca_core.equivalence.miniature import load

    torch.manual_seed(seed)
    model = get_peft_model(load(base), LoraConfig(r=4, lora_alpha=6, **settings), autocast_adapter_dtype=False).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ".lora_" in name and "magnitude" not in name:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
            elif parameter.requires_grad:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder, save_embedding_layers=False)
    return folder


@pytest.mark.parametrize(
    ("model_type", "settings"),
    [
        ("qwen2_5_vl", {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["o_proj"]}),
        ("gemma3", {"target_modules": ["q_proj", "o_proj"], "modules_to_save": ["v_proj"]}),
        ("llava", {"target_modules": ["q_proj", "v_proj", "up_proj"]}),
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["o_proj", "lm_head"]}),
        ("qwen2", {"target_modules": ["q_proj", "o_proj"], "bias": "all"}),
        (
            "llama",
            {
                "target_modules": ["q_proj", "o_proj", "down_proj"],
                "use_dora": True,
                "alpha_pattern": {"layers.1.self_attn.o_proj": 40, "^model.*down_proj": 3},
            },
        ),
        ("llama", {"target_modules": ["k_proj", "o_proj"], "layer_replication": [[0, 2], [0, 2], [1, 2]]}),
        ("llama", {"target_modules": ["q_proj"], "init_lora_weights": "orthogonal"}),
        ("llama", {"target_modules": ["q_proj"], "trainable_token_indices": [1, 5], "ensure_weight_tying": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(list(value)[1:]) or "plain",
)
def test_an_adapter_of_real_names_and_settings_follows_its_base(small_model, tmp_path, capsys, model_type, settings):
    base = small_model(model_type)
    adapter = written_by_peft(base, tmp_path / "adapter", **settings)
    out, beside = tmp_path / "out", tmp_path / "out-adapter"
    command = ["rescale", str(base), str(out), "--pairs", "qk,vo,mlp", "--granularity", "channel"]
    assert main([*command, "--adapter", str(adapter), "--no-check"]) == 0
    assert "wisca-" not in capsys.readouterr().out.replace("wisca-adapter", "")  # no folder of ours
    original = outputs(load_adapted(base, adapter), seed=3)
    assert difference(original, outputs(load_adapted(out, beside), seed=3)).max_rel < 1e-12
    assert difference(original, outputs(load_adapted(out, adapter), seed=3)).max_rel > 0.01  # left alone it breaks


def test_copies_are_part_of_what_the_pair_proves(small_model, tmp_path, monkeypatch):
    base = open_checkpoint(small_model("qwen2_5_vl"))
    folder = written_by_peft(base.path, tmp_path / "a", target_modules=["q_proj"], modules_to_save=["o_proj"])
    adapter, sites = open_checkpoint(folder), find_sites(base)
    assert "and its own self_attn.o_proj.weight" in pair_proof.prove_pair(base, sites, adapter).what
    right = following.follow
    forgotten = lambda *given: {name: s for name, s in right(*given).items() if ".lora_" in name}
    monkeypatch.setattr(pair_proof, "follow", forgotten)
    monkeypatch.setenv("WISCA_HOME", str(tmp_path / "home"))
    proof = pair_proof.prove_pair(base, sites, adapter)
    assert not proof.passed and proof.max_rel > 0.1


@pytest.mark.parametrize("start", following._PLAIN_START)
def test_starts_that_are_followed_leave_the_base_as_it_is(small_model, start):
    from peft import LoraConfig, get_peft_model

    from wisca_core.equivalence.miniature import load

    model = load(small_model("llama")).float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    value = {"true": True, "false": False, "none": None}.get(start, start)
    given = {"eva_config": __import__("peft").EvaConfig()} if start == "eva" else {}
    config = LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=value, **given)
    after = get_peft_model(model, config).get_base_model().state_dict()
    renamed = {name.replace(".base_layer", ""): tensor for name, tensor in after.items() if ".lora_" not in name}
    assert renamed.keys() == before.keys() and all(torch.equal(renamed[n], t) for n, t in before.items())


def test_a_product_that_cancels_is_no_difference(small_model, tmp_path):
    """B A of peft's orthogonal start is zero but for rounding: relative to itself every follower of it would be
    wrong.
    """
    from peft import LoraConfig, get_peft_model

    from wisca_core.equivalence.miniature import load

    base = small_model("llama")
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights="orthogonal")
    get_peft_model(load(base), config).save_pretrained(tmp_path / "a")
    command = ["rescale", str(base), str(tmp_path / "out"), "--granularity", "channel", "--no-check"]
    assert main([*command, "--adapter", str(tmp_path / "a")]) == 0


def test_a_lora_on_experts_is_refused_where_their_pairs_are_rescaled(small_model, tmp_path):
    """peft adapts ``mlp.experts.down_proj``, the file holds ``block_sparse_moe.experts.0.w2.weight``."""
    base = open_checkpoint(small_model("mixtral"))
    folder = written_by_peft(
        base.path, tmp_path / "a", target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"]
    )
    adapter = open_checkpoint(folder)
    for pairs, is_refused in ((("qk",), False), (("mlp",), True)):
        sites = find_sites(base, pairs=pairs)
        shapes = {t.name: t.shape for t in base.tensors}
        scaling = scalings(sites, adapter_proof.extreme(sites, 1), "channel", shapes)
        if is_refused:
            with pytest.raises(UnsupportedCheckpoint, match="many experts"):
                following.follow(base, sites, scaling, adapter)
        else:
            assert len(following.follow(base, sites, scaling, adapter)) == 2


def test_options_that_do_not_belong_are_named(small):
    from wisca_core.cli.rescale import AdapterOptions, run

    base, make = small

    def attempt(model, company):
        run(str(model), None, {}, company, None, None, None, False, True, None, True, True)

    for model, company, message in (
        (make(), AdapterOptions((str(make()),)), "is an adapter itself"),
        (base, AdapterOptions(base=str(base)), "is no adapter; --base goes with"),
        (base, AdapterOptions((str(base),)), "is a model, not a LoRA adapter"),
        (base, AdapterOptions((str(make()),), (Path("a"), Path("b"))), "--adapter-out was given 2 times"),
    ):
        with pytest.raises(BadOption, match=message):
            attempt(model, company)


def test_pairs_that_are_not_there_are_named(small, tmp_path, capsys):
    base, make = small
    for model, pairs, words in (
        (base, "lora", "this model has no adapter in it"),
        (make(), "qk,vo", "this LoRA adapter has rank channels"),
    ):
        assert main(["rescale", str(model), str(tmp_path / "out"), "--pairs", pairs]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
