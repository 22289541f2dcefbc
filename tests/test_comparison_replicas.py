"""Cells trained at once as replicas give what each gives alone, and what ends one of them ends it alone."""

import json
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_comparison import MODEL, never, numbers, small_spec

from wisca_core.cli import main
from wisca_core.comparison import cell as cell_module
from wisca_core.comparison import execution_plan, executor, folder, worker
from wisca_core.comparison import place as places
from wisca_core.comparison.cell import CellFailed, train
from wisca_core.comparison.data import load_corpus
from wisca_core.comparison.models import build_model, build_optimisers
from wisca_core.comparison.place import Placement
from wisca_core.comparison.presets import ARMS
from wisca_core.comparison.replicas import group as replicas
from wisca_core.comparison.replicas.group import train_group
from wisca_core.comparison.replicas.orthogonal import newton_schulz
from wisca_core.comparison.replicas.stack import Stack, why_not
from wisca_core.comparison.spec import OptimiserSpec, Spec
from wisca_core.comparison.spec_reading import spec_from
from wisca_core.errors import BadOption, DeviceMissing, PlanMismatch, SpecError

COLUMNS = ("train_loss", "val_loss", "grad_norm", "qk", "vo")


def arms(*names: str, every: int = 3):
    return tuple(replace(ARMS[name], every=ARMS[name].every and every) for name in names)


@pytest.fixture
def small(text):
    def small(**changes) -> Spec:
        given = dict(
            steps=20,
            seeds=(1,),
            arms=arms("baseline", "wisca"),
            evaluate_every=min(5, changes.get("steps", 5)),
            log_every=1,
        )
        return small_spec(text, **{**given, **changes})

    return small


def one_by_one(path: Path, spec: Spec) -> tuple[folder.Cell, ...]:
    folder.create(path, spec)
    cells = folder.read(path).cells
    corpus = load_corpus(spec)
    for cell in cells:
        assert train(spec, cell, corpus, never, Placement("cpu", spec.precision))
    return cells


def at_once(path: Path, spec: Spec, stop=never) -> tuple[tuple[folder.Cell, ...], dict[str, BaseException | None]]:
    if not path.exists():
        folder.create(path, spec)
    cells = folder.read(path).cells
    ended: dict[str, BaseException | None] = {}
    train_group(
        spec,
        cells,
        load_corpus(spec),
        stop,
        Placement("cpu", spec.precision),
        lambda cell, error: ended.update({cell.name: error}),
    )
    return cells, ended


def apart(one: folder.Cell, other: folder.Cell, columns=COLUMNS) -> float:
    """Largest difference of any value of any row, relative where the values are over 1."""
    a, b = numbers(one), numbers(other)
    assert [(r["step"], r["lr"], r["tokens"]) for r in a] == [(r["step"], r["lr"], r["tokens"]) for r in b]
    pairs = [(x[c], y[c]) for x, y in zip(a, b) for c in columns if x.get(c) is not None or y.get(c) is not None]
    return max(abs(x - y) / max(1.0, abs(y)) for x, y in pairs)


# --- the same numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", ["adamw", "sgd", "muon"])
def test_replicas_of_every_arm_and_rate_give_the_losses_of_single_cells_over_20_steps(
    tmp_path, small, optimiser, monkeypatch
):
    if optimiser == "muon":  # its iteration rounds to bfloat16, where a last bit of a gradient becomes a 256th
        monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor)
    chosen = (
        ("baseline", "wisca", "inverse")
        if optimiser != "adamw"
        else ("baseline", "wisca", "inverse", "state_left", "channel", "placebo", "l2")
    )
    spec = small(
        arms=arms(*chosen),
        optimiser=OptimiserSpec(optimiser, learning_rates=(3e-3, 1e-2), warmup_steps=2),
        seeds=(1,) if optimiser == "adamw" else (1, 2),
    )
    alone = one_by_one(tmp_path / "alone", spec)
    together, ended = at_once(tmp_path / "together", spec)
    assert list(ended) == [c.name for c in together] and not any(ended.values())
    for one, other in zip(alone, together, strict=True):
        assert apart(other, one) < 1e-5
    # and what is compared moves: the arms and the rates end apart
    assert len({numbers(cell)[-1]["val_loss"] for cell in together}) > 0.7 * len(together)


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
def test_in_float64_the_final_weights_agree_to_its_last_digits(tmp_path, small, optimiser):
    spec = small(
        precision="float64",
        save_weights=True,
        steps=10,
        optimiser=OptimiserSpec(optimiser, learning_rates=(1e-2,), warmup_steps=2, momentum=0.5),
    )
    alone = one_by_one(tmp_path / "alone", spec)
    together, _ = at_once(tmp_path / "together", spec)
    for one, other in zip(alone, together, strict=True):
        a, b = (load_file(cell.folder / "model" / "model.safetensors") for cell in (one, other))
        assert a.keys() == b.keys() and all(t.dtype == torch.float64 for t in b.values())
        assert max(((a[n] - b[n]).abs().max() / a[n].abs().max()).item() for n in a) < 1e-12


def test_final_losses_are_within_the_placebos_spread(tmp_path, small):
    spec = small(arms=arms("baseline", "placebo", "wisca"), steps=60, log_every=20, evaluate_every=60, seeds=(1, 2))
    alone = one_by_one(tmp_path / "alone", spec)
    together, _ = at_once(tmp_path / "together", spec)
    final = {cell.name: numbers(cell)[-1]["val_loss"] for cell in alone}
    spread = max(abs(final[f"placebo-lr0.001-seed{seed}"] - final[f"baseline-lr0.001-seed{seed}"]) for seed in (1, 2))
    assert 0 < spread < 1e-3
    assert max(abs(numbers(cell)[-1]["val_loss"] - final[cell.name]) for cell in together) <= spread


def test_bfloat16_is_of_training_alone_and_the_same_in_replicas(tmp_path, small):
    spec = small(precision="bfloat16", steps=6)
    alone = one_by_one(tmp_path / "alone", spec)
    together, _ = at_once(tmp_path / "together", spec)
    plain = one_by_one(tmp_path / "float32", small(steps=6))
    for one, other, exact in zip(alone, together, plain, strict=True):
        assert apart(other, one) < 1e-3
        assert numbers(one)[0] == numbers(exact)[0]  # before the first step nothing was rounded
        assert 1e-6 < abs(numbers(one)[-1]["train_loss"] - numbers(exact)[-1]["train_loss"]) < 0.05


def test_batched_orthogonalisation_is_the_single_one():
    torch.manual_seed(0)
    matrices = torch.randn(6, 12, 20) + 3 * torch.eye(12, 20)  # far from singular: bfloat16 noise is not grown
    for given in (matrices, matrices.mT):
        coefficients = (3.4445, -4.7750, 2.0315)
        batched = newton_schulz(given, coefficients, 5, 1e-7).float()
        for one, many in zip(given, batched):
            parameter = torch.nn.Parameter(torch.zeros_like(one))
            parameter.grad = one.clone()
            torch.optim.Muon([parameter], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False).step()
            torchs = -parameter.detach() / max(1, one.shape[0] / one.shape[1]) ** 0.5
            assert (many - torchs).abs().max() < 0.02 < torchs.abs().max() / 10


# --- each on its own --------------------------------------------------------------------------------------------------


def test_paused_replicas_resume_to_the_very_numbers_of_unbroken_ones(tmp_path, small, monkeypatch):
    spec = small(
        arms=arms("baseline", "wisca", "inverse"),
        steps=12,
        log_every=2,
        evaluate_every=4,
        optimiser=OptimiserSpec(learning_rates=(1e-2,), warmup_steps=2),
    )
    whole, _ = at_once(tmp_path / "whole", spec)
    monkeypatch.setattr(cell_module, "CHECKPOINT_SECONDS", 1e9)
    for after in (4, 2):  # stops at step 5 and at step 8: off the rescaling steps, and once off the logged ones
        calls = iter(range(100))
        broken, ended = at_once(tmp_path / "broken", spec, lambda: next(calls) == after)
        assert not ended
    assert (
        sum(f.stat().st_size for f in (tmp_path / "broken").rglob("resume.pt")) < 3 * 150_000
    )  # each keeps its own row, not the stack
    # the checkpoint is that of a single cell: one goes on from it to the same end
    shutil.copytree(tmp_path / "broken", tmp_path / "single")
    for cell, other in zip(folder.read(tmp_path / "single").cells, whole, strict=True):
        assert train(spec, cell, load_corpus(spec), never)
        assert apart(cell, other) < 1e-5
    # a kill leaves rows behind the checkpoint, and one cell at an older one
    with (broken[0].folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "val_loss": 99}\n{"step": 11, "tr')
    for file in ("resume.pt", "metrics.jsonl"):
        (broken[1].folder / file).unlink()
    resumed, ended = at_once(tmp_path / "broken", spec)
    assert len(ended) == 3 and not any(ended.values())
    for one, other in zip(resumed, whole, strict=True):
        assert apart(one, other) < 1e-6


def test_a_replica_that_turns_to_nan_fails_alone_with_its_step(tmp_path, small):
    spec = small(
        optimiser=OptimiserSpec(learning_rates=(0.01, 100.0), warmup_steps=0, weight_decay=10.0), steps=40, log_every=10
    )  # times -999 a step
    together, ended = at_once(tmp_path / "together", spec)
    alone = folder.read(folder.create(tmp_path / "alone", spec)).cells
    for one, other in zip(together, alone, strict=True):
        if one.rate == 100:
            with pytest.raises(CellFailed) as found:
                train(spec, other, load_corpus(spec), never)
            assert isinstance(ended[one.name], CellFailed) and str(ended[one.name]) == str(found.value)
            assert "loss became" in str(found.value) and "at step" in str(found.value)
        else:
            assert train(spec, other, load_corpus(spec), never) and ended[one.name] is None
            assert apart(one, other) < 1e-5
    assert sum(error is None for error in ended.values()) == 2


def test_an_error_of_one_treatment_ends_that_cell_only(tmp_path, small, monkeypatch):
    spec = small(steps=8)
    whole, _ = at_once(tmp_path / "whole", spec)
    at = replicas.single.Treatment.at

    def fails(treatment, step):
        if treatment.arm.name == "wisca" and step == 6:
            raise ValueError("no more")
        return at(treatment, step)

    monkeypatch.setattr(replicas.single.Treatment, "at", fails)
    cells, ended = at_once(tmp_path / "c", spec)
    assert ended[cells[0].name] is None and str(ended[cells[1].name]) == "no more"
    assert numbers(cells[0]) == numbers(whole[0])


# --- what cannot be stacked -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("gpt2", {}, "this is a gpt2"),
        ("llama", {"attention_dropout": 0.1}, "attention dropout"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "'dynamic'"),
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 8}, "a window only"),
        ("llama", {}, ""),
        ("qwen2", {}, ""),
    ],
)
def test_what_cannot_be_stacked_is_named(kind, changes, said):
    from transformers import CONFIG_MAPPING

    found = why_not(CONFIG_MAPPING[kind](**changes))
    assert said in found and bool(said) == bool(found)


def test_biases_untied_heads_and_random_norms_are_stacked_too(small_model):
    from transformers import AutoModelForCausalLM

    folders = [small_model("qwen2", dtype=torch.float64, seed=seed, tie_word_embeddings=False) for seed in (5, 6)]
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64) for path in folders]
    ids = torch.randint(models[0].config.vocab_size, (2, 3, 10))
    place = Placement("cpu", "float64")
    with torch.no_grad(), place.validation_step():
        own = [
            torch.nn.functional.cross_entropy(m(i[:, :-1]).logits.flatten(0, 1), i[:, 1:].flatten()).item()
            for m, i in zip(models, ids)
        ]
    stack = Stack(models, [build_optimisers(m, OptimiserSpec(), 1e-3) for m in models])
    assert stack.losses(ids).detach().numpy() == pytest.approx(own, rel=1e-12) and abs(own[0] - own[1]) > 1e-3


def test_the_kernels_chosen_for_a_gpu_compute_the_same(small):
    spec = small()
    models = [build_model(spec, seed) for seed in (1, 2)]
    stack = Stack(models, [build_optimisers(m, spec.optimiser, 1e-3) for m in models])
    ids = torch.randint(257, (2, 3, 17), generator=torch.Generator().manual_seed(0))
    found = []
    for stack.for_gpu in (False, True):
        stack.gradients.zero_()
        losses = stack.losses(ids)
        losses.sum().backward()
        found.append((losses.detach(), stack.gradients.clone()))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-6)
    assert (found[0][1] - found[1][1]).abs().max() < 1e-6 < found[0][1].abs().max() / 100


@pytest.mark.parametrize("fails", [False, True])
def test_losses_looked_at_only_now_and_then_as_on_a_gpu_are_the_same(tmp_path, small, monkeypatch, fails):
    rates = (0.01, 100.0) if fails else (0.01,)
    optimiser = OptimiserSpec(learning_rates=rates, warmup_steps=0, weight_decay=10.0 if fails else 0.1)
    spec = small(
        optimiser=optimiser, steps=23, log_every=10, evaluate_every=10, arms=arms("baseline", "wisca", every=7)
    )
    usual, as_usual = at_once(tmp_path / "usual", spec)
    looked, look = [], replicas._Replicas._looked_at
    monkeypatch.setattr(
        replicas._Replicas,
        "_looked_at",
        lambda group, losses, norms, step: looked.append((step, len(losses))) or look(group, losses, norms, step),
    )
    monkeypatch.setattr(Placement, "is_cuda", True)
    monkeypatch.setattr(
        replicas, "_capture", lambda stack, rows, clip, place: lambda new: replicas._one_step(stack, new, clip, place)
    )
    seldom, ended = at_once(tmp_path / "seldom", spec)
    assert [step for step, _ in looked] == [7, 10, 14, 20, 21, 23] and sum(n for _, n in looked) == 23
    assert {name: str(error) for name, error in ended.items()} == {name: str(error) for name, error in as_usual.items()}
    for one, other in zip(seldom, usual, strict=True):
        if ended[one.name] is None:
            assert numbers(one) == numbers(other)


def test_a_model_that_computes_something_else_is_refused_before_the_first_step(tmp_path, small, monkeypatch):
    build = cell_module.build_model

    def other(spec, seed):
        model = build(spec, seed)
        model.model.layers[0].self_attn.scaling *= 2  # what a config may one day ask for
        return model

    monkeypatch.setattr(cell_module, "build_model", other)
    with pytest.raises(BadOption, match="replicas compute a loss of .* Use --executor processes"):
        at_once(tmp_path / "c", small(model=replace(MODEL, init_std=0.5)))
    frozen = build_model(small(), 1).requires_grad_(False)
    monkeypatch.setattr(cell_module, "build_model", lambda spec, seed: frozen)
    assert "are frozen" in replicas.why_not_model(frozen)


# --- processes that train replicas ------------------------------------------------------------------------------------


def run_worker(path: Path, monkeypatch, group, at_once: int = 4) -> int:
    monkeypatch.setattr(replicas, "train_group", group)
    return worker.work(path, "cpu", never, "replicas", at_once)


def test_out_of_memory_means_fewer_at_once_and_at_last_a_failed_cell(tmp_path, small, monkeypatch):
    spec = small(arms=arms("baseline", "wisca", "inverse", "placebo"), steps=4)
    path = folder.create(tmp_path / "c", spec)
    sizes = []

    def group(spec, cells, corpus, stop, place, ended):
        sizes.append(len(cells))
        if len(cells) > 1 or cells[0].arm == "wisca":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return train_group(spec, cells, corpus, stop, place, ended)

    assert run_worker(path, monkeypatch, group) == 0
    assert sizes == [4, 2, 1, 1, 1, 1]
    states = {c.arm: c for c in folder.read(path).cells}
    assert [states[a].state for a in ("baseline", "inverse", "placebo")] == ["done"] * 3
    assert (
        states["wisca"].state == "failed"
        and states["wisca"].reason.startswith("out of memory")
        and not states["wisca"].is_final
    )


def test_a_device_that_fails_ends_its_cells_with_the_reason_and_the_rest_go_on_in_a_fresh_process(
    tmp_path, small, monkeypatch
):
    path = folder.create(tmp_path / "c", small(steps=4, seeds=(1, 2)))

    def lost(spec, cells, corpus, stop, place, ended):
        raise RuntimeError("CUDA error: device-side assert triggered\nmore")

    assert run_worker(path, monkeypatch, lost, at_once=2) == worker.LOST
    cells = folder.read(path).cells
    assert [c.state for c in cells] == ["failed", "failed", "waiting", "waiting"]
    assert (
        cells[0].reason.startswith("the device failed: CUDA error: device-side assert triggered.")
        and not cells[0].is_final
    )
    assert run_worker(path, monkeypatch, train_group, at_once=2) == 0
    assert [c.state for c in folder.read(path).cells] == ["failed", "failed", "done", "done"]

    # the process that runs the comparison starts another one after a loss, and none where there is no device
    path = folder.create(tmp_path / "d", small(steps=4))
    codes = iter([worker.LOST, worker.NO_DEVICE])
    started = []

    def start(*_):
        started.append(1)
        return (subprocess.Popen(["sh", "-c", f"exit {next(codes)}"]),)

    monkeypatch.setattr(executor, "_start", start)
    assert executor.run(path, 1).state == "failed" and len(started) == 2


def test_a_device_that_is_not_there_is_said_before_anything_is_written(tmp_path, small, capsys):
    (tmp_path / "spec.json").write_text(json.dumps({"format": "wisca-comparison", "version": 1, **small().to_json()}))
    for device in ("cuda", "cuda:1"):
        assert main(["compare", str(tmp_path / "spec.json"), "--out", str(tmp_path / "c"), "--device", device]) == 2
        assert (
            f"device: {device} was asked for; torch finds no CUDA GPU" in capsys.readouterr().err
            and not (tmp_path / "c").exists()
        )
    assert main(["compare", str(tmp_path / "spec.json"), "--out", str(tmp_path / "c"), "--executor", "magic"]) == 2
    assert "choose from auto, processes, replicas, ray" in capsys.readouterr().err
    assert worker.work(folder.create(tmp_path / "d", small()), "cuda:0", never) == worker.NO_DEVICE
    assert all(c.state == "waiting" for c in folder.read(tmp_path / "d").cells)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"device": "tpu"}, "device"),
        ({"device": "cuda:x"}, "device"),
        ({"device": 0}, "device"),
        ({"precision": "float16"}, "precision"),
        ({"processes_per_cell": 0}, "processes_per_cell"),
        ({"processes_per_cell": 3}, "processes_per_cell"),
    ],
)
def test_wrong_devices_and_precisions_are_named(given, field):
    with pytest.raises(SpecError) as found:
        spec_from(given)
    assert found.value.field == field


def test_where_there_are_gpus_each_has_a_process_that_sees_no_other(tmp_path, small, monkeypatch):
    monkeypatch.setattr(places, "_n_gpus", lambda: 3)
    spec = small(seeds=tuple(range(1, 65)))
    way = execution_plan.choose(spec)
    assert (way.executor, way.device, way.gpus, way.workers, way.at_once) == (
        "replicas",
        "cuda",
        (0, 1, 2),
        3,
        43,
    )  # 128 cells
    assert execution_plan.choose(replace(spec, device="cuda:2")).gpus == (2,)
    assert execution_plan.choose(replace(spec, device="cpu")).executor == "processes"
    with pytest.raises(DeviceMissing, match="this machine has cuda:0 to cuda:2"):
        execution_plan.choose(replace(spec, device="cuda:3"))
    environments = []
    monkeypatch.setattr(
        executor.subprocess,
        "Popen",
        lambda command, env, **_: environments.append((env.get("CUDA_VISIBLE_DEVICES"), command[-3])),
    )
    for outside, expected in (("", ["0", "1", "2", "0"]), ("GPU-a, GPU-b,7", ["GPU-a", "GPU-b", "7", "GPU-a"])):
        environments.clear()
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", outside)
        for number in range(4):
            executor._start(tmp_path, way, number)
        assert environments == [(gpu, "cuda") for gpu in expected]


def test_all_arms_are_trained_in_the_way_the_comparison_began(tmp_path, small, monkeypatch):
    path = folder.create(tmp_path / "c", small(steps=4))
    monkeypatch.setattr(
        executor, "_start", lambda where, *_: (folder.ask(where, "pause"), (subprocess.Popen(["true"]),))[1]
    )
    assert executor.run(path, 1, executor="replicas").state == "paused"
    written = json.loads((path / "executor.json").read_text())
    assert {k: written[k] for k in ("executor", "device", "precision")} == {
        "executor": "replicas",
        "device": "cpu",
        "precision": "float32",
    }
    with pytest.raises(PlanMismatch, match="trained by replicas on cpu; --executor processes was given"):
        executor.run(path, 1, executor="processes")
    assert execution_plan.plan_for(folder.read(path)).executor == "replicas"
    # the same machine with a GPU put in: it goes on where it began
    monkeypatch.setattr(places, "_n_gpus", lambda: 1)
    assert execution_plan.plan_for(folder.read(path)).device == "cpu"
    (path / "executor.json").write_text((path / "executor.json").read_text().replace('"cpu"', '"cuda"'))
    monkeypatch.setattr(places, "_n_gpus", lambda: 0)
    with pytest.raises(DeviceMissing, match="by replicas on cuda; there is only cpu here"):
        execution_plan.plan_for(folder.read(path))


def test_a_killed_process_of_replicas_loses_nothing(tmp_path, small, monkeypatch):
    spec = small(steps=200, log_every=10, evaluate_every=20)
    whole, _ = at_once(tmp_path / "whole", spec)
    path = folder.create(tmp_path / "c", spec)
    start, started = executor._start, []

    def killed_in_mid_run(*given):
        # watched from here and not from the progress function: that one looks four times a second, in which a model of
        # this size may train its last step
        (process,) = start(*given)
        started.append(process)
        while len(started) == 1 and process.poll() is None:
            if folder.read(path).steps_done >= 40:
                process.kill()
            time.sleep(0.002)
        return (process,)

    monkeypatch.setattr(executor, "_start", killed_in_mid_run)
    comparison = executor.run(path, 1, executor="replicas")
    assert [one.returncode for one in started] == [-signal.SIGKILL, 0] and comparison.state == "done"
    for one, other in zip(comparison.cells, whole, strict=True):
        assert one.state == "done" and one.attempts == 1 and numbers(one) == numbers(other)
