"""Every supported model type is proved: here, or by the census that came with this very code and these versions
(``census_here``). What is proved anew must say what the census says; of the others it must say what is asked of a
proof.
"""

import json

import numpy as np
import pytest
import torch
from census_here import is_proved_here
from installed import IS_OLDER
from safetensors.torch import save_file
from transformers.models.auto import modeling_auto as auto
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from wisca_core.architecture.families import families
from wisca_core.architecture.find import _inner, find_sites
from wisca_core.architecture.site import GRANULARITIES
from wisca_core.census import released as came
from wisca_core.census.entry import pair_of
from wisca_core.checkpoint import open_checkpoint
from wisca_core.checkpoint.writer import write_weights
from wisca_core.circuits.columns import MOVED, PLACES, UNMOVED, WORDS
from wisca_core.circuits.measure import measure
from wisca_core.equivalence.bench import NOT_RUN
from wisca_core.equivalence.example import example_config
from wisca_core.equivalence.miniature import load
from wisca_core.equivalence.outputs import outputs
from wisca_core.equivalence.proof import label
from wisca_core.equivalence.proving import prove
from wisca_core.errors import ConfigMismatch, UnknownArchitecture
from wisca_core.rescale import changes, scalings

BOUND = 1e-11


# What a row does not know: none of these words may stand in a refusal of a model that the row is about.
MISFITS = (
    "is missing from the weights",
    "is not part of",
    "expected",
    "config.json gives",
    "claims",
    "not meet",
    "fit",
)


# Towers that take inputs of their own inside another model, which is proved in their place (with timm installed,
# gemma3n).
NOT_ALONE = (
    "blip_2_qformer",
    "gemma3n_audio",
    "granite_docling_vision",
    "kimi_k25_vision",
    "minicpm_ocr_vision",
    "minicpmv4_7_vision",
    "t5gemma2_encoder",
    "video_llama_3_vision",
)
# No miniature of these is built or run here, and why in the words of the refusal; a checkpoint of them is looked at,
# not rescaled.
NOT_PROVED = {
    "align": "parameters",
    "fast_vlm": "timm",
    "gemma3n": "timm",
    "perception_lm": "timm",
    "gemma4_assistant": "does not run" if IS_OLDER else "layer types",
    "gemma4_unified_assistant": "no width" if IS_OLDER else "layer types",
    "kosmos-2": "does not run",
    "sam": "does not run",
    "sam_hq": "does not run",
    "instructblipvideo": "does not run",
    "xclip": "does not run",
}


# What an older transformers builds or runs otherwise than its rows say, and the words of the refusal that is promised
# then.
NOT_YET = {
    "cohere_asr": "does not repeat its own outputs",
    "git": "does not run",
    "granite_speech": "the weights hold attention tensors of 0",
    "mllama": "does not run",
    "parakeet_encoder": "does not repeat its own outputs",
}


def _is_refused_yet(model_type, checkpoint, sites) -> bool:
    reasons = [refusal.reason for refusal in sites.refusals]
    if sites.sites:
        found = prove(checkpoint, sites)
        reasons += [] if found.passed else [found.reason]
    return any(NOT_YET[model_type] in reason for reason in reasons)


def _is_wholly_refused(model_type) -> bool:
    each = families()[model_type].each
    return bool(each) and all("True" in dict(part.refuse) for part in each)


def _has_a_class(model_type) -> bool:
    """By name: to look at the class of each would import them all, in every process that collects this file."""
    return any(model_type in names for names in LISTED)


# by the name of the type, where model_class looks for its class
LISTED = (
    auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    auto.MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING_NAMES,
    auto.MODEL_MAPPING_NAMES,
)
# Causal language models without a pair, and why; every other one has it in some layer.
WITHOUT = {
    "qk": {
        "attention-free": ("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"),
        "a norm without weights": ("deepseek_v4", "nanochat", "zaya"),
        "a clip": ("dbrx", "inkling2_text"),
    },
    "vo": {
        "attention-free": ("falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"),
        "a norm without weights": (
            "diffllama",
            "gemma4",
            "gemma4_text",
            "gemma4_unified",
            "gemma4_unified_text",
            "gemma3n_text",
            "inkling2_text",
        ),
        "values that are keys": ("deepseek_v4",),
        "a clip": ("dbrx",),
        "no rule yet": ("zaya",),
    },
}


REFUSED = [t for t in sorted(families()) if _is_wholly_refused(t)]
ALONE = [t for t in sorted(families()) if t not in (*REFUSED, *NOT_ALONE, *NOT_PROVED) and _has_a_class(t)]


def _of_every_row() -> list[str]:
    """Every causal language model, and of the rows without one the first type; the census proves each type of each
    row.
    """
    chosen = [t for t in ALONE if t in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    rows = {families()[t].name for t in chosen}
    for t in ALONE:
        if families()[t].name not in rows:
            rows.add(families()[t].name)
            chosen.append(t)
    return sorted(chosen)


@pytest.mark.parametrize("model_type", _of_every_row())
def test_every_supported_model_type_is_proved(model_type, small_model):
    """The proof itself builds a miniature, rescales every channel cell by up to 2^10 both ways, reloads and compares.

    Whatever is not a site is refused by its row with a reason; nothing is left over.
    """
    entry = came.released_entry(model_type)
    if entry is not None:
        check_entry(model_type, entry)
    if not is_proved_here(model_type):
        return
    checkpoint = open_checkpoint(small_model(model_type))
    sites = find_sites(checkpoint, pairs=("qk", "vo", "mlp"))
    if IS_OLDER and model_type in NOT_YET and _is_refused_yet(model_type, checkpoint, sites):
        return
    for refusal in sites.refusals:
        assert not any(words in refusal.reason for words in MISFITS), refusal
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        for pair, types in WITHOUT.items():
            assert any(site.key.pair == pair for site in sites.sites) != any(
                model_type in names for names in types.values()
            ), pair
    if not sites.sites:
        assert sites.refusals
        return
    found = prove(checkpoint, sites)
    if entry is not None:
        said = {f"{p.name}.{pair.pair}": bool(p.held) for pair in entry.pairs for p in pair.places if p.n_sites}
        assert said == dict.fromkeys(found.proved, True) | dict.fromkeys(dict(found.refused), False)
    # a decoder's own class never runs the attention to an encoder, nor a language model's the tower it is not fed with
    for place, reason in found.refused:
        assert NOT_RUN in reason and not place.startswith("decoder.self"), (place, reason)
    assert found.proved and {*found.proved, *dict(found.refused)} == {label(site) for site in sites.sites}, found.reason
    assert (
        0 <= found.max_rel < BOUND and found.liveness > 1e-6 and len(found.cases) >= 1 and found.largest_factor == 1024
    )


def check_entry(model_type, entry) -> None:
    """What is asked of a proof and of the sites it is about, of what the census found."""
    assert not entry.not_reached and entry.granularities == GRANULARITIES
    for pair in entry.pairs:
        assert pair == pair_of(pair.pair, pair.places, GRANULARITIES)
    places = [place for pair in entry.pairs for place in pair.places]
    for refused in (place for place in places if not place.n_sites):
        assert refused.reason and not any(words in refused.reason for words in MISFITS), refused
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        for pair, types in WITHOUT.items():
            assert any(place.n_sites for place in entry[pair].places) != any(
                model_type in names for names in types.values()
            ), pair
    sited = [place for place in places if place.n_sites]
    for place in sited:
        if place.is_idle:
            assert NOT_RUN in place.reason and not place.held and not place.name.startswith("decoder.self"), place
        else:
            assert place.held == GRANULARITIES and not place.reason, place
    assert any(place.held for place in sited) if sited else places
    if sited:
        assert 0 <= entry.max_rel < BOUND and entry.liveness > 1e-6 and entry.n_cases >= 1 and entry.n_trials >= 1


@pytest.mark.parametrize("change", ["code", "versions", "no such type"])
def test_whatever_the_census_is_not_about_is_proved_here(monkeypatch, change):
    types = _of_every_row()
    if change == "code":
        monkeypatch.setattr(came, "deciding_code", lambda rows: "other code")
    elif change == "versions":
        monkeypatch.setattr(came, "version", lambda name: "1.2.3")
    else:
        monkeypatch.setattr(came, "_all", dict)
    came.ground_digest.cache_clear()
    try:
        assert all(map(is_proved_here, types))
    finally:
        came.ground_digest.cache_clear()


def _one_of_every_row() -> list[str]:
    return sorted({families()[t].name: t for t in reversed(_of_every_row())}.values())


@pytest.mark.parametrize("model_type", _one_of_every_row())
def test_no_rescale_moves_what_heads_compute(model_type, small_model, tmp_path):
    """Extreme factors at the finest granularity: the columns that are said to stay do, and those that are said to move
    do.
    """
    checkpoint = open_checkpoint(small_model(model_type))
    sites = find_sites(checkpoint)
    rng = np.random.default_rng(1)
    factors = {site.name: np.exp2(rng.uniform(-10, 10, site.n_cells("channel"))) for site in sites.sites}
    shapes = {tensor.name: tensor.shape for tensor in checkpoint.tensors}
    (tmp_path / "rescaled").mkdir()
    write_weights(checkpoint, changes(scalings(sites, factors, "channel", shapes)), tmp_path / "rescaled")
    (tmp_path / "rescaled" / "config.json").write_text(checkpoint.config_json)
    before, after = (
        measure(one, find_sites(one)).table for one in (checkpoint, open_checkpoint(tmp_path / "rescaled"))
    )
    assert len(before) or not sites.sites
    assert before[[c.name for c in (*PLACES, *WORDS)]].equals(after[[c.name for c in (*PLACES, *WORDS)]])
    for column in UNMOVED:
        one, other = before[column.name].to_numpy(), after[column.name].to_numpy()
        bound = 1e-6 if column.name in ("qk_effective_rank", "ov_effective_rank", "ov_copying") else 1e-10
        np.testing.assert_allclose(other, one, rtol=bound, atol=bound if column.name == "ov_copying" else 0)
    for column in MOVED:
        one, other = before[column.name].to_numpy(), after[column.name].to_numpy()
        assert (np.abs(other / one - 1)[np.isfinite(one)] > 1e-9).all(), column.name


@pytest.mark.parametrize("pair, at_most", [("qk", 17), ("vo", 20)])
def test_nearly_all_of_the_causal_language_models_have_the_pair(pair, at_most):
    """What the tests above hold each type to, counted; transformers 5.23 has 189."""
    without = {name for names in WITHOUT[pair].values() for name in names}
    assert len(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - (set(ALONE) - without)) <= at_most


def test_every_other_row_is_of_a_part_of_a_model_that_is_proved():
    def inside(model_type, config):
        row = families()[model_type]
        for key in {one.config for one in (*row.towers, *row.parts) if one.config}:
            inner = _inner(config, key) or {}
            name = inner.get("model_type", "")
            yield name
            if name in families():
                yield from inside(name, inner)

    rest = set(families()) - {*ALONE, *REFUSED, *NOT_PROVED}
    parts = {
        name
        for outer in (*ALONE, *NOT_PROVED)
        for name in inside(outer, example_config(outer) if _is_outer(outer) else {})
    }
    assert rest <= parts, sorted(rest - parts)


def _is_outer(model_type) -> bool:
    return any(one.config for one in (*families()[model_type].towers, *families()[model_type].parts))


@pytest.mark.parametrize("model_type", REFUSED)
def test_a_model_without_a_rule_is_refused_by_its_row(model_type, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    save_file({"weight": torch.ones(4, 4)}, tmp_path / "model.safetensors")
    sites = find_sites(open_checkpoint(tmp_path))
    ((_, reason),) = families()[model_type].each[0].refuse
    assert not sites.sites and reason in sites.refusals[0].reason


@pytest.mark.parametrize("model_type", NOT_PROVED)
def test_what_cannot_be_run_here_says_why(model_type, small_model):
    with pytest.raises((ConfigMismatch, UnknownArchitecture), match=NOT_PROVED[model_type]):
        outputs(load(small_model(model_type)), seed=2)
