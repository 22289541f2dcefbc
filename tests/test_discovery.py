"""Model types that no file has: found by trial under the proof, or refused with what came nearest."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from wisca_core.architecture import discovery
from wisca_core.architecture.discovery import is_unknown, kept_discovery, sites_of
from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import open_checkpoint
from wisca_core.equivalence.miniature import build_miniature
from wisca_core.equivalence.proving import prove
from wisca_core.equivalence.small_config import shrink
from wisca_core.equivalence.trial import discover


class NovelConfig(LlamaConfig):
    model_type = "novel_decoder"


class NovelForCausalLM(LlamaForCausalLM):
    config_class = NovelConfig


class ClippedConfig(LlamaConfig):
    model_type = "clipped_decoder"


class ClippedAttention(LlamaAttention):
    """Clamps its values and its queries: no factor leaves the function alone."""

    def __init__(self, config, layer_idx):
        super().__init__(config, layer_idx)
        for module in (self.q_proj, self.v_proj):
            module.register_forward_hook(lambda _, __, out: out.clamp(-0.5, 0.5))


class ClippedForCausalLM(LlamaForCausalLM):
    config_class = ClippedConfig

    def __init__(self, config):
        super().__init__(config)
        for i, layer in enumerate(self.model.layers):
            layer.self_attn = ClippedAttention(config, i)


@pytest.fixture(scope="module", autouse=True)
def registered():
    for config, model in ((NovelConfig, NovelForCausalLM), (ClippedConfig, ClippedForCausalLM)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForCausalLM.register(config, model, exist_ok=True)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("WISCA_HOME", str(tmp_path / "home"))


def made(config_class, folder, **changes):
    folder.mkdir()
    config = config_class(num_attention_heads=12, num_key_value_heads=4, hidden_size=192, **changes).to_dict()
    build_miniature(shrink(config), folder, seed=3)
    return open_checkpoint(folder)


def test_a_class_that_no_file_knows_is_discovered_and_proved(tmp_path, home):
    checkpoint = made(NovelConfig, tmp_path / "novel", attention_bias=True)
    assert is_unknown(checkpoint) and find_sites(checkpoint).sites == ()
    assert sites_of(checkpoint).sites == ()  # nothing is tried unasked
    sites = sites_of(checkpoint, search=discover)
    assert [s.name for s in sites.sites] == [f"decoder.{i}.self.{pair}" for i in (0, 1) for pair in ("qk", "vo")]
    assert sites.family == "discovered" and "Discovered" in sites.remarks[0] and "half" in sites.remarks[0]
    qk = sites["decoder.0.self.qk"]
    assert qk.rotary[:2] == ("half", 8) and {leg.tensor[-11:] for leg in qk.legs if not leg.measured} == {
        "q_proj.bias",
        "k_proj.bias",
    }
    found = prove(checkpoint, sites)
    assert found.passed and found.max_rel < 1e-12 and found.rule == "discovered"
    assert kept_discovery(checkpoint) == discover(checkpoint) and sites_of(checkpoint) == sites


def test_a_class_that_clips_is_refused_with_what_came_nearest(tmp_path, home):
    checkpoint = made(ClippedConfig, tmp_path / "clipped")
    sites = sites_of(checkpoint, search=discover)
    assert sites.sites == () and [r.what for r in sites.refusals] == ["model"]
    assert "no site rule" in sites.refusals[0].reason and "none keeps the function" in sites.refusals[0].reason
    assert "relative" in sites.refusals[0].reason


def test_without_a_class_nothing_is_tried_and_the_reason_is_kept(tmp_path, home):
    folder = tmp_path / "foreign"
    folder.mkdir()
    checkpoint = made(NovelConfig, tmp_path / "novel")
    (folder / "config.json").write_text(json.dumps(checkpoint.config | {"model_type": "foreign_decoder"}))
    (folder / "model.safetensors").write_bytes((tmp_path / "novel" / "model.safetensors").read_bytes())
    found = discover(open_checkpoint(folder))
    assert (
        found.family is None
        and "installed transformers does not know" in found.words
        and kept_discovery(open_checkpoint(folder)) == found
    )


@pytest.mark.parametrize(
    "model_type, words",
    [
        ("qwen3", "gains of q_norm"),
        ("gpt_neox", "layout per_group"),
        ("gptj", "interleaved"),
        ("gemma3_text", "less one"),
    ],
)
def test_known_architectures_would_be_discovered_too(model_type, words, small_model, monkeypatch, home):
    """With their row taken away; the ties found are those of the row."""
    checkpoint = open_checkpoint(small_model(model_type))
    right = find_sites(checkpoint)
    rows = {name: family for name, family in discovery.families().items() if name != model_type}
    monkeypatch.setattr(discovery, "families", lambda: rows)
    sites = sites_of(checkpoint, search=discover)
    assert words in sites.remarks[0], sites
    for site in right.sites:
        assert torch.equal(torch.tensor(sites[site.name].labels("channel")), torch.tensor(site.labels("channel"))), (
            site.name
        )
        assert sites[site.name].live == site.live
