"""``import wisca_core as wisca``: every name is there, is what it says, and stays so once all modules are imported."""

import importlib
import os
import pkgutil
import subprocess
import sys

import pytest
import torch
from small_comparison import small_spec
from test_structure import ROOT
from transformers import AutoModelForCausalLM

import wisca_core as wisca

SAMPLE = ROOT / "sample_runs" / "gqa-docs" / "checkpoint-3600"


@pytest.fixture(scope="module")
def all_imported():
    """Every sub-module of the library: once imported, one with the name of a function would stand in its place."""
    for module in pkgutil.walk_packages(wisca.__path__, "wisca_core."):
        importlib.import_module(module.name)


def test_importing_it_imports_nothing_and_prints_nothing():
    code = (
        "import sys, wisca_core as wisca\n"
        "assert {m for m in sys.modules if m.startswith('wisca_core')} == {'wisca_core'}, sys.modules\n"
        "assert 'open' in dir(wisca) and 'rescale_' in dir(wisca)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_looking_at_a_measured_model_needs_no_torch(wisca_home):
    wisca.open(SAMPLE).groups()
    code = (
        "import sys, wisca_core as wisca\n"
        f"print(wisca.open({str(SAMPLE)!r}).sentences()[0])\n"
        "assert not {'torch', 'transformers', 'scipy', 'deepspeed'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.startswith("The query side is 4.3× heavier")


def test_reading_logs_needs_no_torch():
    code = "import sys, wisca_core.runs; assert not {'torch', 'transformers', 'scipy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_module_bears_the_name_of_a_function(all_imported):
    modules = {module.name for module in pkgutil.iter_modules(wisca.__path__)}
    assert not modules & set(wisca.__all__)
    for name in wisca.__all__:
        assert callable(getattr(wisca, name)), name
        assert (getattr(wisca, name).__doc__ or "").strip(), f"{name} has no docstring"


def test_a_name_that_is_none_is_refused_with_those_that_are():
    with pytest.raises(AttributeError, match="'plann'; it has .*plan, "):
        wisca.plann  # noqa: B018


def test_looking_planning_exporting_and_the_way_back(all_imported, tmp_path):
    model = wisca.open(SAMPLE)
    table = model.groups("l1")
    assert len(table) == 32 and "left_after" not in table
    plan = wisca.plan(model, granularity="group", exact=True)
    after = model.groups("l1", plan)
    assert (after["log2_after"].abs() <= 0.5 + 1e-9).all() and (after["log2_ratio"] == table["log2_ratio"]).all()
    done = wisca.export(model, plan, tmp_path / "balanced", check=False)
    assert done.proof.passed
    back = wisca.export(tmp_path / "balanced", wisca.undo(done.report), tmp_path / "back", check=False)
    assert back.check is None and back.not_run == "not asked for"
    assert wisca.verify(SAMPLE, tmp_path / "back").reasons == ("every tensor is bit-equal.",)
    assert wisca.prove(model) == done.proof


def test_a_model_without_a_rule_opens_with_its_reason(tmp_path, small_model, edited):
    folder = edited(small_model("llama"), config=lambda c: c.update(model_type="unheard_of"))
    model = wisca.open(folder)
    assert model.sites.sites == () and "unheard_of" in model.refusal and model.refusals[0].what == "model"
    with pytest.raises(wisca.WiscaError, match="nothing of what was asked"):
        wisca.export(model, wisca.plan(model), tmp_path / "out")


def test_a_plan_of_other_weights_is_refused(tmp_path, small_model):
    one, other = small_model("llama", num_key_value_heads=8), small_model("llama", num_key_value_heads=8, seed=6)
    with pytest.raises(wisca.WiscaError, match="made for a checkpoint with fingerprint"):
        wisca.export(other, wisca.plan(one), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_feed_forward_pairs_are_looked_for_where_a_plan_asks(small_model):
    model = wisca.open(small_model("llama"))
    assert {site.key.pair for site in model.sites.sites} == {"qk", "vo"} and model.pairs == ("qk", "vo", "mlp")
    plan = wisca.plan(model, pairs="mlp")
    assert {name.split(".")[-1] for name in plan.factors.by_site} == {"mlp"}
    assert set(model.groups(plan=plan)["pair"]) == {"qk", "vo", "mlp"}


def test_training_names(all_imported, tiny_llama, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path / "tiny", 1))
    optimizer = torch.optim.AdamW(model.parameters())
    assert wisca.rescale_(model, optimizer).factors.sites
    assert wisca.Scaler(model, optimizer, every=2) is not None
    sites = [
        wisca.attention(
            "model.layers.{i}.self_attn",
            **{role: f"{role}_proj" for role in "qkv"},
            out="o_proj",
            n_heads=4,
            n_kv_heads=2,
            rope="half",
        ),
        wisca.feed_forward("model.layers.{i}.mlp", gate="gate_proj", up="up_proj", down="down_proj"),
    ]
    assert wisca.guess(model).declarations[1] == sites[1] and len(wisca.rescale_(model, sites=sites).factors.sites) == 2
    assert wisca.WiscaCallback(every=250) is not None and wisca.LightningWisca(every=250) is not None


def test_logs_trajectories_and_comparisons(all_imported, text, tmp_path):
    runs = wisca.read_logs([ROOT / "sample_runs" / "gqa-docs"]).runs
    assert len(wisca.read_logs(str(ROOT / "sample_runs" / "gqa-docs")).runs) == len(runs)
    assert any(len(run) for run in runs)
    assert wisca.trajectory(ROOT / "sample_runs" / "gqa-docs").steps[-1] == 3600
    report = wisca.compare(small_spec(text, steps=4, evaluate_every=4), tmp_path / "compared", workers=1)
    assert report.sentence and (tmp_path / "compared" / "report.json").is_file()


def test_a_proof_prints_nothing(tmp_path, small_model):
    """Neither a library's progress bars nor DeepSpeed's news of the accelerator that it found."""
    code = f"import wisca_core as wisca; assert wisca.prove({str(small_model('llama'))!r}).passed"
    home = {**os.environ, "WISCA_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=home)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
