"""The dashboard on files of one's own classes: the form, what opens by it, and what is not proved."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from dashboard_page import page, texts
from declared_models import GPT, MODELS, Llama
from declared_words import CASES, EINSUM
from safetensors.torch import load_file, save_file

from wisca_app.declaring import fields, kept
from wisca_app.rescaling.proof import in_words
from wisca_core import storage
from wisca_core.architecture.declaration_files import read_declarations, toml
from wisca_core.equivalence.proving import prove
from wisca_core.errors import ProofFailed, UnreadableInput
from wisca_core.job_functions import export_job, measure_job
from wisca_core.model import open_model
from wisca_core.planning.plan import save_plan
from wisca_core.progress import silent
from wisca_core.steps import plan as make_plan

GPT_SITES = MODELS["nanoGPT"][1]


def made(make, seed=0):
    torch.manual_seed(seed)
    return make()


@pytest.fixture
def nanogpt(tmp_path) -> Path:
    model = made(GPT)
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight[:24] *= 6
    path = tmp_path / "out" / "ckpt.pt"
    path.parent.mkdir()
    torch.save({"model": {f"_orig_mod.{n}": t for n, t in model.state_dict().items()}, "iter_num": 7}, path)
    return path


def named(elements, label):
    return next(one for one in elements if one.label == label)


def in_order(at) -> str:
    assert not at.exception
    return texts(at.main)


def opened(at, path) -> None:
    """What is written into the field of the page Open a model."""
    named(at.text_input, "Path on this machine, or hub:owner/name").set_value(str(path))
    named(at.button, "Open").click().run()


def address(at) -> dict[str, str]:
    return {name: value[0] if isinstance(value, list) else value for name, value in at.query_params.items()}


def test_a_file_of_ones_own_class_is_declared_corrected_confirmed_and_opened(nanogpt):
    at = page("open")
    opened(at, nanogpt)
    said = in_order(at)
    assert at.title[0].value == "Say where its pairs lie." and address(at)["declaring"] == str(nanogpt)
    assert "n_heads: nothing says how many there are" in said and "rope: 'half'" in said
    assert named(at.text_input, "Path of a layer").value == "transformer.h.{i}.attn"
    assert named(at.number_input, "Query heads").value is None  # what nothing says is not filled in
    assert "4 pairs in 2 layers: 2 QK, 2 VO." in said and "Say how many heads transformer.h.{i}.attn has." in said
    assert named(at.button, "Open with this declaration").disabled

    named(at.number_input, "Query heads").set_value(0).run()
    assert "n_heads=0 was given; a whole number from 1 is needed." in texts(at) and at.button(key="confirm").disabled
    named(at.number_input, "Query heads").set_value(5).run()
    said = in_order(at)
    assert "c_attn has 72 rows; 5 query and 5 key/value heads (layout concat) do not divide them" in said
    assert named(at.button, "Open with this declaration").disabled

    named(at.number_input, "Query heads").set_value(3).run()
    table = at.dataframe[0].value
    assert table["Layers"].tolist() == ["0–1", "0–1"] and table["Channels"].tolist() == ["3 heads of 8"] * 2
    assert table["Left"][0] == "q of transformer.h.#.attn.c_attn.weight, 72 × 24"
    named(at.button, "Open with this declaration").click().run()
    assert "a class of your own" in in_order(at) and "4 pairs, none refused" in texts(at.main)
    assert "nothing here has proved them" in texts(at.main)
    names = address(at)
    assert names["model"] == str(nanogpt) and read_declarations(kept.path(names["sites"])) == tuple(GPT_SITES)

    again = page(**names)  # a reload
    assert again.title[0].value == at.title[0].value
    assert "2 layers, 3 heads of 8 channels" in in_order(page("heads", **names))
    at = page("open", **names)
    next(one for one in at.button if one.key == "recent 0").click().run()
    assert address(at)["sites"] == names["sites"] and "4 pairs, none refused" in in_order(at)
    at = page(**names)
    named(at.button, "Change the declaration").click().run()
    assert "Filled from the declaration it is open with." in in_order(at)
    assert named(at.number_input, "Query heads").value == 3


def test_rescale_says_that_nothing_is_proved_and_writes_only_where_that_is_said(nanogpt, tmp_path):
    names = {"model": str(nanogpt), "sites": kept.keep(GPT_SITES)}
    at = page("rescale", **names)
    said = in_order(at)
    assert at.title[0].value == "4 of 4 pairs would change; that the outputs stay the same is not proved."
    line = f"wisca rescale {nanogpt} OUT --sites {kept.path(names['sites'])} --build MODULE:FUNCTION"
    assert "**Not proved**" in said and line in said and "another order of the heads would change" in said
    export = named(at.button, "Export")
    assert export.disabled and "--build" in export.help
    named(at.toggle, "Write it without a proof").set_value(True).run()
    assert not named(at.button, "Export").disabled and in_order(at)


def test_a_report_says_why_there_is_no_proof_of_declared_pairs(nanogpt):
    for unproved, why in ((True, "the sites were declared and taken as they are"), (False, "Give --build module")):
        model = open_model(nanogpt, sites=GPT_SITES, unproved=unproved)
        title, said = in_words(prove(model.checkpoint, model.sites))
        assert title == "Proof" and said.startswith("None was made: ") and why in said.replace("\\", "")


def test_jobs_write_declared_pairs_only_where_that_was_said(nanogpt, tmp_path):
    plan, name = tmp_path / "plan.json", kept.keep(GPT_SITES)
    model = open_model(nanogpt, sites=GPT_SITES, unproved=True)
    save_plan(make_plan(model, exact=True), plan)
    asked = {"model": str(nanogpt), "plan": str(plan), "sites": str(kept.path(name))}
    assert measure_job(asked, silent, tmp_path) == {}
    with pytest.raises(ProofFailed, match="--unproved"):
        export_job(asked | {"out": str(tmp_path / "no")}, silent, tmp_path)
    assert not (tmp_path / "no").exists()
    out = Path(export_job(asked | {"out": str(tmp_path / "new"), "unproved": True}, silent, tmp_path)["out"])
    assert list(json.loads((out / "wisca_report.json").read_text()))[2] == "unproved"
    back = made(GPT, seed=1)
    back.load_state_dict(load_file(out / "model.safetensors"), strict=False)
    before = made(GPT)
    before.load_state_dict(
        {n.removeprefix("_orig_mod."): t for n, t in torch.load(nanogpt, weights_only=True)["model"].items()}
    )
    ids = torch.arange(9)[None]
    assert torch.equal(back.eval()(ids)[0], before.eval()(ids)[0])  # powers of two


def test_a_sites_toml_fills_the_form_from_beside_the_file_a_path_or_an_upload(tmp_path):
    sites = MODELS["Llama"][1]
    save_file(made(Llama).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "sites.toml").write_text(toml(sites))
    at = page("open", declaring=tmp_path / "model.safetensors")
    assert f"Filled from {tmp_path / 'sites.toml'}." in in_order(at)
    assert "6 pairs in 2 layers: 2 QK, 2 VO, 2 MLP." in texts(at.main)
    assert named(at.selectbox, "Rotary layout").value == "interleaved"
    named(at.button, "Open with this declaration").click().run()
    assert read_declarations(kept.path(address(at)["sites"])) == tuple(sites) and in_order(at)

    (tmp_path / "sites.toml").rename(tmp_path / "mine.toml")
    at = page("open", declaring=tmp_path / "model.safetensors")
    assert named(at.number_input, "Query heads").value is None
    for text, message in (
        ("format = 'other'", "begins with format 'other'"),
        ("format = 'wisca-sites'\nversion = 1\n[[attention]]\nlayer = 'x'\nheads = 2\n", "[[attention]] has heads"),
        ("{", "not valid TOML"),
    ):
        (tmp_path / "bad.toml").write_text(text)
        named(at.text_input, "Path on this machine").set_value(str(tmp_path / "bad.toml")).run()
        named(at.button, "Read it").click().run()
        assert "That declaration cannot be read" in in_order(at) and message in texts(at.main)
    named(at.text_input, "Path on this machine").set_value(str(tmp_path / "mine.toml")).run()
    named(at.button, "Read it").click().run()
    assert "That declaration cannot be read" not in in_order(at) and f"Filled from {tmp_path / 'mine.toml'}." in texts(
        at
    )
    assert named(at.number_input, "Key/value heads").value == 2
    at.file_uploader[0].upload("other.toml", toml([sites[1]]).encode(), "application/toml").run()
    named(at.button, "Read it").click().run()
    assert "2 pairs in 2 layers: 2 MLP." in in_order(at)


def test_declarations_are_added_removed_and_wrong_ones_are_sentences(nanogpt):
    at = page("open", declaring=nanogpt)
    named(at.button, "Add a feed-forward").click().run()
    assert "feed_forward('')" in in_order(at)
    [one for one in at.text_input if one.label == "Path of a layer"][1].set_value("transformer.h.{i}.mlp").run()
    assert "feed_forward('transformer.h.{i}.mlp'): give down with up" in in_order(at)
    [one for one in at.button if one.label == "Remove"][1].click().run()
    assert "4 pairs in 2 layers" in in_order(at)
    named(at.text_input, "Path of a layer").set_value("transformer.h.{i}.attention").run()
    assert "no tensor of the model lies there. Near it are transformer.h.0.attn" in in_order(at)
    named(at.button, "Remove").click().run()
    assert "There is nothing in it" in in_order(at) and named(at.button, "Open with this declaration").disabled
    named(at.button, "Back").click().run()
    assert at.title[0].value.startswith("Open a folder") and "declaring" not in address(at)


def test_an_address_whose_declaration_is_gone_says_so(nanogpt):
    name = kept.keep(GPT_SITES)
    storage.clean(["sites"])
    with pytest.raises(UnreadableInput, match="not kept on this machine"):
        kept.read(name)
    said = in_order(page(model=nanogpt, sites=name))
    assert "is not kept on this machine" in said and "sites.toml" in said
    assert "declaring" not in address(page(model=nanogpt, sites="../../x"))


def test_without_a_declaration_the_tensors_are_shown_with_the_way_to_the_form(nanogpt, tmp_path):
    at = page("open", declaring=nanogpt)
    named(at.button, "Only its tensors").click().run()
    assert "its tensors can still be looked at" in at.title[0].value
    at = page(**address(at))
    named(at.button, "Say where its pairs lie").click().run()
    assert at.title[0].value == "Say where its pairs lie." and in_order(at)
    nothing = tmp_path / "nothing.safetensors"
    save_file({"a": torch.zeros(3)}, nothing)
    assert "Nothing can be proposed" in in_order(page("open", declaring=nothing))
    shutil.rmtree(nanogpt.parent)
    assert "That could not be opened" in in_order(page("open", declaring=nanogpt))


EVERY = {name: (make, sites) for name, (make, sites, *_) in (MODELS | CASES | {"einsum": EINSUM}).items()}


@pytest.mark.parametrize("name", EVERY)
def test_every_declaration_goes_through_the_form_unchanged(name, tmp_path):
    """Form widgets are filled from a declaration and give it back."""
    make, sites = EVERY[name]
    save_file(
        {n: t.clone() for n, t in made(make).state_dict().items()}, tmp_path / "model.safetensors"
    )  # tied ones apart
    (tmp_path / "sites.toml").write_text(toml(sites))
    at = page("open", declaring=tmp_path / "model.safetensors")
    assert "does not fit" not in in_order(at)
    named(at.button, "Open with this declaration").click().run()
    assert read_declarations(kept.path(address(at)["sites"])) == tuple(sites)


FOLLOWER = {"pair": "qk", "tensor": "x", "axis": 0, "like": "q", "side": "left"}


def test_words_that_no_widget_shows_are_kept():
    row = {"kind": "attention", "layer": "h.{i}", "qkv": "c", "out": "o", "n_heads": 2, "follow": [FOLLOWER]}
    assert fields.declaration(row)["follow"] == (tuple(sorted(FOLLOWER.items())),)


def test_an_uploaded_state_dict_with_its_sites_toml_opens_the_form(nanogpt):
    at = page("open")
    files = [
        ("ckpt.pt", nanogpt.read_bytes(), "application/octet-stream"),
        ("sites.toml", toml(GPT_SITES).encode(), ""),
    ]
    at.file_uploader[0].set_value(files)
    named(at.button, "Open the files").click().run()
    assert "Filled from" in in_order(at) and ":small[:gray[ckpt.pt, " in texts(at.main)
    assert named(at.number_input, "Query heads").value == 3
