"""An export is whole or absent: what is written, byte by byte, and that nothing is left when it stops."""

import errno
import hashlib
import json
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from wisca_core.checkpoint import open_checkpoint
from wisca_core.equivalence.miniature import load
from wisca_core.equivalence.outputs import difference, outputs
from wisca_core.equivalence.proving import prove
from wisca_core.errors import Cancelled, CheckpointChanged, NothingToRescale, OutputRefused, PlanMismatch, ProofFailed
from wisca_core.exporting import export as export_module
from wisca_core.exporting.card import with_header
from wisca_core.exporting.export import export
from wisca_core.exporting.picture import factors_svg
from wisca_core.exporting.place import is_running
from wisca_core.exporting.preview import preview
from wisca_core.planning.decide import decide
from wisca_core.planning.factors import Factors
from wisca_core.planning.options import Options
from wisca_core.planning.plan import Plan, decision_of, make_plan, save_plan, undo_plan

CARD = "---\nlicense: mit\ntags: [a, b]\n---\n\n# A model\r\n\r\nWith Windows line ends and a caf\u00e9.\r\n"
TAGGED = CARD.replace("[a, b]", "[a, b, wisca]")


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def planned(opened, **options):
    return make_plan(decide(opened.patterns, Options(**options)))


def run(opened, plan, out, **more):
    return export(opened.checkpoint, opened.sites, plan, out, prove(opened.checkpoint, opened.sites), **more)


@pytest.fixture(scope="module")
def source(small_model, tmp_path_factory) -> Path:
    """A sharded bf16 folder as people have them: metadata, nested folders, links, other copies of the weights,
    states.
    """
    folder = tmp_path_factory.mktemp("people") / "model"
    small = small_model("llama", torch.bfloat16, num_key_value_heads=8, attention_bias=True)
    tensors = load_file(small / "model.safetensors")
    folder.mkdir()
    shutil.copyfile(small / "config.json", folder / "config.json")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({n: tensors[n] for n in part}, folder / file, metadata={"format": "pt", "of": "a person"})
    index = {"metadata": {"total_size": 7}, "weight_map": {n: f for f, part in parts.items() for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "README.md").write_bytes(CARD.encode())
    (folder / "tokenizer.model").write_bytes(b"\x00\x01\xff")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling": "mean"}')
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "notes.txt").write_text("kept")
    for name in (
        "pytorch_model.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        "model.gguf",
        "onnx/model.onnx",
        "original/consolidated.00.pth",
        "optimizer.pt",
        "checkpoint-5/model.safetensors",
        "wisca_report.json",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"old")
    for name in ("training_args.bin", "rng_state.pth", "scheduler.pt"):
        (folder / name).write_bytes(b"state")
    (folder / "vocab-real.json").write_text('{"a": 0}')
    (folder / "vocab.json").symlink_to("vocab-real.json")
    (folder / "secret").symlink_to("/etc/hostname")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    return folder


@pytest.fixture(scope="module")
def done(source, look, tmp_path_factory) -> Path:
    opened = look(source)
    return run(opened, planned(opened, granularity="group"), tmp_path_factory.mktemp("done") / "out").parent


def test_every_file_is_copied_byte_for_byte_left_out_or_rewritten(source, done):
    before, after = files(source), files(done)
    left_out = {
        "pytorch_model.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        "model.gguf",
        "onnx/model.onnx",
        "original/consolidated.00.pth",
        "optimizer.pt",
        "checkpoint-5/model.safetensors",
        "secret",
    }
    assert after.keys() == before.keys() - left_out - {".git/HEAD"} | {"wisca_factors.svg"}
    rewritten = {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "README.md",
        "wisca_factors.svg",
        "wisca_report.json",
    }
    for name in after.keys() - rewritten:
        assert after[name] == before[name], name
    report = json.loads((done / "wisca_report.json").read_text())
    assert {name for name, _ in report["files"]["left_out"]} == left_out | {"wisca_report.json"}
    reasons = dict(report["files"]["left_out"])
    assert (
        "optimiser state" in reasons["optimizer.pt"]
        and "another copy" in reasons["tf_model.h5"]
        and "link" in reasons["secret"]
    )
    assert set(report["files"]["copied"]) == after.keys() - rewritten | {"README.md"}


def test_links_become_real_files_and_everything_can_be_read(done):
    for path in done.rglob("*"):
        mode = path.lstat().st_mode
        assert not stat.S_ISLNK(mode)
        assert mode & 0o400 and (not stat.S_ISDIR(mode) or mode & 0o500 == 0o500)
        if stat.S_ISREG(mode):
            umask = os.umask(0)
            os.umask(umask)
            assert stat.S_IMODE(mode) == (0o666 & ~umask if path.suffix != ".safetensors" else 0o644 & ~umask), path


def test_headers_metadata_and_untouched_tensors_keep_every_byte(source, done, look):
    touched = set(planned(look(source), granularity="group").tensors)
    opened = open_checkpoint(source)
    for file in opened.weight_files:
        before, after = (source / file).read_bytes(), (done / file).read_bytes()
        head = 8 + struct.unpack("<Q", before[:8])[0]
        assert len(before) == len(after) and before[:head] == after[:head]
        for tensor in opened.tensors:
            if tensor.file == file:
                part = slice(tensor.offset, tensor.offset + tensor.n_bytes)
                assert (before[part] == after[part]) is (tensor.name not in touched), tensor.name
        with safe_open(done / file, "pt") as read:
            assert read.metadata() == {"format": "pt", "of": "a person"}
    assert len(touched) == 14


def test_the_values_are_those_of_the_plan_worked_out_here(source, done, look):
    """Rounded once from float64: bf16 of q times s of its KV head, k divided by it."""
    opened = look(source)
    plan = planned(opened, granularity="group")
    before, after = (
        {n: t for f in open_checkpoint(p).weight_files for n, t in load_file(p / f).items()} for p in (source, done)
    )
    factors = plan.factors.by_site["decoder.1.self.qk"]
    layer = "model.layers.1.self_attn."
    for name, per_head, power in (("q_proj", 3, 1), ("k_proj", 1, -1)):
        for kind in ("weight", "bias"):
            x = before[f"{layer}{name}.{kind}"].float()
            s = torch.tensor(factors).pow(power).repeat_interleave(8 * per_head).reshape(-1, *[1] * (x.dim() - 1))
            assert torch.equal(after[f"{layer}{name}.{kind}"], (x * s.float()).bfloat16())


def test_the_report_says_what_was_done_and_undoes_it(source, done, look):
    report = json.loads((done / "wisca_report.json").read_text())
    assert list(report)[:2] == ["format", "version"] and (report["format"], report["version"]) == ("wisca-report", 1)
    assert (
        report["source"] == str(source)
        and report["proof"]["passed"]
        and report["full_check"] is None
        and report["refused"] == []
    )
    assert report["versions"].keys() == {"wisca", "torch", "transformers"}
    assert report["files"]["rewritten"] == [[f, f] for f in open_checkpoint(source).weight_files]
    after = look(done)
    assert (
        report["fingerprint_before"]
        == report["plan"]["fingerprint"]
        == look(source).patterns.fingerprint(report["plan"]["tensors"])
    )
    assert report["fingerprint_after"] == after.patterns.fingerprint(report["plan"]["tensors"])
    back = decision_of(undo_plan(done / "wisca_report.json"), after.patterns)
    forth = decide(look(source).patterns, Options(granularity="group"))
    assert (abs(back.factor * forth.factor - 1) < 1e-15).all()


def test_undo_in_exact_mode_gives_the_very_bytes_back(source, look, tmp_path):
    opened = look(source)
    there = run(opened, planned(opened, granularity="channel", exact=True), tmp_path / "there")
    exported = look(there.parent)
    plan = undo_plan(there)
    back = run(exported, plan, tmp_path / "back")
    for file in opened.checkpoint.weight_files:
        assert (back.parent / file).read_bytes() == (source / file).read_bytes() != (there.parent / file).read_bytes()
    with pytest.raises(PlanMismatch, match="fingerprint"):
        decision_of(plan, opened.patterns)


def test_the_card_keeps_its_bytes_and_gains_one_section(source, done, look, tmp_path):
    card = (done / "README.md").read_bytes()
    assert (
        card.startswith(TAGGED.rstrip("\n").encode())
        and card.count(b"<!-- wisca:begin -->") == card.count(b"<!-- wisca:end -->") == 1
    )
    assert b"granularity group, norm l1, strength 1" in card and b"Full check on these weights: not run" in card
    # an export of the export: the old section is replaced
    opened = look(done)
    again = run(opened, planned(opened, granularity="tensor", strength=0.5), tmp_path / "again").parent / "README.md"
    card = again.read_bytes()
    assert card.count(b"<!-- wisca:begin -->") == 1 and b"strength 0.5" in card and b"granularity group" not in card
    assert card.startswith(TAGGED.rstrip("\n").encode())


def test_without_a_card_one_is_made(small_model, look, tmp_path):
    opened = look(small_model("opt", torch.float32))
    card = (run(opened, planned(opened), tmp_path / "out").parent / "README.md").read_text()
    assert card.startswith("<!-- wisca:begin -->\n## Rescaled into an equivalent model")


@pytest.mark.parametrize(
    ("readme", "source", "header"),
    [
        ("# M\n", "hub:owner/name@main", "---\nbase_model: owner/name\ntags:\n- wisca\n---\n# M\n"),
        ("# M\n", "/models/mine", "# M\n"),
        ("---\nlicense: mit\n---\n# M\n", "/x", "---\nlicense: mit\ntags:\n- wisca\n---\n# M\n"),
        (
            "---\ntags:\n  - a\nbase_model: o/old\n---\n# M\n",
            "hub:o/n",
            "---\ntags:\n  - wisca\n  - a\nbase_model: o/old\n---\n# M\n",
        ),
        ("---\ntags:\n- wisca\n---\n# M\n", "/x", "---\ntags:\n- wisca\n---\n# M\n"),
        ("---\ntags: [a, b]\n---\n# M\n", "/x", "---\ntags: [a, b, wisca]\n---\n# M\n"),
        ("---\ntags: []\n---\n# M\n", "/x", "---\ntags: [wisca]\n---\n# M\n"),
        ("---\ntags: a\n---\n# M\n", "/x", "---\ntags: a\n---\n# M\n"),
        ("# A rule\n---\nno header\n---\n", "/x", "# A rule\n---\nno header\n---\n"),
    ],
)
def test_the_header_that_the_hub_reads_gains_the_model_and_a_tag_and_loses_nothing(readme, source, header):
    import yaml

    made = with_header(readme, source)
    assert made.replace("---\n\n# M", "---\n# M") == header
    assert with_header(made, source) == made
    if made.startswith("---") and "tags: a\n" not in made:
        found = yaml.safe_load(made.split("---")[1])
        assert "wisca" in found["tags"]


def test_the_card_shows_the_factors_as_a_picture_that_is_there(source, done):
    import xml.etree.ElementTree as xml

    assert "![Factors of the rescale over the layers](wisca_factors.svg)" in (done / "README.md").read_text()
    picture = xml.fromstring((done / "wisca_factors.svg").read_text())
    dots = [one for one in picture.iter() if one.tag.endswith("circle")]
    plan = json.loads((done / "wisca_report.json").read_text())["plan"]
    assert len(dots) == sum(len(site["factors"]) for site in plan["sites"])
    words = " ".join(one.text or "" for one in picture.iter())
    assert "QK: factor on Wq, its inverse on Wk" in words and "VO: factor on Wv, its inverse on Wo" in words


def test_a_picture_of_very_many_factors_says_which_are_drawn():
    plan = Plan(Options(), Factors("channel", (("decoder.0.self.qk", (2.0,) * 9000),)), (), "f")
    picture = factors_svg(plan)
    assert picture.count("<circle") == 3000 and "one factor in 3 is drawn" in picture


def test_the_preview_names_every_file_once_and_enough_bytes(source, done):
    seen = preview(open_checkpoint(source))
    names = [old for old, _ in seen.rewritten] + list(seen.copied) + [name for name, _ in seen.left_out]
    assert len(names) == len(set(names)) and set(names) == {
        p.relative_to(source).as_posix() for p in source.rglob("*") if not p.is_dir() and ".git" not in p.parts
    }
    written = sum(
        len(data) for name, data in files(done).items() if name not in ("wisca_report.json", "wisca_factors.svg")
    )
    assert abs(seen.n_bytes - written) < 3000  # the card's section


def test_an_exported_sharded_folder_loads_in_transformers_as_the_same_function(source, done):
    before, after = (outputs(load(folder, dtype=torch.float64), seed=3) for folder in (source, done))
    assert 0 < difference(before, after).max_rel < 0.1  # bf16 rounding; the proof is exact, this is that it loads


# ---- torch checkpoints


def torch_folder(small, to, shards: int, tie: bool):
    """pytorch_model.bin in one or two files; ``tie``: lm_head shares the storage of the embedding."""
    to.mkdir()
    config = json.loads((small / "config.json").read_text())
    tensors = {n: t.clone() for n, t in load_file(small / "model.safetensors").items()}
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    config["tie_word_embeddings"] = tie
    (to / "config.json").write_text(json.dumps(config))
    names = list(tensors)
    if shards == 1:
        torch.save(tensors, to / "pytorch_model.bin")
        return to
    shared = [n for n in names if n in ("lm_head.weight", "model.embed_tokens.weight")]
    parts = [shared + [n for n in names if n not in shared][:5], [n for n in names if n not in shared][5:]]
    weight_map = {}
    for i, part in enumerate(parts, 1):
        file = f"pytorch_model-0000{i}-of-00002.bin"
        torch.save({n: tensors[n] for n in part}, to / file)
        weight_map |= dict.fromkeys(part, file)
    (to / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return to


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "equal but not tied by the config"])
@pytest.mark.parametrize("shards", [1, 2])
def test_a_torch_checkpoint_becomes_safetensors_with_the_same_split(shards, tie, small_model, look, tmp_path):
    small = small_model("llama", num_key_value_heads=8, tie_word_embeddings=tie)
    source = torch_folder(small, tmp_path / "source", shards, tie)
    opened = look(source)
    assert opened.checkpoint.aliases
    out = run(opened, planned(opened, granularity="channel"), tmp_path / "out").parent
    names = (
        {"model.safetensors"}
        if shards == 1
        else {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
    )
    assert {p.name for p in out.iterdir()} == names | {
        "config.json",
        "README.md",
        "wisca_factors.svg",
        "wisca_report.json",
    }
    assert not (out / "pytorch_model.bin").exists()
    model = load(out)  # raises where a tensor is missing
    assert (model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()) is tie
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    reference = small_model("llama", num_key_value_heads=8, tie_word_embeddings=tie)
    before = load(reference)
    with torch.no_grad():
        before.lm_head.weight.copy_(before.model.embed_tokens.weight)
    assert difference(outputs(before, 1), outputs(model, 1)).max_rel < 1e-11
    report = json.loads((out / "wisca_report.json").read_text())
    after = look(out)
    assert report["fingerprint_after"] == after.patterns.fingerprint(report["plan"]["tensors"])
    decision_of(undo_plan(out / "wisca_report.json"), after.patterns)
    for old, new in report["files"]["rewritten"]:
        assert old.replace("pytorch_model", "model").replace(".bin", ".safetensors") == new and (out / new).is_file()


def test_a_tied_pair_of_weights_is_refused_by_name_and_the_rest_exported(small_model, look, tmp_path):
    tensors = load_file(small_model("llama") / "model.safetensors")
    tensors["model.layers.1.self_attn.k_proj.weight"] = tensors["model.layers.0.self_attn.k_proj.weight"]
    (tmp_path / "source").mkdir()
    torch.save(tensors, tmp_path / "source" / "pytorch_model.bin")
    shutil.copyfile(small_model("llama") / "config.json", tmp_path / "source" / "config.json")
    opened = look(tmp_path / "source")
    assert [r.what for r in opened.sites.refusals] == ["decoder.0.self.qk", "decoder.1.self.qk"]
    assert all("shares its storage" in r.reason for r in opened.sites.refusals)
    report = run(opened, planned(opened), tmp_path / "out")
    assert (
        len(json.loads(report.read_text())["refused"]) == 2
        and "Left as they were: 2" in (report.parent / "README.md").read_text()
    )


# ---- refused places, and nothing left


def nothing_left(opened, place: Path, keep: set[str]):
    assert {p.name for p in place.iterdir()} == keep
    assert not is_running(place / "out")


@pytest.fixture
def small(small_model, look):
    return look(small_model("llama", torch.float32, num_key_value_heads=8, attention_bias=True))


def test_places_that_are_taken_are_refused(small, tmp_path):
    plan = planned(small)
    model = small.checkpoint.path
    before = files(model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "link").symlink_to(model)
    (tmp_path / "plain").write_text("mine")
    for place, words in {
        tmp_path / "full": "exists already",
        model: "is the model itself",
        tmp_path / "link": "is the model itself",
        model / "out": "inside the model's folder",
        tmp_path / "link" / "out": "inside the model's folder",
        tmp_path / "dangling": "exists already",
        tmp_path / "plain": "exists already",
        model / "x" / ".." / "out": "inside the model's folder",
    }.items():
        with pytest.raises(OutputRefused, match=words):
            run(small, plan, place)
    with pytest.raises(OutputRefused, match="could not be written"):
        run(small, plan, tmp_path / "plain" / "below" / "out")
    assert {p.name for p in tmp_path.iterdir()} == {"full", "dangling", "link", "plain"} and files(model) == before
    assert (tmp_path / "full" / "file").read_text() == (tmp_path / "plain").read_text() == "mine"


def test_no_plan_and_no_proof_write_nothing(small, tmp_path):
    from dataclasses import replace

    with pytest.raises(NothingToRescale, match="every factor is 1"):
        run(small, planned(small, strength=0.0), tmp_path / "out")
    proof = replace(prove(small.checkpoint, small.sites), passed=False, reason="it is wrong.")
    with pytest.raises(ProofFailed, match="it is wrong"):
        export(small.checkpoint, small.sites, planned(small), tmp_path / "out", proof)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("after_bytes", [0, 20_000])
def test_a_disk_that_becomes_full_leaves_nothing(after_bytes, small, tmp_path, monkeypatch):
    written = 0
    real = os.pwrite

    def pwrite(fd, data, position):
        nonlocal written
        written += len(data)
        if written > after_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, position)

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OutputRefused, match="disk .*became full"):
        run(small, planned(small), tmp_path / "new" / "deep" / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["copy_file_range", "copyfile", "report"])
def test_a_disk_that_becomes_full_elsewhere_leaves_nothing(what, small, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    target = {"copy_file_range": (os, "copy_file_range"), "copyfile": (shutil, "copyfile")}.get(what)
    if target:
        monkeypatch.setattr(*target, full)
    else:
        real = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: full() if str(b).endswith("wisca_report.json") else real(a, b))
    with pytest.raises(OutputRefused, match="full"):
        run(small, planned(small), tmp_path / "out")
    nothing_left(small, tmp_path, set())


def test_a_disk_without_room_is_refused_before_a_byte_is_written(small, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "n_bytes_free", lambda path: 64 * 2**20)
    monkeypatch.setattr(export_module, "write_weights", lambda *_: pytest.fail("wrote"))
    with pytest.raises(OutputRefused, match="0.07 GB free; the export needs 0.07"):
        run(small, planned(small), tmp_path / "out")
    nothing_left(small, tmp_path, set())


@pytest.mark.parametrize("step", ["writing model", "copying", "writing"])
def test_a_cancelled_export_leaves_nothing(step, small, tmp_path):
    seen = []

    def progress(text, done, total):
        seen.append(text)
        if text.startswith(step) and (step != "writing" or text == step):
            raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        run(small, planned(small), tmp_path / "out", progress=progress)
    assert seen
    nothing_left(small, tmp_path, set())


def test_an_interrupt_leaves_nothing(small, tmp_path):
    def progress(text, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small, planned(small), tmp_path / "out", progress=progress)
    nothing_left(small, tmp_path, set())


def touched(path: Path):
    os.utime(path, ns=(1, 1))


def cut(path: Path):
    os.truncate(path, path.stat().st_size - 1000)


def replaced(path: Path):
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-1] + b"x")
    os.utime(path, ns=(5, 5))


@pytest.mark.parametrize("change", [touched, cut, replaced])
@pytest.mark.parametrize("at", ["first", "last"])
def test_a_source_that_changes_midway_stops_the_export(at, change, small, look, edited, tmp_path):
    opened = look(edited(small.checkpoint.path, name="source"))
    plan, proof = planned(opened), prove(opened.checkpoint, opened.sites)
    calls = []

    def progress(text, done, total):
        calls.append(text)
        if (at == "first" and len(calls) == 3) or (
            at == "last" and text == "copying the other files" and calls.count(text) == 1
        ):
            change(opened.checkpoint.path / "model.safetensors")

    with pytest.raises(CheckpointChanged):
        export(opened.checkpoint, opened.sites, plan, tmp_path / "out", proof, progress=progress)
    nothing_left(opened, tmp_path, {"source"})


def test_of_two_exports_to_one_place_one_wins_by_whatever_name_and_home(small, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    refused = []

    def progress(text, done, total):
        if not refused:
            monkeypatch.setenv("WISCA_HOME", str(tmp_path / "another home"))
            for place in (tmp_path / "real" / "out", tmp_path / "alias" / "out", tmp_path / "real" / "." / "out"):
                assert is_running(place)
                with pytest.raises(OutputRefused, match="another export"):
                    run(small, planned(small), place)
                refused.append(place)

    report = run(small, planned(small), tmp_path / "real" / "out", progress=progress)
    assert report.is_file() and len(refused) == 3 and not is_running(tmp_path / "alias" / "out")
    assert {p.name for p in (tmp_path / "real").iterdir()} == {"out"}


def test_everything_is_on_the_disk_before_it_has_its_name(small, tmp_path, monkeypatch):
    flushed, flush = [], os.fsync

    def fsync(descriptor):
        flushed.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    run(small, planned(small), tmp_path / "out")
    *before, last = flushed
    hidden = tmp_path / ".out.wisca-partial"
    written = [p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*")]
    assert sorted(before) == sorted([hidden, *(hidden / name for name in written)]) and last == tmp_path


def test_a_place_that_appears_meanwhile_is_left_alone(small, tmp_path):
    def progress(text, done, total):
        (tmp_path / "out").mkdir(exist_ok=True)

    with pytest.raises(OutputRefused, match="appeared"):
        run(small, planned(small), tmp_path / "out", progress=progress)
    assert {p.name for p in tmp_path.iterdir()} == {"out"} and list((tmp_path / "out").iterdir()) == []


KILLED = """
import sys, time
from pathlib import Path
from wisca_core.architecture.find import find_sites
from wisca_core.checkpoint import open_checkpoint
from wisca_core.equivalence.proving import prove
from wisca_core.exporting.export import export
from wisca_core.planning.plan import load_plan
model, plan, out = sys.argv[1:]
checkpoint = open_checkpoint(model)
sites = find_sites(checkpoint)
def progress(step, done, total):
    if step.startswith("writing model") and done > total / 2:
        print("midway", flush=True)
        time.sleep(60)
export(checkpoint, sites, load_plan(Path(plan)), Path(out), prove(checkpoint, sites), progress=progress)
"""


def test_after_a_kill_midway_a_new_export_to_the_same_place_succeeds(small, tmp_path):
    plan = planned(small)
    prove(small.checkpoint, small.sites)
    save_plan(plan, tmp_path / "plan.json")
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(small.checkpoint.path), str(tmp_path / "plan.json"), str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "midway\n"
        assert (
            is_running(tmp_path / "out")
            and (tmp_path / ".out.wisca-partial").is_dir()
            and not (tmp_path / "out").exists()
        )
        with pytest.raises(OutputRefused, match="another export"):
            run(small, plan, tmp_path / "out")
        assert (tmp_path / ".out.wisca-partial" / "model.safetensors").is_file()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    until = time.monotonic() + 5
    while is_running(tmp_path / "out") and time.monotonic() < until:
        time.sleep(0.01)
    assert (tmp_path / ".out.wisca-partial").is_dir()  # what the killed one left
    report = run(small, plan, tmp_path / "out")
    assert report.is_file() and {p.name for p in tmp_path.iterdir()} == {"plan.json", "out"}


@pytest.mark.parametrize("leftover", ["file", "link"])
def test_something_else_under_the_temporary_name_is_never_followed(leftover, small, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("mine")
    beside = tmp_path / ".out.wisca-partial"
    beside.symlink_to("precious") if leftover == "link" else beside.write_text("mine")
    with pytest.raises(OutputRefused, match="could not be written"):
        run(small, planned(small), tmp_path / "out")
    assert (tmp_path / "precious" / "file").read_text() == "mine" and not (tmp_path / "out").exists()


def test_the_writers_fall_back_where_the_kernel_cannot_copy(small, tmp_path, monkeypatch):
    def cannot(*_):
        raise OSError(errno.EXDEV, "another file system")

    first = run(small, planned(small), tmp_path / "a").parent
    monkeypatch.setattr(os, "copy_file_range", cannot)
    second = run(small, planned(small), tmp_path / "b").parent
    monkeypatch.delattr(os, "copy_file_range")
    third = run(small, planned(small), tmp_path / "c").parent
    digests = {hashlib.sha256((p / "model.safetensors").read_bytes()).hexdigest() for p in (first, second, third)}
    assert len(digests) == 1


def test_modules_of_a_sentence_transformer_are_no_copies_of_the_weights(small_model, look, tmp_path):
    """A Dense layer behind the encoder has weights of its own; without them the folder would not load."""
    source = tmp_path / "source"
    shutil.copytree(small_model("bert", torch.float32), source)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    ]
    (source / "modules.json").write_text(json.dumps(modules))
    for name in ("2_Dense", "3_Dense"):
        (source / name).mkdir()
        save_file({"linear.weight": torch.ones(2, 2)}, source / name / "model.safetensors")
        (source / name / "pytorch_model.bin").write_bytes(b"dense")
    opened = look(source)
    out = run(opened, planned(opened), tmp_path / "out").parent
    assert files(out).keys() >= {"2_Dense/model.safetensors", "2_Dense/pytorch_model.bin"}
    assert files(out)["2_Dense/model.safetensors"] == files(source)["2_Dense/model.safetensors"]
    left_out = dict(json.loads((out / "wisca_report.json").read_text())["files"]["left_out"])
    assert left_out.keys() == {"3_Dense/model.safetensors", "3_Dense/pytorch_model.bin"}  # named by no module
