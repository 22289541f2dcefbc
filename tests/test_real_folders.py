"""Folders of every kind of model as transformers writes them, taken the whole way: rescale with its full check,
verify.
"""

import json

import pytest
from real_folders import KINDS, real_folder

from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import open_checkpoint
from wisca_core.cli import main
from wisca_core.equivalence.proof import label
from wisca_core.equivalence.proving import prove
from wisca_core.equivalence.small_config import shrink

BOUND = 1e-11

# what the full check counts, and what it compares
CHECKED = {
    "vit": ("4 pictures", "features"),
    "clip": ("992 tokens and 4 pictures", "features"),
    "llava": ("992 tokens and 3 pictures", "logits and features"),
    "gemma3": ("992 tokens and 3 pictures", "logits and features"),
    "whisper": ("114 tokens and 3 sounds", "logits"),
    "wav2vec2": ("5 sounds", "features"),
}


@pytest.mark.parametrize("kind", CHECKED)
def test_every_kind_of_model_is_rescaled_checked_and_verified(kind, tmp_path, capsys):
    source, out = real_folder(kind, tmp_path / "model"), tmp_path / "out"
    assert main(["rescale", str(source), str(out), "--exact"]) == 0
    check = json.loads((out / "wisca_report.json").read_text())["full_check"]
    assert check["bit_identical"] and check["n_equal"] == check["n_values"] >= 40
    assert (check["counted"], check["outputs"]) == CHECKED[kind] and check["kernels"] == ["eager", "sdpa"]
    said = capsys.readouterr().out
    assert "bit-identical in F32, with eager attention and sdpa" in said
    assert "attention kernels other than eager and sdpa" in said and "other than eager\n" not in said
    assert main(["verify", str(source), str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "bit-identical"


# Legal values that a type's default config does not have, or has at other sizes.
@pytest.mark.parametrize("kind", ["stablelm", "cohere", "musicgen_melody", "big_bird", "bamba"])
def test_a_folder_is_proved_whatever_its_sizes_are(kind, tmp_path):
    checkpoint = open_checkpoint(real_folder(kind, tmp_path))
    sites = find_sites(checkpoint)
    proof = prove(checkpoint, sites)
    assert sites.sites and not sites.refusals and proof.passed and proof.max_rel < BOUND, proof.reason


@pytest.mark.parametrize("kind", ["olmo", "dbrx"])
def test_clipped_queries_keys_and_values_refuse_those_pairs_and_no_others(kind, tmp_path):
    checkpoint = open_checkpoint(real_folder(kind, tmp_path))
    sites = find_sites(checkpoint, pairs=("qk", "vo", "mlp"))
    assert {r.what.split(".")[3] for r in sites.refusals} == {"qk", "vo"}
    assert all(r.reason.startswith("clip_qkv clamps") for r in sites.refusals)
    proof = prove(checkpoint, sites)
    assert proof.passed and {label(site) for site in sites.sites} == set(proof.proved) == {"decoder.none.mlp"}


def test_infinity_as_transformers_writes_it_is_read_as_a_number(tmp_path):
    source = real_folder("bamba", tmp_path)
    assert '"__float__": "Infinity"' in (source / "config.json").read_text()
    config = open_checkpoint(source).config
    assert config["time_step_limit"] == [0.0, float("inf")] == shrink(config)["time_step_limit"]


@pytest.mark.parametrize(
    "kind, keys, expected",
    [
        ("qwen2_vl", ("text_config", "rope_parameters", "mrope_section"), [2, 1, 1]),  # of 4 pairs, not of 2 layers
        ("wav2vec2", ("conv_kernel",), [10, 3, 3, 3, 3, 2, 2]),
    ],
)
def test_a_list_as_long_as_there_are_layers_by_chance_is_not_cut(kind, keys, expected):
    small = shrink(KINDS[kind][1]().to_dict())
    for key in keys:
        small = small[key]
    assert small == expected
