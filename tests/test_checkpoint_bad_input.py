"""Damaged and hostile weight files, folders and config.json: a named error that says what, where and what to do."""

import json
import os
import re
import struct
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from wisca_core.checkpoint import Reader, open_checkpoint, read_header
from wisca_core.errors import UnreadableInput, UnsafeInput, UnsupportedCheckpoint, WiscaError


def file_bytes(header: object, n_data: int) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + bytes(n_data)


def entry(dtype: object = "F32", shape: object = (2, 2), offsets: object = (0, 16)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = file_bytes({"w": entry()}, 16)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 12345\n"
DEEP = b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
DIGITS = b'{"w":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}'

BAD_FILES = {
    "1 empty": (b"", "not a safetensors file: it is empty"),
    "2 seven bytes": (b"\1\0\0\0\0\0\0", "7 bytes, fewer than 8"),
    "3 truncated data": (
        GOOD[:-1],
        f"ends early: tensor w needs the file to have {len(GOOD)} bytes, it has {len(GOOD) - 1}",
    ),
    "3 truncated header": (GOOD[:30], r"ends early: its header alone needs \d+ bytes, the file has 30"),
    "4 length 2^63": (struct.pack("<Q", 2**63) + b"{}", "header length impossible"),
    "5 length 2^64-1": (struct.pack("<Q", 2**64 - 1) + b"{}", "header length impossible"),
    "6 web page": (b"<!DOCTYPE html><html><body>404</body></html>", "this is a web page, not weights"),
    "6 web page after blanks": (b"\n\n  <html lang=en>" + bytes(100), "this is a web page"),
    "7 git-lfs pointer": (LFS, "git-lfs pointer, not weights. Run `git lfs pull`"),
    "8 overlap": (file_bytes({"a": entry(), "b": entry(offsets=(12, 28))}, 28), "tensor b overlaps a"),
    "8 same place": (file_bytes({"a": entry(), "b": entry()}, 16), "tensor b overlaps a"),
    "9 hole": (file_bytes({"a": entry(), "b": entry(offsets=(20, 36))}, 36), "tensor b leaves a hole of 4 bytes"),
    "9 hole before the first": (file_bytes({"a": entry(offsets=(4, 20))}, 20), "tensor a leaves a hole of 4 bytes"),
    "10 trailing bytes": (GOOD + b"xyz", r"3 trailing bytes behind the last tensor \(w\)"),
    "11 product overflow": (file_bytes({"w": entry(shape=[2**40, 2**40])}, 16), "tensor w has the shape .* overflows"),
    "11 product overflow behind a zero": (
        file_bytes({"w": entry(shape=[0, 2**40, 2**40], offsets=(0, 0))}, 0),
        "tensor w has the shape .* overflows",
    ),
    "17 nine megabytes of empty lists": (
        file_bytes(b'{"__metadata__":[' + b"[]," * 3_000_001 + b"[]]}", 0),
        "holds about 6,000,005 values, at most 3,000,000",
    ),
    "12 more than the file": (
        file_bytes({"w": entry(shape=[4, 4], offsets=(0, 64))}, 16),
        "ends early: tensor w needs",
    ),
    "12 more than its offsets": (
        file_bytes({"w": entry(shape=[4, 4])}, 16),
        "tensor w is F32 .*needs 64 bytes; its data_offsets give 16",
    ),
    "13 negative dimension": (file_bytes({"w": entry(shape=[-2, -2])}, 16), "tensor w has a negative dimension"),
    "13 negative offset": (file_bytes({"w": entry(offsets=(-16, 0))}, 16), "tensor w has impossible data_offsets"),
    "14 unknown dtype": (file_bytes({"w": entry("F31")}, 16), "tensor w has the unknown dtype 'F31'; known are .*BF16"),
    "14 dtype a list": (file_bytes({"w": entry(["F32"])}, 16), "tensor w has the unknown dtype"),
    "15 invalid UTF-8": (file_bytes(b'{"\xff\xfe":1}', 0), "header: not valid UTF-8 at byte 2"),
    "16 nested 100,000 deep": (file_bytes(DEEP, 0), "brackets nest deeper than 64"),
    "16 nested, never closed": (file_bytes(b'{"w":' + b'{"a":' * 100_000, 0), "brackets nest deeper than 64"),
    "16 quotes that never close": (file_bytes(b'{"' + b'\\"' * 300_000, 0), "not valid JSON"),
    "17 5,000 digits": (file_bytes(DIGITS, 16), "an integer of 5000 digits"),
    "18 header over 100 MB": (
        struct.pack("<Q", 100_000_001) + b"{}",
        "100000001 bytes is too large; .* allows 100000000",
    ),
    "19 name of 513 characters": (file_bytes({"n" * 513: entry()}, 16), "is 513 characters long, at most 512"),
    "19 name with a control character": (file_bytes({"a\x1b[2Jb": entry()}, 16), r"'a\\\\x1b\[2Jb' has control"),
    "19 name with a direction mark": (file_bytes({"a\u202eb": entry()}, 16), "u202eb' has control or invisible"),
    "19 name with right-to-left letters": (file_bytes({"a\u05d0b": entry()}, 16), "u05d0b' has right-to-left"),
    "19 name with half a character": (file_bytes(b'{"a\\ud800":{}}', 0), "has control or invisible"),
    "21 duplicate keys": (
        file_bytes(b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"w":{}}', 16),
        "the key 'w' is there twice",
    ),
    "not an object": (file_bytes(b"[1, 2]  ", 0), "header does not begin with '{'"),
    "entry not an object": (file_bytes({"w": 3}, 0), "tensor w does not have exactly dtype, shape and data_offsets"),
    "shape of booleans": (file_bytes({"w": entry(shape=[True, 4])}, 16), "shape that is not a list of integers"),
    "100 axes": (file_bytes({"w": entry(shape=[1] * 100, offsets=(0, 4))}, 4), "has 100 axes, at most 64"),
    "metadata of numbers": (file_bytes({"__metadata__": {"a": 1}}, 0), "__metadata__ is not an object of strings"),
    "no tensors": (file_bytes({}, 0), "holds no tensors"),
    "a zip": (b"PK\x03\x04" + bytes(100), "a zip archive, as torch.save writes"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_damaged_safetensors_file_is_refused_by_name(tmp_path, case):
    content, message = BAD_FILES[case]
    (tmp_path / "model.safetensors").write_bytes(content)
    started = time.perf_counter()
    with pytest.raises(UnreadableInput, match=message) as caught:
        open_checkpoint(tmp_path)
    assert time.perf_counter() - started < 5
    assert "model.safetensors" in str(caught.value) and str(caught.value).endswith(".")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 800


def test_gguf_bytes_under_a_safetensors_name_are_named(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"GGUF\3\0\0\0" + bytes(100))
    with pytest.raises(UnsupportedCheckpoint, match="GGUF"):
        open_checkpoint(tmp_path)


def test_a_zero_size_tensor_is_listed_and_named_as_skipped(tmp_path):
    save_file({"empty": torch.empty(0, 4), "w": torch.ones(2)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.by_name["empty"].n_bytes == 0
    assert checkpoint.remarks == ("Skipped, they hold no values: empty.",)


def test_a_header_of_100_000_tensors_is_read_in_seconds(tmp_path):
    n = 100_000
    header = {f"model.layers.{i}.weight": entry("BF16", [8, 16], [256 * i, 256 * i + 256]) for i in range(n)}
    (tmp_path / "model.safetensors").write_bytes(file_bytes(header, 0))
    with open(tmp_path / "model.safetensors", "r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) + 256 * n)
    started = time.process_time()
    assert len(read_header(tmp_path, "model.safetensors").tensors) == n
    assert time.process_time() - started < 5  # about 0.8 where measured; a second reading of the header would not show


SMALL = file_bytes({"a": entry(), "b": entry("BF16", [2], [16, 20]), "__metadata__": {"format": "pt"}}, 20)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_bit_flips_and_noise_either_parse_or_raise_a_named_error(tmp_path, data):
    content = bytearray(SMALL)
    for at in data.draw(st.lists(st.integers(0, 8 * len(SMALL) - 1), max_size=4)):
        content[at // 8] ^= 1 << at % 8
    noise = data.draw(st.binary(max_size=40))
    at = data.draw(st.integers(0, len(content)))
    content[at : at + data.draw(st.integers(0, 40))] = noise
    if data.draw(st.booleans()):  # keep the length right, so that the noise reaches the parser
        content[:8] = struct.pack("<Q", max(len(content) - 28, 2))
    (tmp_path / "model.safetensors").write_bytes(content)
    try:
        tensors = open_checkpoint(tmp_path).tensors
    except WiscaError as error:
        assert str(error).isprintable()
    else:
        assert sum(tensor.n_bytes for tensor in tensors) + min(t.offset for t in tensors) == len(content)


# Folders


def sharded(folder: Path, files: dict[str, dict[str, torch.Tensor]], weight_map: dict | None = None) -> Path:
    for name, tensors in files.items():
        save_file(tensors, folder / name)
    weight_map = weight_map or {tensor: name for name, tensors in files.items() for tensor in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


ONE, TWO, THREE = (f"model-0000{k}-of-00003.safetensors" for k in (1, 2, 3))
SHARDS = {ONE: {"a": torch.ones(2)}, TWO: {"b": torch.ones(2)}, THREE: {"c": torch.ones(2)}}


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/../../x", "..", "C:\\x", "\\\\host\\x", "x\0y", ""]
)
def test_an_index_entry_that_points_outside_is_refused(tmp_path, name):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    sharded(folder, {ONE: {"a": torch.ones(2)}}, {"a": name})
    with pytest.raises(UnsafeInput, match="points outside the model folder.*nothing was read"):
        open_checkpoint(folder)


def test_a_link_out_of_the_folder_is_refused_and_a_link_inside_is_followed(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(2)}, tmp_path / "outside.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(UnsafeInput, match=r"points outside the model folder \(to .*outside.safetensors\)"):
        open_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    save_file({"a": torch.ones(2)}, folder / "weights.bin.real")
    (folder / "model.safetensors").symlink_to("weights.bin.real")
    assert open_checkpoint(folder).weight_files == ("model.safetensors",)


def test_a_linked_config_out_of_the_folder_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.ones(2)}, folder / "model.safetensors")
    (folder / "config.json").symlink_to(tmp_path / "config.json")
    with pytest.raises(UnsafeInput, match="config.json"):
        open_checkpoint(folder)


def test_hub_cache_links_into_the_blobs_of_the_same_repository_are_followed_and_no_others(tmp_path):
    for repo in ("models--a--b", "models--c--d"):
        (tmp_path / repo / "blobs").mkdir(parents=True)
        (tmp_path / repo / "snapshots" / "abc").mkdir(parents=True)
        save_file({repo: torch.ones(2)}, tmp_path / repo / "blobs" / "0123")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "abc"
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert [t.name for t in open_checkpoint(snapshot).tensors] == ["models--a--b"]
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to("../../../models--c--d/blobs/0123")
    with pytest.raises(UnsafeInput, match="points outside"):
        open_checkpoint(snapshot)


def test_a_missing_shard_is_counted_and_named(tmp_path):
    (sharded(tmp_path, SHARDS) / TWO).unlink()
    with pytest.raises(UnreadableInput, match=f"shard 2 of 3 missing: {TWO}"):
        open_checkpoint(tmp_path)


def test_an_index_that_names_an_absent_tensor_or_lacks_one_is_said_and_blocks_no_look(tmp_path):
    sharded(tmp_path, SHARDS, {"a": ONE, "b": TWO, "c": THREE, "d": TWO})
    checkpoint = open_checkpoint(tmp_path)
    assert [t.name for t in checkpoint.tensors] == ["a", "b", "c"] and not checkpoint.look_only
    assert "in no shard: d. What needs them is refused." in checkpoint.remarks[0]
    sharded(tmp_path, SHARDS, {"a": ONE, "b": THREE, "x": TWO})
    checkpoint = open_checkpoint(tmp_path)
    assert [t.name for t in checkpoint.tensors] == ["a", "b", "c"]
    absent, unnamed, elsewhere = checkpoint.remarks
    assert (
        ": x." in absent and "not named in model.safetensors.index.json: c." in unnamed and elsewhere.endswith(": b.")
    )


def test_a_tensor_in_two_shards_is_looked_at_where_the_index_says_and_never_rescaled(tmp_path):
    both = {ONE: {"a": torch.ones(2), "c": torch.ones(2)}, TWO: {"a": torch.zeros(2), "b": torch.ones(2)}}
    for says, value in ((ONE, 1.0), (TWO, 0.0)):
        sharded(tmp_path, both, {"a": says, "b": TWO, "c": ONE})
        checkpoint = open_checkpoint(tmp_path)
        with Reader(checkpoint) as read:
            assert read.tensor("a").tolist() == [value] * 2
        with pytest.raises(UnsupportedCheckpoint, match="looked at, not rescaled: a is in more than one shard"):
            checkpoint.check_rescalable()


@pytest.mark.parametrize(
    "content", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "[]", '{"weight_map": ', "{" * 9999]
)
def test_a_damaged_index_is_refused(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UnreadableInput, match=r"model.safetensors.index.json: .*\."):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "pytorch_model.bin"])
@pytest.mark.parametrize("kind", ["fifo", "folder", "device", "link to itself"])
def test_only_regular_files_are_opened(tmp_path, name, kind):
    if name == "config.json":
        save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    if kind == "fifo":
        os.mkfifo(tmp_path / name)
    elif kind == "folder":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).symlink_to("/dev/zero" if kind == "device" else name)
    words = {"fifo": "not a regular file but a named pipe", "folder": "not a regular file but a folder"}
    with pytest.raises(UnreadableInput, match=words.get(kind, "points outside|cannot be opened")) as caught:
        open_checkpoint(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null"])
def test_a_device_as_the_model_is_not_opened(path):
    with pytest.raises(UnreadableInput, match="not a regular file but a device"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "JSON list, expected an object"),
        (b"", "not valid JSON"),
        (b'{"a": ' + b"[" * 100_000, "nest deeper than 64"),
        (b'{"a": ' + b"1" * 5000 + b"}", "an integer of 5000 digits"),
        (b'{"a": "\xff"}', "not valid UTF-8"),
        (LFS, "git-lfs pointer"),
        (b'{"a": "' + b"x" * 10_000_000 + b'"}', "at most 10000000 are read"),
    ],
)
def test_a_damaged_config_is_refused(tmp_path, content, message):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UnreadableInput, match=f"config.json: .*{message}"):
        open_checkpoint(tmp_path)


def test_a_config_may_be_missing_and_is_otherwise_kept_as_written(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    assert (open_checkpoint(tmp_path).config_json, open_checkpoint(tmp_path).config) == ("", {})
    (tmp_path / "config.json").write_text('{"limit": Infinity,  "a": "[", "auto_map": {"AutoModel": "x.py"}}')
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == {"limit": float("inf"), "a": "[", "auto_map": {"AutoModel": "x.py"}}
    assert checkpoint.config_json.count("  ") == 1


# What people point at that is no model


def test_the_folder_of_a_training_names_its_checkpoints():
    with pytest.raises(
        UnreadableInput, match="there are models in checkpoint-0, .* Open one of them.*wisca trajectory"
    ):
        open_checkpoint(Path("sample_runs/gqa-docs"))


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        ([], UnreadableInput, "looked for model.safetensors.*it is empty"),
        (["notes.txt", "a.csv"], UnreadableInput, "no model weights: looked for .*; it has a.csv, notes.txt"),
        (["adapter_model.safetensors"], UnreadableInput, "an adapter without adapter_config.json"),
        (["model-Q4.gguf"], UnreadableInput, "not a GGUF file"),
        (["model-Q4.gguf", "model-Q8.gguf"], UnsupportedCheckpoint, "2 GGUF files"),
        (["events.out.tfevents.1.host"], UnreadableInput, "TensorBoard logs"),
        ([".metadata", "__0_0.distcp"], UnreadableInput, ".metadata: damaged"),
        (["model_index.json"], UnsupportedCheckpoint, "diffusers"),
        (["tf_model.h5"], UnsupportedCheckpoint, "TensorFlow"),
        (["a.safetensors", "b.safetensors"], UnreadableInput, "2 .safetensors files .* no single index"),
        ([ONE, TWO, THREE], UnreadableInput, "3 .safetensors files .* no single index"),
        ([ONE], UnreadableInput, "no single index"),
    ],
)
def test_a_folder_without_weights_is_named_for_what_it_is(tmp_path, names, error, message):
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(error, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("model.gguf", UnreadableInput, "not a GGUF file"),
        ("adapter_model.safetensors", UnreadableInput, "an adapter without adapter_config.json"),
        (ONE, UnreadableInput, "one shard of several.*Give the folder"),
        ("config.json", UnreadableInput, "not a weight file"),
    ],
)
def test_a_file_that_is_no_whole_model_is_named(tmp_path, name, error, message):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(error, match=message):
        open_checkpoint(tmp_path / name)


@pytest.mark.parametrize("path", ["", "no/such/folder/here", "a\0b", "~no-such-user-here/model", "x" * 5000])
def test_a_path_that_does_not_exist_says_what_to_give(path):
    with pytest.raises(UnreadableInput, match=r"Give a model folder"):
        open_checkpoint(path)


def test_a_hub_id_without_its_prefix_is_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnreadableInput, match=re.escape("For a model on the hub write hub:owner/name.")):
        open_checkpoint("owner/name")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    save_file({"a": torch.ones(2)}, tmp_path / "owner" / "name" / "model.safetensors")
    assert open_checkpoint("owner/name").path == Path(os.path.realpath(tmp_path / "owner" / "name"))
