"""Cells are trained as promised: equal starts, resumed runs at the same numbers, failures on their own, one folder that
says all.
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from small_comparison import MODEL, TEXT, never, numbers, small_spec, train_all, work_here

from wisca_core import jobs, processes, storage
from wisca_core.cli import main
from wisca_core.comparison import cell as cell_module
from wisca_core.comparison import executor, folder, statistics
from wisca_core.comparison.arm_words import in_words
from wisca_core.comparison.arms import Treatment
from wisca_core.comparison.cell import CellFailed, train
from wisca_core.comparison.data import load_corpus
from wisca_core.comparison.models import build_model, build_optimisers, learning_rate
from wisca_core.comparison.prepare import prepare
from wisca_core.comparison.presets import ARMS
from wisca_core.comparison.spec import FORMAT, VERSION, Arm, DataSpec, ModelSpec, OptimiserSpec, PilotSpec
from wisca_core.comparison.worker import _reason
from wisca_core.errors import BadOption, OutputRefused, PlanMismatch, SpecError, UnreadableInput


@pytest.fixture
def small(text):
    """small(**changes) -> a spec whose cells take a tenth of a second."""
    return partial(small_spec, text)


# --- arms -------------------------------------------------------------------------------------------------------------


def test_all_arms_of_a_seed_start_as_the_same_function_and_end_apart(tmp_path, small):
    arms = tuple(replace(arm, every=arm.every and 3) for arm in ARMS.values())
    comparison = train_all(tmp_path / "c", small(arms=arms, seeds=(1,)))
    curves = folder.curves(comparison)
    starts = curves[curves["step"] == 0].set_index("arm")["val_loss"]
    assert len(starts) == len(ARMS) and starts.max() - starts.min() < 1e-6 * starts.min()
    statistics.check_starts(curves)
    ends = curves[curves["step"] == 12].set_index("arm")["val_loss"]
    assert len(set(ends.drop(["baseline", "placebo", "rates_weighted"]))) == len(ARMS) - 3
    assert abs(ends["rates_weighted"] - ends["wisca"]) < 1e-5 < abs(ends["rates"] - ends["wisca"])
    assert abs(ends["placebo"] - ends["baseline"]) < 1e-4 < abs(ends["wisca"] - ends["baseline"])


def test_what_each_arm_does_to_the_ratio_of_norms(small):
    def ratios(arm: Arm, *steps: int) -> dict[str, float]:
        spec = small(
            arms=(ARMS["baseline"], replace(arm, name="other")) if arm.kind != "none" else (arm, ARMS["wisca"])
        )
        model = build_model(spec, 1)
        treatment = Treatment(arm, model, build_optimisers(model, spec.optimiser, 1e-3))
        for step in steps:
            treatment.at(step)
        return treatment.ratios()

    base = ratios(ARMS["baseline"], 0)
    assert base["qk"] > 0.5 and base["vo"] < -0.5  # two query heads to a KV head: one octave of size
    assert np.allclose(list(ratios(ARMS["wisca"], 0).values()), 0, atol=1e-6)
    only = ratios(ARMS["qk_only"], 0)
    assert abs(only["qk"]) < 1e-6 and only["vo"] == base["vo"]
    # the same number of octaves further away, and held there by every later rescale
    assert np.allclose([ratios(ARMS["inverse"], 0)[p] for p in base], [2 * base[p] for p in base], atol=1e-5)
    assert np.allclose([ratios(ARMS["inverse"], 0, 25, 50)[p] for p in base], [2 * base[p] for p in base], atol=1e-5)
    # left times 1.001, right over it: twice log2(1.001); the second time it is taken back
    assert np.isclose(ratios(ARMS["placebo"], 0)["qk"] - base["qk"], 2 * np.log2(1.001), atol=1e-5)
    assert np.isclose(ratios(ARMS["placebo"], 0, 25)["qk"], base["qk"], atol=1e-6)


def test_an_arm_acts_when_it_is_due(small):
    spec = small()
    for arm, due in (
        (ARMS["wisca"], [0, 25, 50]),
        (ARMS["init_only"], [0]),
        (ARMS["baseline"], []),
        (replace(ARMS["wisca"], at_start=False), [25, 50]),
    ):
        model = build_model(spec, 1)
        treatment = Treatment(arm, model, build_optimisers(model, spec.optimiser, 1e-3))
        assert [step for step in range(60) if treatment.at(step)] == due


@pytest.mark.parametrize("name", ["adamw", "sgd", "muon"])
def test_every_optimiser_trains_and_its_state_is_carried(tmp_path, small, name):
    spec = small(
        optimiser=OptimiserSpec(name, learning_rates=(0.01,), warmup_steps=0),
        arms=(ARMS["baseline"], replace(ARMS["wisca"], every=3)),
        seeds=(1,),
    )
    comparison = train_all(tmp_path / "c", spec)
    curves = folder.curves(comparison)
    for _, rows in curves[curves["val_loss"].notna()].groupby("arm"):
        assert rows["val_loss"].iloc[-1] < rows["val_loss"].iloc[0] - 0.02


def test_the_same_seed_gives_the_same_model_and_another_one_does_not(small):
    a, b, c = (build_model(small(), seed).state_dict() for seed in (1, 1, 2))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(a[name], b[name]) and not torch.equal(a[name], c[name])
    assert prepare(small()).n_parameters == sum(p.numel() for p in build_model(small(), 1).parameters())


def test_the_rate_warms_up_and_comes_down_to_a_tenth():
    o = OptimiserSpec(warmup_steps=4)
    assert [learning_rate(o, 1.0, s, 104) for s in (1, 4)] == [0.25, 1.0]
    assert np.isclose(learning_rate(o, 1.0, 54, 104), 0.55) and np.isclose(learning_rate(o, 1.0, 104, 104), 0.1)
    assert learning_rate(replace(o, schedule="constant"), 1.0, 104, 104) == 1.0


@pytest.mark.parametrize("pairs", [("qk", "vo"), ("mlp",), ("qk", "vo", "mlp")], ids="+".join)
def test_rates_train_as_the_rescale_does(small, pairs):
    """The identity, in float64 without the cast of the norms: every loss to 1e-11 over 8 steps with clipping that
    binds, an epsilon that matters and decay; with the ordinary clip norm it is another training.
    """

    def losses(arm: Arm, optimiser: OptimiserSpec) -> list[float]:
        model = build_model(small(), 1).double()
        for module in model.modules():
            if type(module).__name__ == "LlamaRMSNorm":
                module.forward = partial(_norm_in_full, module)
        optimisers = build_optimisers(model, optimiser, 0.02)
        treatment, out = Treatment(arm, model, optimisers), []
        rows = torch.randint(256, (2, 17), generator=torch.Generator().manual_seed(0))
        treatment.at(0)
        for step in range(9):
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
            out.append(loss.item())
            loss.backward()
            norm = treatment.clip_(model.parameters(), optimiser.clip)
            assert norm > optimiser.clip
            for one in optimisers:
                one.step()
                one.zero_grad()
            treatment.at(step + 1)
        return out

    wisca = replace(ARMS["wisca"], every=3, pairs=pairs)
    rates = Arm("rates", kind="rates", every=3, pairs=pairs)
    for optimiser in (
        OptimiserSpec(warmup_steps=0, epsilon=1e-2, clip=0.2),
        OptimiserSpec("sgd", warmup_steps=0, momentum=0.5, clip=0.2),
    ):
        ours, base = losses(wisca, optimiser), losses(ARMS["baseline"], optimiser)
        assert np.allclose(losses(rates, optimiser), ours, rtol=1e-11, atol=0)
        far = 1e-5 if pairs == ("mlp",) else 1e-4  # its two sides have as many entries, so it is nearly in balance
        assert abs(ours[-1] - base[-1]) > far
        assert abs(losses(replace(rates, clip_norm="plain"), optimiser)[-1] - ours[-1]) > far / 10
    # no clipping: the two norms are one
    free = OptimiserSpec(warmup_steps=0, clip=0.0)
    assert losses(rates, free) == losses(replace(rates, clip_norm="plain"), free)


def test_the_feed_forward_is_a_pair_of_an_arm_and_its_ratio_is_logged_in_all(tmp_path, small):
    both = Arm("both", every=3, pairs=("qk", "vo", "mlp"), granularity="channel")
    rates = Arm("rates", kind="rates", every=3, pairs=("qk", "vo", "mlp"))
    arms = (ARMS["baseline"], Arm("mlp", every=3, pairs=("mlp",)), both, rates, replace(ARMS["wisca"], every=3))
    comparison = train_all(tmp_path / "c", small(arms=arms, seeds=(1,)))
    curves = folder.curves(comparison)
    statistics.check_starts(curves)
    assert curves["mlp"].notna().all() and curves["lora"].isna().all() and comparison.spec.watched == both.pairs
    at = {(row.arm, row.step): row for row in curves.itertuples()}
    ends = {arm.name: at[arm.name, 12].val_loss for arm in arms}
    assert len(set(ends.values())) == len(arms)
    # an arm balances what it has, before the ratio of a later step is measured
    drift = {arm.name: abs(at[arm.name, 2].mlp) for arm in arms}
    assert max(drift["mlp"], drift["both"]) < 0.1 * min(drift["baseline"], drift["rates"], drift["wisca"])
    assert abs(at["mlp", 2].qk) > 0.5 > 0.05 > abs(at["both", 2].qk)
    assert in_words(both) == "QK, VO and MLP balanced by channel every 3 steps"
    # a comparison that asks for none of it does not measure it
    assert small().watched == ("qk", "vo")


def test_a_feed_forward_that_is_no_pair_or_shares_a_matrix_is_named_before_anything_is_trained(tmp_path, small):
    from transformers import GPT2Config, GPT2LMHeadModel, Phi3Config, Phi3ForCausalLM

    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "gpt2"
    )
    sizes = dict(vocab_size=300, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    Phi3ForCausalLM(Phi3Config(**sizes, max_position_embeddings=32, pad_token_id=0)).save_pretrained(tmp_path / "phi3")
    for name, arm, words in (
        ("gpt2", Arm("a", pairs=("qk", "mlp")), r"arms\[1\].pairs: .*none\.mlp"),
        (
            "phi3",
            Arm("a", kind="rates", pairs=("mlp",)),
            r"arms\[1\].kind: 'rates'.*gate_up_proj.weight holds more than its up",
        ),
    ):
        spec = small(model=ModelSpec(source="whole", path=str(tmp_path / name)), arms=(ARMS["baseline"], arm))
        with pytest.raises(SpecError, match=words):
            prepare(spec)
    fused = small(
        model=ModelSpec(source="whole", path=str(tmp_path / "phi3")), arms=(ARMS["baseline"], Arm("a", pairs=("mlp",)))
    )
    assert {site.key.pair for site in prepare(fused).sites} == {"qk", "vo", "mlp"}  # by weights its rows are its own


def _norm_in_full(module, x: torch.Tensor) -> torch.Tensor:
    return module.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)


def test_a_strength_is_meant_of_the_weights_as_they_would_be(small):
    """Half a balance, twice: still half. Minus one, three times: as far out of balance again, not further each time."""

    def ratios(strength: float, times: int) -> dict[str, float]:
        arm = replace(ARMS["wisca"], name="other", strength=strength)
        spec = small(arms=(ARMS["baseline"], arm))
        model = build_model(spec, 1)
        treatment = Treatment(arm, model, build_optimisers(model, spec.optimiser, 1e-3))
        for step in range(times):
            treatment.at(25 * step)
        return treatment.ratios()

    base = ratios(1e-9, 1)
    for strength in (0.5, -1.0, 1.5):
        for times in (1, 3):
            found = ratios(strength, times)
            assert np.allclose([found[p] for p in base], [(1 - strength) * base[p] for p in base], atol=1e-4)


def test_a_strength_beyond_what_numbers_hold_is_named(small):
    for kind in ("balance", "rates"):
        arm = Arm("wild", kind=kind, strength=100.0)
        spec = small(arms=(ARMS["baseline"], arm), model=replace(MODEL, n_heads=8, n_kv_heads=1))
        model = build_model(spec, 1)
        treatment = Treatment(arm, model, build_optimisers(model, spec.optimiser, 1e-3))
        with pytest.raises(BadOption, match="strength.*100"):
            treatment.at(0)


def test_rates_on_fused_weights_are_named_before_anything_is_trained(tmp_path, small):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=300, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    spec = small(
        model=ModelSpec(source="whole", path=str(tmp_path / "gpt2")),
        arms=(ARMS["baseline"], Arm("rates", kind="rates", clip_norm="plain")),
    )
    with pytest.raises(
        SpecError, match=r"arms\[1\].kind: 'rates' was given; allowed is balance for this model: .*c_attn.weight holds"
    ):
        prepare(spec)


def test_the_share_of_clipped_steps_and_the_final_loss_on_more_windows_are_logged(tmp_path, small):
    for clip, shares in ((1e-6, {1.0}), (1e6, {0.0}), (0.0, {0.0})):
        spec = small(seeds=(1,), optimiser=OptimiserSpec(warmup_steps=2, clip=clip))
        comparison = train_all(tmp_path / f"{clip}", spec)
        rows = folder.rows(comparison.cells[0].folder)
        assert {row["clipped"] for row in rows[1:]} == shares
        # 4,000 bytes: a twentieth is held out, 12 windows of 16 side by side, of which the curve sees 4
        assert "final_loss" in rows[-1] and rows[-1]["final_loss"] != rows[-1]["val_loss"]
        assert "final_loss" not in rows[-2]
    table = statistics.finals(comparison, folder.curves(comparison))
    assert table["final"].iloc[0] == rows[-1]["final_loss"]


def test_the_pilot_runs_first_and_the_rest_follows_at_its_rates(tmp_path, small, monkeypatch):
    monkeypatch.setattr(executor, "_start", work_here)
    spec = small(
        arms=(ARMS["baseline"], replace(ARMS["wisca"], every=3), Arm("rates", kind="rates", every=3, rate_of="wisca")),
        optimiser=OptimiserSpec(warmup_steps=2, learning_rates=(1e-3, 1e-2)),
        pilot=PilotSpec((7,), ("baseline", "wisca"), added_rates=0),
        seeds=(1,),
    )
    path = folder.create(tmp_path / "c", spec)
    assert {c.seed for c in folder.read(path).cells} == {7}
    comparison = executor.run(path, workers=1)
    assert comparison.state == "done"
    rates = {c.arm: c.rate for c in comparison.tested}
    assert rates["rates"] == rates["wisca"] == comparison.pilot.chosen["wisca"] and len(comparison.tested) == 3
    ends = {c.arm: folder.final_loss(c) for c in comparison.tested}
    assert abs(ends["rates"] - ends["wisca"]) < 1e-4 < abs(ends["wisca"] - ends["baseline"])


# --- cells ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["wisca", "inverse", "placebo"])
def test_a_stopped_cell_resumes_to_the_very_numbers_of_an_unbroken_one(tmp_path, small, arm, monkeypatch):
    arms = (ARMS["baseline"], replace(ARMS[arm], every=3))
    spec = small(arms=arms, seeds=(1,))
    whole = train_all(tmp_path / "whole", spec).cells[1]
    broken = folder.read(folder.create(tmp_path / "broken", spec)).cells[1]
    corpus = load_corpus(spec)
    monkeypatch.setattr(cell_module, "CHECKPOINT_SECONDS", 1e9)
    for after in (4, 2):  # stops at step 5 and at step 8: off the rescaling steps, and once off the logged ones
        calls = iter(range(100))
        assert not train(spec, broken, corpus, lambda: next(calls) == after)
    # a kill leaves rows behind the checkpoint, the last one cut short
    with (broken.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "val_loss": 99}\n{"step": 11, "tr')
    assert train(spec, broken, corpus, never)
    assert numbers(broken) == numbers(whole)
    assert [row["step"] for row in numbers(whole)] == [0, 2, 4, 6, 8, 10, 12]


def test_a_loss_that_is_not_finite_fails_the_cell_with_its_step(tmp_path, small):
    spec = small(
        optimiser=OptimiserSpec(learning_rates=(100.0,), warmup_steps=0, weight_decay=10.0), seeds=(1,), steps=60
    )  # each step times -999
    cell = folder.read(folder.create(tmp_path / "c", spec)).cells[0]
    with pytest.raises(CellFailed, match="loss became (nan|inf) at step"):
        train(spec, cell, load_corpus(spec), never)


def test_running_out_of_memory_is_said_in_words():
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
    assert _reason(error).startswith("out of memory. Make the model")
    assert _reason(MemoryError()).startswith("out of memory")
    assert _reason(RuntimeError("the device is gone\nmore")) == "RuntimeError: the device is gone"


def test_final_weights_are_a_model_folder(tmp_path, small):
    from wisca_core.checkpoint import open_checkpoint

    spec = small(save_weights=True, seeds=(1,))
    comparison = train_all(tmp_path / "c", spec)
    checkpoint = open_checkpoint(comparison.cells[1].folder / "model")
    assert checkpoint.config["hidden_size"] == 16 and not (comparison.cells[1].folder / "resume.pt").exists()


# --- the folder and the processes -------------------------------------------------------------------------------------


def test_a_worker_killed_in_mid_run_and_then_the_whole_comparison_lose_nothing(tmp_path, small):
    """kill -9 on the worker, then on the process that runs the comparison, then --resume: the numbers of an unbroken
    run.
    """
    spec = small(steps=300, seeds=(1,), evaluate_every=60, log_every=10)
    whole = train_all(tmp_path / "whole", spec)
    path = folder.create(tmp_path / "broken", spec)
    # started from elsewhere, so that nothing here is its parent
    code = (
        "import sys; from pathlib import Path; from wisca_core.comparison import executor; "
        "executor.run(Path(sys.argv[1]), 1)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], start_new_session=True)
    try:
        _until(lambda: folder.read(path).cells[0].step >= 40, 90)
        os.killpg(process.pid, signal.SIGKILL)
    finally:
        process.wait(30)
    now = folder.read(path)
    assert now.state == "interrupted" and now.cells[0].step >= 40
    comparison = executor.run(path, 1)
    assert comparison.state == "done" and [c.state for c in comparison.cells] == ["done", "done"]
    for one, other in zip(comparison.cells, whole.cells):
        assert numbers(one) == numbers(other)
    assert json.loads((path / "corpus.json").read_text())["sha256"] == load_corpus(spec).facts["sha256"]
    # another text is never pooled with this one
    Path(spec.data.path).write_bytes(TEXT[::-1])
    try:
        folder.add_seeds(path, 1)
        with pytest.raises(PlanMismatch, match="never pooled"):
            executor.run(path, 1)
    finally:
        Path(spec.data.path).write_bytes(TEXT)


def _until(condition, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.005)


def test_a_worker_that_dies_gets_one_more_try_and_its_cell_then_fails_with_a_reason(tmp_path, small):
    path = folder.create(tmp_path / "c", small())
    first = folder.read(path).cells[0]
    folder.write_cell_status(first, state="running")
    assert executor._record_death(path, -9)
    again = folder.read(path).cells[0]
    assert (again.state, again.attempts) == ("waiting", 1)
    folder.write_cell_status(again, state="running")
    assert executor._record_death(path, -9)
    failed = folder.read(path).cells[0]
    assert (
        failed.state == "failed"
        and "signal 9; 9 is a kill, most often for lack of memory" in failed.reason
        and not failed.is_final
    )
    assert not executor._record_death(path, -9)  # nobody was training: nothing to restart for


def test_one_failing_cell_leaves_the_others_alone_and_the_command_says_so(tmp_path, small, monkeypatch, capsys):
    monkeypatch.setattr(executor, "_start", work_here)
    spec = small(
        optimiser=OptimiserSpec(learning_rates=(0.01, 100.0), warmup_steps=0, weight_decay=10.0), seeds=(1,), steps=60
    )
    (tmp_path / "spec.json").write_text(json.dumps({"format": FORMAT, "version": VERSION, **spec.to_json()}))
    out = tmp_path / "c"
    assert main(["compare", str(tmp_path / "spec.json"), "--out", str(out), "--workers", "1", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "wisca-comparison-report" and found["state"] == "done"
    assert {name for name, _ in found["missing"]} == {"baseline-lr100-seed1", "wisca-lr100-seed1"}
    assert all("loss became" in reason for _, reason in found["missing"])
    states = {c.name: c.state for c in folder.read(out).cells}
    assert states["baseline-lr0.01-seed1"] == states["wisca-lr0.01-seed1"] == "done"
    assert main(["compare", str(tmp_path / "spec.json"), "--out", str(out)]) == 2
    assert "holds a comparison already" in capsys.readouterr().err


def test_a_comparison_that_is_asked_to_pause_stops_and_says_so(tmp_path, small, monkeypatch):
    path = folder.create(tmp_path / "c", small())
    monkeypatch.setattr(
        executor, "_start", lambda where, *_: (folder.ask(where, "pause"), (subprocess.Popen(["true"]),))[1]
    )
    assert executor.run(path, 1).state == "paused"
    monkeypatch.setattr(
        executor, "_start", lambda where, *_: (folder.ask(where, "cancel"), (subprocess.Popen(["true"]),))[1]
    )
    assert executor.run(path, 1).state == "cancelled"


def test_ctrl_c_pauses_and_says_how_to_go_on(tmp_path, small, monkeypatch, capsys):
    path = folder.create(tmp_path / "c", small())

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(executor, "_start", interrupted)
    assert main(["compare", "--out", str(path), "--resume"]) == 130
    assert f"Go on with: wisca compare --out {path} --resume" in capsys.readouterr().err
    assert folder.read(path).state == "paused"


def test_workers_that_all_end_early_are_a_failure_not_a_finished_comparison(tmp_path, small, monkeypatch):
    path = folder.create(tmp_path / "c", small())
    monkeypatch.setattr(executor, "_start", lambda *_: (subprocess.Popen(["sh", "-c", "exit 3"]),))
    stopped = executor.run(path, 1)
    assert stopped.state == "failed" and "4 cells were not run" in stopped.message


def test_ranks_end_together_as_the_one_that_had_a_word(monkeypatch):
    monkeypatch.setattr(executor, "RANKS_SECONDS", 2.0)

    def ranks(*commands):
        return tuple(subprocess.Popen(["sh", "-c", command]) for command in commands)

    waits, told, sound = ranks("exec sleep 60", "exit 3"), ranks("exit 3", "sleep 1; exit 75"), ranks("true", "true")
    trains = ranks("true", "exec sleep 60")
    processes.end(*sound, told[0], waits[1], trains[0], patience=10)
    assert list(executor._ended([waits, told, sound, trains])) == [(waits, 3), (told, 75), (sound, 0)]
    assert waits[0].returncode == -signal.SIGKILL and trains[1].poll() is None
    executor._stop(trains)
    assert trains[1].returncode == -signal.SIGKILL


def test_two_processes_do_not_run_one_comparison(tmp_path, small):
    path = folder.create(tmp_path / "c", small())
    held = storage.take_lock(path / "lock")
    try:
        with pytest.raises(OutputRefused, match="being run by another process"):
            executor.run(path, 1)
        folder.write_status(path, "running")
        with pytest.raises(OutputRefused, match="seeds are added once it has stopped"):
            folder.add_seeds(path, 1)
    finally:
        os.close(held)


def test_folders_that_are_no_comparison_are_refused(tmp_path, small):
    with pytest.raises(UnreadableInput, match="is no comparison"):
        folder.read(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    with pytest.raises(OutputRefused, match="not an empty folder"):
        folder.create(tmp_path / "taken", small())
    path = folder.create(tmp_path / "c", small())
    with pytest.raises(SpecError, match="add_seeds"):
        folder.add_seeds(path, 0)
    (path / "spec.json").write_text(json.dumps({"format": FORMAT, "version": 2}))
    with pytest.raises(UnreadableInput, match="newer"):
        folder.read(path)


def test_the_command_line_asks_for_one_thing(capsys, tmp_path):
    for wrong in (
        [],
        ["--preset", "default", "--resume"],
        ["--preset", "default"],
        ["--preset", "nope", "--estimate"],
        ["--resume"],
    ):
        assert main(["compare", *wrong]) == 2
    assert "choose from default, dose, thorough" in capsys.readouterr().err


def test_the_estimate_starts_nothing_and_names_time_memory_and_seeds(capsys, tmp_path, small):
    spec = small()
    (tmp_path / "spec.json").write_text(json.dumps({"format": FORMAT, "version": VERSION, **spec.to_json()}))
    assert main(["compare", str(tmp_path / "spec.json"), "--estimate", "--workers", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["n_cells"] == 4
        and found["seconds"] > 0
        and found["fits"]
        # (1.960 + 0.842)^2 (0.063 / 0.044)^2 = 16.1 for a known spread, and three more for the t distribution
        and found["seeds_needed"] == 19
    )
    assert main(["compare", "--preset", "default", "--estimate"]) == 0
    said = capsys.readouterr().out
    assert "3 learning rates on 3 pilot seeds" in said and "42 runs" in said and "201,344 parameters" in said
    assert "19 to see a difference of 0.044 nats per byte" in said


def test_a_model_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, small, capsys):
    spec = small(model=ModelSpec(width=8192, n_layers=500, n_heads=8, mlp_width=32768))
    (tmp_path / "spec.json").write_text(json.dumps({"format": FORMAT, "version": VERSION, **spec.to_json()}))
    assert main(["compare", str(tmp_path / "spec.json"), "--out", str(tmp_path / "c")]) == 2
    assert "GB are free" in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_a_text_that_is_not_there_is_refused_before_anything_is_written(tmp_path, small, capsys):
    spec = small(data=DataSpec("text", str(tmp_path / "none.txt"), context=16))
    (tmp_path / "spec.json").write_text(json.dumps({"format": FORMAT, "version": VERSION, **spec.to_json()}))
    assert main(["compare", str(tmp_path / "spec.json"), "--out", str(tmp_path / "c")]) == 2
    assert "none.txt' does not exist" in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_the_job_kind_is_the_same_work():
    module, _, name = jobs.KINDS["compare"].partition(":")
    assert (module, name) == ("wisca_core.comparison.reporting", "compare_job")
