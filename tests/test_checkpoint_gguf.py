"""GGUF files, written with gguf's own writer and by hand: looked at, never believed, never rescaled."""

import json
import struct
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.torch import load_file

from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import Reader, open_checkpoint
from wisca_core.cli import main
from wisca_core.equivalence.miniature import build_miniature
from wisca_core.equivalence.small_config import shrink
from wisca_core.errors import UnreadableInput, UnsupportedCheckpoint
from wisca_core.patterns.measure import measure
from wisca_core.planning.decide import decide
from wisca_core.planning.options import Options

LAYER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
HEADS, KV_HEADS = 8, 2


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """The rows of each head as llama.cpp's converter stores them: 0, d/2, 1, d/2 + 1, ..."""
    dim = len(weight) // heads
    order = [h * dim + i + half * dim // 2 for h in range(heads) for i in range(dim // 2) for half in (0, 1)]
    return weight[order]


def write(path: Path, base: Path, arch: str, kind: Type | None, **keys) -> Path:
    """The model in ``base`` as a GGUF file; matrices as ``kind``, None as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, arch)
    (
        writer.add_block_count(2),
        writer.add_embedding_length(64),
        writer.add_feed_forward_length(96),
        writer.add_context_length(64),
    )
    (
        writer.add_head_count(HEADS),
        writer.add_head_count_kv(KV_HEADS),
        writer.add_rope_freq_base(10000.0),
        writer.add_layer_norm_rms_eps(1e-5),
    )
    (
        writer.add_key_length(8),
        writer.add_token_list(["a", "bc", "\u202e"]),
        writer.add_token_scores([0.5, 1.0]),
        writer.add_bool("x.y", True),
    )
    writer.add_chat_template("x" * 10_000)
    for key, value in keys.items():
        writer.add_uint32(key.replace("__", "."), value)
    for name, tensor in load_file(base / "model.safetensors").items():
        weight, part = tensor.numpy(), name.split(".")
        if part[:2] == ["model", "layers"]:
            module = ".".join(part[3:-1])
            stored = f"blk.{part[2]}.{LAYER[module]}.{part[-1]}"
            if arch == "llama" and module in ("self_attn.q_proj", "self_attn.k_proj"):
                weight = interleaved(weight, HEADS if module.endswith("q_proj") else KV_HEADS)
        else:
            stored = OUTSIDE[name]
        if kind is not None and weight.ndim == 2:
            writer.add_tensor(stored, gguf.quants.quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, weight)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    return path


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    from safetensors.torch import save_file
    from transformers import CONFIG_MAPPING

    out = {}
    for arch in ("llama", "qwen2", "qwen3"):
        folder = tmp_path_factory.mktemp(arch)
        sizes = {
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": 8,
            "vocab_size": 61,
        }
        build_miniature(shrink(CONFIG_MAPPING[arch]().to_dict()) | sizes, folder, seed=5)
        plain = {n: t.float() for n, t in load_file(folder / "model.safetensors").items()}
        save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
        out[arch] = folder
    return out


@pytest.mark.parametrize(
    ("arch", "kind", "bound"),
    [
        ("llama", Type.Q8_0, 0.01),
        ("llama", Type.Q4_0, 0.15),
        ("llama", None, 0.0),
        ("qwen2", Type.Q5_1, 0.07),
        ("qwen3", Type.BF16, 0.004),
    ],
)
def test_a_gguf_file_is_the_model_it_was_made_of(bases, tmp_path, arch, kind, bound):
    """Every tensor within its format's rounding of the original, q and k in transformers' order of rows."""
    path = write(tmp_path / "m" / "model.gguf", bases[arch], arch, kind)
    checkpoint = open_checkpoint(path.parent)
    assert checkpoint.tensors == open_checkpoint(path).tensors and checkpoint.look_only.startswith("a GGUF file")
    original = load_file(bases[arch] / "model.safetensors")
    assert {t.name for t in checkpoint.tensors} == set(original)
    with Reader(checkpoint) as reader:
        for name, weight in original.items():
            got = reader.tensor(name)
            assert got.shape == weight.shape
            gap = (got.float() - weight).abs().max() / weight.abs().max()
            assert gap <= bound, (name, gap)
            if weight.dim() == 2:
                assert torch.equal(reader.rows(name, 3, 11), got[3:11])
                assert torch.equal(torch.cat([block.clone() for _, block in reader.blocks(name, 300)]), got)
    sites, plain = find_sites(checkpoint), find_sites(open_checkpoint(bases[arch]))
    assert sites.sites == plain.sites and len(sites.sites) == len(plain.sites) > 0
    ours, theirs = (
        decide(measure(c, sites), Options()).groups("l1") for c in (checkpoint, open_checkpoint(bases[arch]))
    )
    assert np.allclose(ours["log2_ratio"], theirs["log2_ratio"], atol=max(0.15 * bound, 1e-9))
    said = " ".join(checkpoint.remarks)
    assert ("interleaves the halves" in said) == (arch == "llama")


def test_it_is_inspected_and_never_rescaled(bases, tmp_path, capsys):
    path = write(tmp_path / "model.gguf", bases["llama"], "llama", Type.Q8_0)
    assert main(["inspect", str(path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Look only: a GGUF file (llama.cpp; F32, Q8_0)" in said and "4 pairs found" in said
    assert main(["rescale", str(path), str(tmp_path / "out")]) == 2 and not (tmp_path / "out").exists()
    assert "can be looked at, not rescaled: a GGUF file" in capsys.readouterr().err


def test_another_architecture_is_listed_under_its_own_names(bases, tmp_path, capsys):
    path = write(tmp_path / "model.gguf", bases["qwen2"], "falcon", Type.Q8_0)
    assert main(["inspect", str(path)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "general.architecture is 'falcon'" in said and "blk.*.attn_q.weight" in said and "gguf falcon" in said


def test_parts_and_several_files_are_named(bases, tmp_path):
    part = write(tmp_path / "one" / "model.gguf", bases["llama"], "llama", None, split__count=3)
    with pytest.raises(UnsupportedCheckpoint, match="one of 3 parts"):
        open_checkpoint(part)
    write(tmp_path / "two" / "a.gguf", bases["llama"], "llama", None)
    write(tmp_path / "two" / "b.gguf", bases["llama"], "llama", None)
    with pytest.raises(UnsupportedCheckpoint, match="2 GGUF files .*Give the path of one"):
        open_checkpoint(tmp_path / "two")
    (tmp_path / "m-00001-of-00002.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnreadableInput, match="one shard of several"):
        open_checkpoint(tmp_path / "m-00001-of-00002.gguf")


# Hostile and damaged files, by hand


def text(value: str | bytes) -> bytes:
    value = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(value)) + value


def head(n_tensors: int, n_keys: int, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys)


def tensor(name: str, dims=(32, 2), kind: int = 0, offset: int = 0) -> bytes:
    return (
        text(name)
        + struct.pack("<I", len(dims))
        + struct.pack(f"<{len(dims)}Q", *dims)
        + struct.pack("<IQ", kind, offset)
    )


ARRAY = struct.pack("<I", 9)
HOSTILE = {
    "empty": (b"", "it is empty"),
    "another file": (b"hello world, this is text", "does not begin with GGUF"),
    "a web page": (b"<!DOCTYPE html><html>", "web page"),
    "eight bytes": (b"GGUF" + struct.pack("<I", 3), "bytes are needed"),
    "big-endian": (b"GGUF" + struct.pack(">I", 3) + bytes(16), "big-endian"),
    "version 1": (b"GGUF" + struct.pack("<I", 1) + bytes(16), "version 1"),
    "2^60 tensors": (head(2**60, 0), "claims 1,152,921,504,606,846,976 tensors"),
    "2^63 keys": (head(0, 2**63), "keys, at most"),
    "150,000 tensors in no bytes": (head(150_000, 0), "bytes are needed"),
    "a name of 2^40 bytes": (head(1, 0) + struct.pack("<Q", 2**40), "the name of a tensor claims"),
    "a text of 2^50 bytes": (head(0, 1) + text("k") + struct.pack("<IQ", 8, 2**50), "bytes are needed"),
    "an array of 2^61 numbers": (head(0, 1) + text("k") + ARRAY + struct.pack("<IQ", 4, 2**61), "bytes are needed"),
    "an array of 2^62 texts": (head(0, 1) + text("k") + ARRAY + struct.pack("<IQ", 8, 2**62), "claims .* texts"),
    "four million empty texts and one": (
        head(0, 1) + text("k") + ARRAY + struct.pack("<IQ", 8, 4_000_001) + bytes(8 * 4_000_001),
        "claims 4,000,001 texts",
    ),
    "an array of arrays": (
        head(0, 1) + text("k") + ARRAY + struct.pack("<IQ", 9, 1) + bytes(12),
        "array of the type 9",
    ),
    "a value of type 77": (head(0, 1) + text("k") + struct.pack("<I", 77), "unknown type 77"),
    "alignment 0": (head(0, 1) + text("general.alignment") + struct.pack("<II", 4, 0), "a power of two is needed"),
    "alignment 2^31": (
        head(0, 1) + text("general.alignment") + struct.pack("<II", 4, 2**31),
        "a power of two is needed",
    ),
    "a control character": (head(1, 0) + tensor("a\nb") + bytes(999), "control or invisible"),
    "right to left": (head(1, 0) + tensor("a\u202eb") + bytes(999), "control or invisible|right-to-left"),
    "a tensor twice": (head(2, 0) + tensor("a") * 2 + bytes(999), "there twice"),
    "500 axes": (head(1, 0) + text("a") + struct.pack("<I", 500) + bytes(9999), "has 500 axes"),
    "no axes": (head(1, 0) + text("a") + struct.pack("<I", 0) + bytes(999), "has 0 axes"),
    "type 999": (head(1, 0) + tensor("a", kind=999) + bytes(999), "unknown type 999"),
    "a product that overflows": (head(1, 0) + tensor("a", (2**40, 2**40)) + bytes(999), "impossible shape"),
    "a zero dimension": (head(1, 0) + tensor("a", (0, 4)) + bytes(999), "impossible shape"),
    "rows that are no whole blocks": (head(1, 0) + tensor("a", (33, 2), kind=8) + bytes(999), "impossible shape"),
    "an offset behind the end": (head(1, 0) + tensor("a", offset=2**50) + bytes(999), "ends early"),
    "an offset near 2^64": (head(1, 0) + tensor("a", offset=2**64 - 32) + bytes(999), "ends early"),
    "two tensors in one place": (head(2, 0) + tensor("a") + tensor("b", offset=64) + bytes(999), "overlaps"),
    "cut off": (head(1, 0) + tensor("a"), "ends early"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_named_in_no_memory_and_time(tmp_path, name):
    content, message = HOSTILE[name]
    (tmp_path / "m.gguf").write_bytes(content)
    open_checkpoint_once()
    tracemalloc.start()
    with pytest.raises((UnreadableInput, UnsupportedCheckpoint), match=message):
        open_checkpoint(tmp_path / "m.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def open_checkpoint_once() -> None:
    """The gguf package is imported before memory is counted."""
    import gguf.constants  # noqa: F401


def test_every_cut_of_a_true_file_is_named(bases, tmp_path):
    whole = write(tmp_path / "model.gguf", bases["llama"], "llama", Type.Q8_0).read_bytes()
    for length in [*range(0, 600, 7), 2000, len(whole) // 2, len(whole) - 100]:
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(UnreadableInput):
            open_checkpoint(tmp_path / "cut.gguf")
    rng = np.random.default_rng(1)
    for _ in range(60):  # a flipped byte in the header is an error with a name, or a file that reads
        spoilt = bytearray(whole)
        spoilt[int(rng.integers(4, 3000))] ^= 1 << int(rng.integers(8))
        (tmp_path / "spoilt.gguf").write_bytes(spoilt)
        try:
            find_sites(open_checkpoint(tmp_path / "spoilt.gguf"))
        except (UnreadableInput, UnsupportedCheckpoint):
            pass


def test_the_config_of_a_hostile_file_ends_in_a_refusal(bases, tmp_path):
    path = write(tmp_path / "model.gguf", bases["llama"], "llama", None)
    raw = path.read_bytes()
    for key, value in (
        (b"llama.attention.head_count", 0),
        (b"llama.attention.head_count", 7),
        (b"llama.block_count", 4_000_000_000),
    ):
        at = raw.index(key + struct.pack("<I", 4)) + len(key) + 4
        path.write_bytes(raw[:at] + struct.pack("<I", value) + raw[at + 4 :])
        sites = find_sites(open_checkpoint(path))
        assert not sites.sites and sites.refusals
        assert json.loads(open_checkpoint(path).config_json)["model_type"] == "llama"
