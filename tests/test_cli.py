"""The command line, run as a person would: exit codes, stdout and stderr apart, what is on the disk afterwards."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

import wisca_core
from wisca_core import cli, storage
from wisca_core.architecture.site import GRANULARITIES, Refusal
from wisca_core.checkpoint import HubSize
from wisca_core.cli import main, models, rescale, terminal
from wisca_core.cli.verify import say_proof
from wisca_core.comparison.presets import PRESETS
from wisca_core.equivalence import full_check
from wisca_core.equivalence.proof import Proof
from wisca_core.errors import Cancelled
from wisca_core.patterns.table import NORMS
from wisca_core.planning.options import PLAN_NORMS

START = [sys.executable, "-c", "import sys; from wisca_core.cli import main; sys.exit(main())"]
Q, K = "model.layers.{}.self_attn.q_proj.weight", "model.layers.{}.self_attn.k_proj.weight"
V, WO = "model.layers.{}.self_attn.v_proj.weight", "model.layers.{}.self_attn.o_proj.weight"
PAIRED = {name.format(layer) for name in (Q, K, V, WO) for layer in range(3)}


@pytest.fixture(scope="module", autouse=True)
def kept(tmp_path_factory):
    """One WISCA_HOME for the whole file, so that the miniature is proved once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WISCA_HOME", str(tmp_path_factory.mktemp("kept")))
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Three layers, 4 query heads on 2 KV heads of 8, bf16, queries four times too heavy."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "max_position_embeddings": 64}
    config = LlamaConfig(num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, **sizes)
    built = LlamaForCausalLM(config).to(torch.bfloat16)
    with torch.no_grad():
        for layer in built.model.layers:
            layer.self_attn.q_proj.weight.mul_(4)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    built.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rescaled(model, tmp_path_factory):
    """The model rescaled with powers of two, one factor a KV group."""
    out = tmp_path_factory.mktemp("rescaled") / "exact"
    assert main(["rescale", str(model), str(out), "--exact", "--granularity", "group"]) == 0
    return out


def changed_copy(model: Path, folder: Path, change) -> Path:
    """The model with ``change(tensors)`` applied to its weights, in place."""
    folder.mkdir()
    for file in model.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def with_nan(model, tmp_path_factory):
    def spoil(tensors):
        tensors[K.format(1)][8, 3] = float("nan")  # first row of key head 1

    return changed_copy(model, tmp_path_factory.mktemp("nan") / "with-nan", spoil)


@pytest.fixture
def unknown(model, tmp_path):
    folder = changed_copy(model, tmp_path / "unknown", lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"model_type": "llamb", "architectures": ["LlambForCausalLM"]})
    )
    return folder


def bytes_of(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def changed(before: Path, after: Path) -> set[str]:
    a, b = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


def l1(folder: Path, name: str) -> float:
    return load_file(folder / "model.safetensors")[name].double().abs().sum().item()


def the_document(capsys, format: str) -> dict:
    """What stdout holds, which must be one JSON document of that format."""
    out = capsys.readouterr().out
    found = json.loads(out)
    assert list(found)[:2] == ["format", "version"] and (found["format"], found["version"]) == (format, 1)
    return found


# --- commands and options ---------------------------------------------------------------------------------------------


def test_every_command_and_every_option_says_what_it_does():
    group = typer.main.get_command(cli.app)
    assert set(group.commands) == {
        "dashboard",
        "inspect",
        "heads",
        "report",
        "rescale",
        "verify",
        "architectures",
        "runs",
        "trajectory",
        "compare",
        "evaluate",
        "clean",
        "jobs",
    }
    for name, command in group.commands.items():
        assert command.help and len(command.get_short_help_str(200)) > 20, name
        for parameter in command.params:
            assert parameter.help and parameter.help.endswith("."), f"{name} {parameter.name}"


def test_the_readme_names_every_command_and_no_option_or_name_that_does_not_exist():
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    commands = typer.main.get_command(cli.app).commands
    options = {option for command in commands.values() for parameter in command.params for option in parameter.opts}
    for name in commands:
        assert f"wisca {name}" in readme, name
    # of pip, and of the help of every command
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", readme)) <= options | {"--help"}
    names = set(re.findall(r"\bwisca\.([A-Za-z_]+)", readme))
    assert names <= set(wisca_core.__all__) and {"open", "plan", "export", "verify"} <= names, names
    assert len(readme.encode()) < 9_000


def test_the_choices_named_in_the_help_are_those_of_the_library():
    group = typer.main.get_command(cli.app)
    metavars = {(c, p.name): p.metavar for c, command in group.commands.items() for p in command.params}
    assert metavars["rescale", "granularity"] == "|".join(GRANULARITIES)
    assert metavars["rescale", "norm"] == "|".join(PLAN_NORMS)
    assert metavars["inspect", "norm"] == "|".join(NORMS)
    assert metavars["compare", "preset"] == "|".join(PRESETS)


def test_help_does_not_wait_for_the_heavy_libraries():
    heavy = "{'torch', 'transformers', 'pandas'}"
    code = f"import sys; from wisca_core.cli import main; main(['inspect', '-h']); print({heavy} & sys.modules.keys())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--csv" in out and out.endswith("set()\n")


def test_a_model_is_looked_at_without_torch_and_written_without_it_once_its_rule_is_proved(model, tmp_path):
    def run(*arguments: object, heavy: str = "{'torch', 'transformers', 'scipy'}") -> str:
        words = [str(one) for one in arguments]
        code = f"import sys; from wisca_core.cli import main; main({words!r}); print({heavy} & sys.modules.keys())"
        home = os.environ | {"WISCA_HOME": str(tmp_path / "home")}
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=home).stdout

    said = run("inspect", model)
    assert "heavier" in said and said.endswith("set()\n")
    assert "'torch'" in run("rescale", model, tmp_path / "first", "--no-check")  # the proof runs a miniature
    assert run("rescale", model, tmp_path / "again", "--no-check").endswith("set()\n")
    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "again") != bytes_of(model)


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(r"wisca \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_a_model_goes_by_its_own_type_and_its_rule_is_named_beside_it(small_model, capsys):
    assert main(["inspect", str(small_model("mixtral"))]) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("mixtral, rule llama, ")


# --- inspect ----------------------------------------------------------------------------------------------------------


def test_inspect_names_the_heavier_side_of_each_layer(model, capsys):
    assert main(["inspect", str(model)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "llama" in out and "3 layers, 4 query heads on 2 KV heads of 8, BF16, 6 pairs found, 0 refused" in out
    # 8x: 2 from the entries, 4 from the weights
    assert re.search(
        r"The query side is [78]\.\d× heavier in the median layer; 2\.0× of that is size, [34]\.\d× is not\.", out
    )
    assert re.search(r"The output side is (1\.9\d|2\.\d)× heavier", out)
    row = r"^ +[012] +query \d\.\d× +query 2\.0× +query \d\.\d× +2\.[6-9]×, 0\.3[4-8]× +output"  # the root of 8
    assert len(re.findall(row, out, re.M)) == 3
    assert "decoder.0.self.qk" in out


def test_inspect_as_json_agrees_with_the_weights(model, capsys):
    assert main(["inspect", str(model), "--json", "--norm", "mean"]) == 0
    found = the_document(capsys, "wisca-inspect")
    assert found["norm"] == "mean" and found["facts"]["n_kv_heads"] == 2 and found["facts"]["n_pairs"] == 6
    first = found["groups"][0]
    weights = load_file(model / "model.safetensors")
    assert (first["name"], first["group"], first["n_left"]) == ("decoder.0.self.qk", 0, 16 * 32)
    assert first["left"] == pytest.approx(weights[Q.format(0)][:16].double().abs().mean().item(), rel=1e-6)
    assert first["right"] == pytest.approx(weights[K.format(0)][:8].double().abs().mean().item(), rel=1e-6)
    assert [row["log2_size"] for row in found["layers"]] == [0.0] * 6
    assert found["pairs"]["qk"]["heavier"] == "query" and "query" in found["pairs"]["qk"]["sentence"]


def test_inspect_writes_the_groups_as_csv_and_replaces_only_its_own_table(model, tmp_path, capsys):
    path = tmp_path / "groups.csv"
    assert main(["inspect", str(model), "--csv", str(path)]) == 0
    rows = list(csv.DictReader(path.open()))
    assert len(rows) == 12 and rows[0]["name"] == "decoder.0.self.qk" and float(rows[0]["log2_size"]) == 1.0
    assert main(["inspect", str(model), "--csv", str(path)]) == 0
    other = tmp_path / "weights.safetensors"
    other.write_bytes(b"precious")
    assert main(["inspect", str(model), "--csv", str(other)]) == 2
    assert other.read_bytes() == b"precious" and "is no table of KV groups" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["groups.csv", "weights.safetensors"]


def test_an_unknown_architecture_is_shown_as_tensors_and_exits_with_1(unknown, capsys):
    assert main(["inspect", str(unknown)]) == 1
    out = capsys.readouterr().out
    assert 'model_type "llamb" has no site rule' in out and "closest to llama" in out
    assert re.search(r"model\.layers\.\*\.self_attn\.q_proj\.weight +3 +BF16 +32 x 32", out)
    assert main(["inspect", str(unknown), "--json"]) == 1
    found = the_document(capsys, "wisca-inspect")
    assert found["refused"][0]["what"] == "model" and len(found["tensors"]) == found["facts"]["n_tensors"]


@pytest.mark.parametrize("command", [["inspect"], ["rescale", "--dry-run"], ["verify", "."]])
def test_what_cannot_be_opened_exits_with_2_and_one_line(command, tmp_path, capsys):
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    assert main([*command, str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1


def test_names_are_printed_as_they_are(model, tmp_path, capsys):
    folder = changed_copy(model, tmp_path / "=[red]a[bold]:smile:\x1b[31m", lambda tensors: None)
    assert main(["inspect", str(folder)]) == 0
    assert "/=[red]a[bold]:smile:\\x1b[31m\n" in capsys.readouterr().out


# --- rescale ----------------------------------------------------------------------------------------------------------


def test_the_defaults_make_the_norms_equal_and_say_so_before_writing(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["rescale", str(model), str(out)]) == 0
    text, err = capsys.readouterr()
    assert err == ""
    for layer in range(3):
        assert l1(model, Q.format(layer)) > 3 * l1(model, K.format(layer))
        assert l1(out, Q.format(layer)) == pytest.approx(
            l1(out, K.format(layer)), rel=2e-3
        )  # bf16 rounds each value once
        assert l1(out, V.format(layer)) == pytest.approx(l1(out, WO.format(layer)), rel=2e-3)
    assert changed(model, out) == PAIRED
    order = [
        "pairs qk, vo, granularity tensor, norm l1, strength 1\n",
        "level",
        "6 of 6 pairs change, by 6 factors",
        "stored values multiplied: 9,216\n",
        "rounded once, by at most half a unit in the last place: 9,216\n",
        "would overflow and is left as it is: 0\n",
        "Proof by miniature of rule llama: passed",
        "Full check: largest relative difference of the logits",
        "Not checked:",
        f"Written to {out}",
    ]
    at = [text.index(part) for part in order]
    assert at == sorted(at)
    assert json.loads((out / "wisca_report.json").read_text())["full_check"]["n_tokens"] > 0


def test_options_reach_the_plan(model, tmp_path, capsys):
    arguments = [
        "--pairs",
        "qk",
        "--granularity",
        "channel",
        "--norm",
        "rms",
        "--strength",
        "0.9",
        "--exact",
        "--no-check",
    ]
    assert main(["rescale", str(model), str(tmp_path / "out"), *arguments, "--json"]) == 0
    found = the_document(capsys, "wisca-rescale")
    assert found["options"] == {
        "method": "wisca",
        "pairs": ["qk"],
        "granularity": "channel",
        "norm": "rms",
        "strength": 0.9,
        "layers": [],
        "exact": True,
        "exclude": [],
    }
    assert found["full_check"] is None and found["full_check_not_run"] == "not asked for"


def test_a_dry_run_shows_the_plan_and_writes_no_model(model, tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in model.parent.rglob("*")}
    assert main(["rescale", str(model), str(tmp_path / "out"), "--dry-run"]) == 0
    assert "Dry run: nothing was written" in capsys.readouterr().out
    assert main(["rescale", str(model), "--dry-run", "--json"]) == 0
    found = the_document(capsys, "wisca-rescale")
    assert found["out"] is None and found["n_pairs_changed"] == 6 and found["proof"]["passed"]
    assert found["pairs"]["qk"]["heavier"] == "query" and found["pairs"]["qk"]["heavier_after"] == ""
    assert list(tmp_path.iterdir()) == []
    assert {path: path.stat().st_mtime_ns for path in model.parent.rglob("*")} == before


def test_a_saved_plan_gives_the_same_bytes(model, tmp_path):
    plan = tmp_path / "plan.json"
    assert main(["rescale", str(model), "--dry-run", "--norm", "max", "--save-plan", str(plan)]) == 0
    assert main(["rescale", str(model), str(tmp_path / "a"), "--norm", "max", "--no-check"]) == 0
    assert main(["rescale", str(model), str(tmp_path / "b"), "--plan", str(plan), "--no-check"]) == 0
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b") != bytes_of(model)


def test_a_plan_replaces_only_a_plan_and_only_fits_its_own_checkpoint(model, rescaled, tmp_path, capsys):
    plan = tmp_path / "plan.json"
    for _ in range(2):
        assert main(["rescale", str(model), "--dry-run", "--save-plan", str(plan)]) == 0
    assert main(["rescale", str(rescaled), "--dry-run", "--plan", str(plan)]) == 2
    assert "fingerprint" in capsys.readouterr().err
    config = tmp_path / "config.json"
    config.write_text("{}")
    assert main(["rescale", str(model), "--dry-run", "--save-plan", str(config)]) == 2
    assert config.read_text() == "{}"


def test_undo_gives_the_original_bytes_back_in_exact_mode(model, rescaled, tmp_path, capsys):
    assert bytes_of(rescaled) != bytes_of(model)
    assert (
        main(
            [
                "rescale",
                str(rescaled),
                str(tmp_path / "back"),
                "--undo",
                str(rescaled / "wisca_report.json"),
                "--no-check",
            ]
        )
        == 0
    )
    assert bytes_of(tmp_path / "back") == bytes_of(model)
    assert "6 of 6 pairs change" in capsys.readouterr().out


def test_exact_mode_is_announced_and_found_bit_identical(rescaled):
    check = json.loads((rescaled / "wisca_report.json").read_text())["full_check"]
    assert check["bit_identical"] and check["n_equal"] == check["n_values"] > 0


def test_layers_and_exclude_leave_the_rest_alone(model, tmp_path):
    out = tmp_path / "layers"
    assert (
        main(
            [
                "rescale",
                str(model),
                str(out),
                "--layers",
                "0-1",
                "--exclude",
                "decoder.0.self.vo",
                "--exclude",
                "decoder.1.self.qk",
                "--no-check",
            ]
        )
        == 0
    )
    assert changed(model, out) == {Q.format(0), K.format(0), V.format(1), WO.format(1)}


def test_a_head_with_nan_is_refused_by_name_while_the_others_are_done(with_nan, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["rescale", str(with_nan), str(out), "--granularity", "group", "--no-check"]) == 0
    text = capsys.readouterr().out
    assert "Refused and left as they are, 1:" in text
    assert f"decoder.1.self.qk KV group 1: head 1 of layer 1 ({K.format(1)}) has 1 non-finite values" in text
    before, after = load_file(with_nan / "model.safetensors"), load_file(out / "model.safetensors")
    key = K.format(1)
    assert torch.equal(before[key][8:].view(torch.int16), after[key][8:].view(torch.int16))
    assert not torch.equal(before[key][:8], after[key][:8])


def test_strict_writes_nothing_where_anything_asked_for_is_refused(with_nan, tmp_path, capsys):
    assert (
        main(["rescale", str(with_nan), str(tmp_path / "out"), "--strict", "--save-plan", str(tmp_path / "plan.json")])
        == 1
    )
    err = capsys.readouterr().err
    assert "decoder.1.self.qk: head 1 of layer 1" in err and "Nothing was written" in err
    assert list(tmp_path.iterdir()) == []
    # what was not asked for cannot be refused
    assert main(["rescale", str(with_nan), "--dry-run", "--strict", "--pairs", "vo"]) == 0


def test_nothing_that_can_be_rescaled_exits_with_1(model, with_nan, unknown, tmp_path, capsys):
    assert main(["rescale", str(unknown), str(tmp_path / "out")]) == 1
    assert 'model_type "llamb" has no site rule' in capsys.readouterr().err
    assert main(["rescale", str(model), str(tmp_path / "out"), "--strength", "0"]) == 1
    assert main(["rescale", str(with_nan), str(tmp_path / "out"), "--layers", "1", "--pairs", "qk", "--json"]) == 1
    found = the_document(capsys, "wisca-error")
    assert found["error"] == "NothingToRescale" and "non-finite" in found["message"] and found["exit_code"] == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "OUT is missing"),
        (["OUT", "--pairs", "qk,kv"], "kv"),
        (["OUT", "--pairs", ""], "pairs"),
        (["OUT", "--granularity", "head"], "'head'"),
        (["OUT", "--granularity", ""], "granularity"),
        (["OUT", "--norm", "mean"], "'mean'"),
        (["OUT", "--strength", "1.5"], "1.5"),
        (["OUT", "--strength", "nan"], "nan"),
        (["OUT", "--strength", "much"], "--strength"),
        (["OUT", "--layers", "3-1"], "'3-1'"),
        (["OUT", "--layers", ""], "layers"),
        (["OUT", "--layers", "0-1,9"], "decoder 0-2"),
        (["OUT", "--layers", "encoder:0"], "encoder:0"),
        (["OUT", "--exclude", "decoder.9.self.qk"], "decoder.9.self.qk"),
        (["OUT", "--plan", "MODEL/config.json"], "wisca-plan"),
        (["OUT", "--undo", "MODEL/none.json"], "none.json"),
        (["OUT", "--plan", "p", "--undo", "q"], "--plan and --undo"),
        (["OUT", "--plan", "p", "--norm", "l1", "--exact"], "--norm, --exact cannot be given"),
        (["OUT", "--undo", "p", "--exclude", "decoder.0.self.qk"], "--exclude cannot be given"),
        (["OUT", "--save-plan", "MODEL/none/plan.json"], "folder does not exist"),
        (["MODEL"], "the model itself"),
        (["MODEL/inside"], "inside"),
        (["EXISTS"], "exists already"),
        (["OUT", "--unheard-of"], "--unheard-of"),
    ],
)
def test_a_wrong_use_exits_with_2_and_leaves_nothing(arguments, words, model, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    names = {"OUT": str(tmp_path / "out"), "EXISTS": str(tmp_path / "there"), "MODEL": str(model)}
    given = [re.sub("OUT|EXISTS|MODEL", lambda m: names[m[0]], part) for part in arguments]
    assert main(["rescale", str(model), *given]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["there"] and list((tmp_path / "there").iterdir()) == []


def test_a_failed_proof_stops_before_anything_is_written(model, tmp_path, capsys, monkeypatch):
    real = rescale.prove
    monkeypatch.setattr(
        rescale,
        "prove",
        lambda *a, **of: replace(real(*a, **of), passed=False, reason="the outputs differ by 3.0e-01."),
    )
    assert main(["rescale", str(model), str(tmp_path / "out")]) == 1
    assert "the outputs differ by 3.0e-01. Nothing was written." in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_full_check_that_does_not_fit_is_said_or_refused_where_it_was_asked_for(model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(full_check, "memory_free", lambda: 1000)
    assert main(["rescale", str(model), str(tmp_path / "a")]) == 0
    assert re.search(
        r"Full check: not run \(it needs about [\d.]+ MB of memory, 1.0 kB are free\)", capsys.readouterr().out
    )
    assert main(["rescale", str(model), str(tmp_path / "b"), "--check"]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_ctrl_c_during_the_export_leaves_nothing_behind(model, tmp_path):
    out = tmp_path / "out"
    # a disk that takes a second for a file: there is a moment to interrupt
    # (a shell without job control starts what is in its background with interrupts ignored)
    slow = (
        "import os, signal, time; signal.signal(signal.SIGINT, signal.default_int_handler); sync = os.fsync; "
        "os.fsync = lambda file: (time.sleep(1), sync(file)); "
    )
    running = subprocess.Popen(
        [*START[:2], slow + START[2], "rescale", str(model), str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while not (tmp_path / ".out.wisca-partial").exists() and time.monotonic() < end and running.poll() is None:
        time.sleep(0.005)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130, err
    assert err.endswith("cancelled. Nothing was left behind.\n") and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


# --- verify -----------------------------------------------------------------------------------------------------------


def test_verify_tells_equal_exact_and_wrong_apart(model, rescaled, tmp_path, capsys):
    assert main(["verify", str(model), str(model), "--json"]) == 0
    assert the_document(capsys, "wisca-verify")["verdict"] == "bit-identical"
    assert main(["verify", str(model), str(rescaled)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("bit-identical\n") and "Not checked:" in out and "cases: length 1" in out

    def spoil(tensors):
        tensors[K.format(0)] *= 1.01  # its partner is not divided

    wrong = changed_copy(rescaled, tmp_path / "wrong", spoil)
    assert main(["verify", str(model), str(wrong)]) == 1
    assert capsys.readouterr().out.startswith("not equivalent\n")
    assert main(["verify", str(model), str(wrong), "--json"]) == 1
    found = the_document(capsys, "wisca-verify")
    assert (
        found["verdict"] == "not equivalent" and found["exit_code"] == 1 and "decoder.0.self.qk" in found["reasons"][0]
    )


def test_verify_calls_a_rounded_export_equivalent_up_to_rounding(model, tmp_path, capsys):
    assert main(["rescale", str(model), str(tmp_path / "out"), "--no-check"]) == 0
    capsys.readouterr()
    assert main(["verify", str(model), str(tmp_path / "out"), "--weights-only", "--json"]) == 0
    found = the_document(capsys, "wisca-verify")
    assert found["verdict"] == "equivalent up to rounding" and found["n_changed"] == 12
    assert found["check"] is None and any("outputs of the models" in text for text in found["not_checked"])


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_clean_shows_sizes_and_removes_only_what_is_named_and_agreed_to(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("WISCA_HOME", str(tmp_path))
    (storage.folder("proofs") / "a.json").write_bytes(b"x" * 1500)
    (storage.folder("measurements") / "b.npz").write_bytes(b"x" * 20)
    assert main(["clean"]) == 0
    assert re.search(r"proofs +1\.5 kB", capsys.readouterr().out)
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    assert main(["clean", "proofs"]) == 2
    assert "Add --yes" in capsys.readouterr().err and (tmp_path / "proofs" / "a.json").exists()
    assert main(["clean", "prooofs", "--yes"]) == 2
    assert main(["clean", "proofs", "--yes", "--json"]) == 0
    capsys.readouterr()
    assert not (tmp_path / "proofs" / "a.json").exists() and (tmp_path / "measurements" / "b.npz").exists()
    assert main(["clean", "all", "--yes", "--json"]) == 0
    found = the_document(capsys, "wisca-clean")
    assert found["n_bytes_freed"] == 20 and found["cleaned"] == list(storage.FOLDERS)


def test_jobs_are_listed_and_one_that_is_not_there_cannot_be_cancelled(tmp_path, capsys, monkeypatch):
    from wisca_core import jobs

    monkeypatch.setenv("WISCA_HOME", str(tmp_path))
    assert main(["jobs"]) == 0 and capsys.readouterr().out == "No job yet.\n"
    job = jobs.start("sleep", {"steps": 1000, "seconds": 0.02}, "a long [bold]sleep[/bold]")
    assert main(["jobs", "--cancel", job.id, "--json"]) == 0
    found = the_document(capsys, "wisca-jobs")["jobs"]
    assert [(j["id"], j["state"]) for j in found] == [(job.id, "cancelled")]
    assert main(["jobs"]) == 0 and "a long [bold]sleep[/bold]" in capsys.readouterr().out
    assert main(["jobs", "--cancel", "nobody"]) == 2


# --- the terminal -----------------------------------------------------------------------------------------------------


def test_a_closed_pipe_ends_the_command_quietly(tmp_path):
    read, write = os.pipe()
    os.close(read)
    environment = os.environ | {"WISCA_HOME": str(tmp_path)}
    with os.fdopen(write, "wb") as closed:
        ended = subprocess.run([*START, "clean"], stdout=closed, stderr=subprocess.PIPE, env=environment)
    assert (ended.returncode, ended.stderr) == (terminal.BROKEN_PIPE, b"")


def test_what_a_library_prints_does_not_reach_the_document(capsys):
    @terminal.ending
    def command(json: bool = True) -> int:
        print("a library says hello")
        terminal.document("wisca-test", {"infinite": float("inf"), "name": "\udcff"})
        return 0

    with pytest.raises(typer.Exit):
        command()
    out, err = capsys.readouterr()
    assert json.loads(out) == {"format": "wisca-test", "version": 1, "infinite": None, "name": "\udcff"}
    assert err == "a library says hello\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_scheduler_s_signal_or_a_closed_terminal_is_a_cancel(number, capsys):
    @terminal.ending
    def command() -> int:
        os.kill(os.getpid(), number)
        time.sleep(5)
        return 0

    before = signal.signal(number, signal.SIG_DFL)  # under nohup a closed terminal is ignored, and stays so
    try:
        with pytest.raises(typer.Exit) as ended:
            command()
        assert ended.value.exit_code == Cancelled.exit_code == 130
        assert "Nothing was left behind" in capsys.readouterr().err and signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_hub_model_is_not_downloaded_without_consent(capsys, monkeypatch):
    size = HubSize("hub:owner/name", "0" * 40, 3_000_000_000, (("model.safetensors", 3_000_000_000),))
    opened = []
    monkeypatch.setattr(models, "hub_size", lambda model: size)
    monkeypatch.setattr(models, "n_bytes_missing", lambda size: 2_000_000_000)
    monkeypatch.setattr(models, "open_checkpoint", lambda model, progress, declared: opened.append(model) or 1 / 0)
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    assert main(["inspect", "hub:owner/name"]) == 2
    err = capsys.readouterr().err
    assert "hub:owner/name is 3.0 GB, 2.0 GB of it to download" in err and "--yes" in err and opened == []
    with pytest.raises(ZeroDivisionError):  # with consent it goes on
        main(["inspect", "hub:owner/name", "--yes"])
    assert opened == ["hub:owner/name"]


def test_text_that_a_spreadsheet_would_run_is_escaped_and_numbers_are_not():
    import pandas as pd

    from wisca_core.spreadsheet import csv_bytes

    table = pd.DataFrame({"=x": ["=1+1", "+a", "-a", "@a", "a-b"], "n": [-1.5, 0.1, 2.0, 3.0, -4.0]})
    assert csv_bytes(table) == b"'=x,n\n'=1+1,-1.5\n'+a,0.1\n'-a,2.0\n'@a,3.0\na-b,-4.0\n"


def test_a_proof_that_holds_for_some_pairs_says_which_are_left_and_each_name_once(capsys):
    why = (
        "vision.0.cross.qk: scaling one side alone does not move the outputs, so this pair is not run and nothing "
        "is "
        "proved."
    )
    figures = dict(n_cases=4, cases=("length 7",), max_rel=0.0, liveness=0.1, largest_factor=1024.0, seconds=1.0)
    proof = Proof(
        passed=False,
        rule="siglip",
        what="2 layers",
        **figures,
        versions={},
        reason=why,
        proved=("vision.self.qk", "vision.self.vo"),
        refused=(("vision.cross.qk", why),),
    )
    say_proof(proof)
    said = " ".join(capsys.readouterr().out.split())
    assert "passed for 2 of 3 kinds of pair; left as they are: " in said and "failed" not in said
    assert "vision.cross.qk: scaling one side alone" in said and "vision.0.cross.qk" not in said
    say_proof(replace(proof, proved=()))
    assert "failed: vision.0.cross.qk" in " ".join(capsys.readouterr().out.split())
    lines = rescale._lines([Refusal(f"vision.{i}.cross.qk", why) for i in range(2)])
    assert lines == [f"vision.0.cross.qk and 1 more like it: {why.removeprefix('vision.0.cross.qk: ')}"]
