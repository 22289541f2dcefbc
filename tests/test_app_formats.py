"""The pages on what is no plain model: LoRA adapters, a base with its adapters, quantised checkpoints, GGUF."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from dashboard_page import charts, page, proved, texts
from safetensors.torch import load_file, save_file

from wisca_core.equivalence.adapter_miniature import build_adapter, load_adapted
from wisca_core.equivalence.outputs import difference, outputs


@pytest.fixture(scope="module")
def base(small_model) -> Path:
    return small_model("llama", torch.float32)


@pytest.fixture(scope="module")
def adapter(base, small_model, tmp_path_factory) -> Path:
    """On two parts of two layers; the B of one is zero, the A of another sixteen times too heavy."""
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    build_adapter(small_model("llama"), folder, {}, ("self_attn.q_proj", "mlp.down_proj"), seed=3)
    tensors = {name: t.float() for name, t in load_file(folder / "adapter_model.safetensors").items()}
    tensors["base_model.model.model.layers.0.mlp.down_proj.lora_B.weight"].zero_()
    tensors["base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"] *= 16
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def quantised(base, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quantised")
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        tensors[name] = weight.to(torch.float8_e4m3fn) if "_proj" in name else weight
        if "_proj" in name:
            tensors[f"{name}_scale"] = torch.full((len(weight), 1), 0.5)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text()) | {
        "quantization_config": {"quant_method": "compressed-tensors"}
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_inspect_shows_an_adapter_by_layer_and_part(adapter):
    at = page(model=adapter)
    said = texts(at)
    # of the median of the three that have a ratio, which the one heavy A does not lead
    assert "4 pairs, none refused" in said and re.match(r"B weighs 2\.\d× A; worst pair: ", at.title[0].value)
    assert "A LoRA adapter of" in said and "the base model, which stays as it is" in said
    assert "every value of base_model.model.model.layers.0.mlp.down_proj.lora_B.weight in it is zero" in said
    strips = charts(at)[0]
    rows = [
        axis["ticktext"]
        for name, axis in strips["layout"].items()
        if name.startswith("yaxis") and axis.get("ticktext") and len(axis["ticktext"]) == 2
    ]
    assert rows[0] == ["mlp.down_proj", "self_attn.q_proj"]
    assert at.header[0].value == "Layer 1, self_attn.q_proj"  # the heavy one is furthest out
    assert "A of self_attn.q_proj is" in said and "heavier than B of self_attn.q_proj" in said
    at.selectbox(key="group").set_value(0).run()
    assert not at.exception and at.header[0].value == "Layer 1, mlp.down_proj"
    for norm in ("l2", "max", "mean"):
        at.segmented_control(key="shown_norm").set_value(norm).run()
        assert not at.exception


def test_two_adapters_stand_side_by_side(adapter, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(adapter, other)
    tensors = load_file(other / "adapter_model.safetensors")
    save_file(
        {n: t * (2 if "lora_A" in n else 1) for n, t in tensors.items()},
        other / "adapter_model.safetensors",
        metadata={"format": "pt"},
    )
    at = page(model=adapter, beside=other)
    finding = next(s.value for s in at.subheader if "differ" in s.value)
    assert finding == "No cell differs by more than 2.0×"  # A twice as heavy, one octave
    strips = [t["z"] for chart in charts(at) for t in chart["data"] if t["type"] == "heatmap"][1:]
    assert len(strips) == 3 and strips[2][1][1] == pytest.approx(-1)


def test_rescale_plans_an_adapter_by_module_and_rank_channel(adapter):
    at = page("rescale", model=proved(adapter))
    assert at.title[0].value.startswith("3 of 4 pairs would change")
    assert at.segmented_control(key="pairs").value == ["lora"]
    assert [option.content for option in at.segmented_control(key="granularity").proto.options] == [
        "Module",
        "Rank channel",
    ]
    table = next(frame.value for frame in at.dataframe if "Part" in frame.value)
    assert (
        table["Part"].tolist() == ["mlp.down_proj", "self_attn.q_proj"] * 2
        and "4 rows of A, 4 columns of B" in table["What it changes"].tolist()
    )
    at.segmented_control(key="granularity").set_value("channel").run()
    assert not at.exception and at.title[0].value.startswith("3 of 4")
    at.text_input(key=f"base of {adapter}").set_value("/nowhere").run()
    assert "The base model cannot be opened" in texts(at) and not at.exception
    assert "--pairs lora" in "\n".join(code.value for code in at.code)


def test_a_base_offers_the_adapters_that_belong_to_it(base, adapter, tmp_path):
    import shutil

    shutil.copytree(base, tmp_path / "model")
    shutil.copytree(adapter, tmp_path / "model" / "mine")
    at = page("rescale", model=proved(tmp_path / "model"))
    box = next(box for box in at.multiselect if box.label == "LoRA adapters that go with it")
    assert box.value == [str(tmp_path / "model" / "mine")]
    box.set_value([]).run()
    assert "Left behind: model/mine would break on the rescaled weights." in texts(at)


def test_the_export_job_writes_base_and_adapter(base, adapter, tmp_path):
    from wisca_core.architecture.find import find_sites
    from wisca_core.checkpoint import open_checkpoint
    from wisca_core.job_functions import export_job
    from wisca_core.patterns.store import measured_patterns
    from wisca_core.planning.decide import decide
    from wisca_core.planning.options import Options
    from wisca_core.planning.plan import make_plan, save_plan
    from wisca_core.progress import silent

    checkpoint = open_checkpoint(base)
    sites = find_sites(checkpoint)
    save_plan(
        make_plan(decide(measured_patterns(checkpoint, sites), Options(granularity="channel"))), tmp_path / "plan.json"
    )
    arguments = {
        "model": str(base),
        "plan": str(tmp_path / "plan.json"),
        "out": str(tmp_path / "out"),
        "check": False,
        "adapters": [str(adapter)],
    }
    done = export_job(arguments, silent, tmp_path)
    assert done["adapters"] == [str(tmp_path / "out-adapter")]
    before, after = (
        outputs(load_adapted(base, adapter), seed=4),
        outputs(load_adapted(tmp_path / "out", tmp_path / "out-adapter"), seed=4),
    )
    assert difference(before, after).max_rel < 1e-5  # float32 weights


def test_a_quantised_model_is_looked_at(quantised):
    at = page(model=quantised)
    said = texts(at)
    assert "**Look only:** the checkpoint is quantised" in said and "fp8" in said
    assert "Factor" not in said and "ring before, dot after" not in said and "With Adam, balancing" not in said
    assert not any("After" in frame.value for frame in at.dataframe if "Heavier side" in frame.value)
    assert len([name for name in charts(at)[0]["layout"] if name.startswith("yaxis")]) in (
        2,
        3,
    )  # strips before, and the layers
    at = page("rescale", model=quantised)
    assert at.title[0].value == "This model cannot be rescaled." and "Look only: the checkpoint is quantised" in texts(
        at
    )
    assert not at.button or all(button.label != "Export" for button in at.button)
