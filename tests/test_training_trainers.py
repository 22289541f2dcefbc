"""WISCA in transformers' Trainer and in Lightning: against a plain loop, in telemetry, and through save and resume."""

import json
import logging

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from wisca_core.errors import BadOption, UnreadableInput
from wisca_core.training import Factors, LightningWisca, Scaler, WiscaCallback, rescale_
from wisca_core.training.telemetry import read

N_STEPS = 7


class Tokens(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        ids = torch.randint(5, 60, (9,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids}


@pytest.fixture
def fresh(small_model):
    folder = small_model("llama", num_key_value_heads=8, attention_bias=True)
    return lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def trainer(fresh, tmp_path):
    """trainer(callbacks, name="run", **arguments) -> a Trainer on the CPU, 2 sequences a step in a fixed order."""

    def trainer(callbacks=(), name="run", **arguments):
        options = dict(
            output_dir=str(tmp_path / name),
            max_steps=N_STEPS,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            logging_steps=2,
            seed=1,
            data_seed=1,
        )
        logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
        return Trainer(
            fresh(), TrainingArguments(**(options | arguments)), train_dataset=Tokens(), callbacks=list(callbacks)
        )

    return trainer


def same(a, b) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# --- transformers' Trainer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation, max_grad_norm", [(1, 0.0), (2, 1.0)])
def test_the_callback_does_what_a_plain_loop_with_a_scaler_does(trainer, fresh, accumulation, max_grad_norm):
    ours = trainer(
        [WiscaCallback(every=3, check="never")],  # a check collates two rows of its own
        gradient_accumulation_steps=accumulation,
        max_grad_norm=max_grad_norm,
        lr_scheduler_type="constant",
        per_device_train_batch_size=2,
        optim="adamw_torch",
    )
    ours.model_accepts_loss_kwargs = False  # the model's own mean: how labels are counted changes with transformers
    batches = []
    collate = ours.data_collator
    ours.data_collator = lambda rows: batches.append(collate(rows)) or batches[-1]
    ours.train()

    model = fresh().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    seen = []
    scaler = Scaler(model, optimizer, every=3, on_rescale=lambda step, done: seen.append(step))
    for i in range(N_STEPS):
        for batch in batches[i * accumulation : (i + 1) * accumulation]:
            (model(**batch).loss / accumulation).backward()
        if max_grad_norm:
            torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        scaler.step()
        optimizer.zero_grad()
    assert seen == [0, 3, 6]
    assert same(ours.model, model)
    unscaled = trainer(name="without", lr_scheduler_type="constant", gradient_accumulation_steps=accumulation)
    unscaled.train()
    assert not torch.allclose(
        unscaled.model.model.layers[0].self_attn.q_proj.weight, model.model.layers[0].self_attn.q_proj.weight, atol=1e-3
    )


def test_the_ratios_are_in_the_output_folder_as_lines(trainer, fresh, tmp_path):
    trainer([WiscaCallback(every=3)]).train()
    header = json.loads((tmp_path / "run" / "wisca.jsonl").read_text().splitlines()[0])
    assert list(header)[:2] == ["format", "version"] and (header["format"], header["version"]) == ("wisca-telemetry", 1)
    assert header["choices"]["pairs"] == ["qk", "vo"] and header["proof"]["rule"] == "llama"
    rows = read(tmp_path / "run" / "wisca.jsonl")
    assert [row["step"] for row in rows] == [0, 3, 6]
    attention = fresh().model.layers[1].self_attn
    by_hand = (attention.q_proj.weight.double().abs().sum() / attention.k_proj.weight.double().abs().sum()).item()
    assert abs(rows[0]["ratios"]["decoder.1.self.qk"] / by_hand - 1) < 1e-6
    assert all(abs(row["ratios"]["decoder.1.self.qk"] - 1) < 0.1 for row in rows[1:])
    assert abs(rows[0]["factors"]["decoder.1.self.qk"][0] - by_hand**-0.5) < 1e-6


def test_attached_it_stands_ahead_of_the_integrations_and_off_the_console(trainer):
    class Integration(TrainerCallback):
        logged = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.logged.append(dict(logs))

    one = trainer([Integration()])
    assert WiscaCallback(every=3).attach(one).attach(one)
    one.train()
    names = {name for logs in Integration.logged for name in logs}
    assert {"wisca/log2_ratio/decoder.0.self.qk", "wisca/median_log2_ratio/vo", "loss"} <= names
    assert sum("wisca/median_log2_ratio/qk" in logs for logs in Integration.logged) == 3
    kinds = [type(callback).__name__ for callback in one.callback_handler.callbacks]
    assert kinds[0] == "WiscaCallback" and kinds.count("WiscaCallback") == kinds.count("_OffTheConsole") == 1
    assert kinds.index("_OffTheConsole") == kinds.index("PrinterCallback") - 1


def test_tensorboard_gets_the_drift(trainer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    one = trainer(report_to="tensorboard")
    WiscaCallback(every=2).attach(one)
    one.train()
    (file,) = (tmp_path / "run").rglob("events.out.*")
    events = EventAccumulator(str(file.parent)).Reload()
    assert "train/wisca/log2_ratio/decoder.0.self.qk" in events.Tags()["scalars"]


@pytest.mark.parametrize("saved_at", [3, 4])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(trainer, tmp_path, saved_at):
    options = dict(save_strategy="steps", save_steps=saved_at)
    whole = trainer([WiscaCallback(every=3, granularity="group")], name="whole", **options)
    whole.train()
    trainer([WiscaCallback(every=3, granularity="group")], name="broken", **options).train()
    folder = tmp_path / "broken" / f"checkpoint-{saved_at}"
    resumed = trainer([WiscaCallback(every=3, granularity="group")], name="broken", **options)
    resumed.train(resume_from_checkpoint=str(folder))
    assert same(resumed.model, whole.model)
    rows = [read(tmp_path / name / "wisca.jsonl") for name in ("whole", "broken")]
    assert [r["step"] for r in rows[0]] == [r["step"] for r in rows[1]] == [0, 3, 6]
    assert [r["factors"] for r in rows[0]] == [r["factors"] for r in rows[1]]
    # the file in the folder holds the product of all factors so far: it brings that checkpoint into the first
    # coordinates
    state = json.loads((folder / "wisca_state.json").read_text())
    assert (state["format"], state["version"], state["step"]) == ("wisca-training-state", 1, saved_at)
    kept = Factors.from_json(state["kept"][0], "file")
    product = [
        a * b
        for a, b in zip(
            rows[0][0]["factors"]["decoder.0.self.qk"], rows[0][1]["factors"]["decoder.0.self.qk"], strict=True
        )
    ]
    assert list(kept.by_site["decoder.0.self.qk"]) == product
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    undone = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    rescale_(undone, plan=kept.undone(), granularity="group")
    ids = Tokens()[3]["input_ids"][None]
    assert torch.allclose(model(input_ids=ids).logits, undone(input_ids=ids).logits, rtol=0, atol=1e-6)
    assert not torch.allclose(
        model.model.layers[0].self_attn.q_proj.weight, undone.model.layers[0].self_attn.q_proj.weight, rtol=0.05
    )


def test_options_are_checked_before_the_training_starts():
    for options in ({"every": 0}, {"pairs": ("qv",)}, {"speed": 1}):
        with pytest.raises(BadOption):
            WiscaCallback(**options)
        with pytest.raises(BadOption):
            LightningWisca(**options)


def test_a_newer_telemetry_file_is_refused_by_name(tmp_path):
    (tmp_path / "wisca.jsonl").write_text('{"format": "wisca-telemetry", "version": 2}\n')
    with pytest.raises(UnreadableInput, match=r"wisca\.jsonl is wisca-telemetry version 2"):
        read(tmp_path / "wisca.jsonl")


# --- Lightning --------------------------------------------------------------------------------------------------------


@pytest.fixture
def lightning_run(fresh, tmp_path):
    """lightning_run(callbacks, **trainer options) -> (module after training, trainer)

    ``by_step``: the batch follows from the step, because Lightning does not restore a plain loader's place in an epoch.
    """
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = fresh().train()

        def training_step(self, batch, i):
            if self.by_step:
                ids = Tokens()[self.trainer.global_step]["input_ids"][None]
                batch = {"input_ids": ids, "labels": ids}
            return self.network(**batch).loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def lightning_run(callbacks=(), ckpt_path=None, name="lightning", by_step=False, **options):
        trainer = pl.Trainer(
            **(
                dict(
                    accelerator="cpu",
                    devices=1,
                    max_steps=N_STEPS,
                    callbacks=list(callbacks),
                    logger=False,
                    enable_checkpointing=False,
                    enable_progress_bar=False,
                    enable_model_summary=False,
                    default_root_dir=tmp_path / name,
                )
                | options
            )
        )
        module = Module()
        module.by_step = by_step
        trainer.fit(module, torch.utils.data.DataLoader(Tokens(), batch_size=2), ckpt_path=ckpt_path)
        return module, trainer

    return lightning_run


@pytest.mark.parametrize("accumulation", [1, 2])
def test_in_lightning_it_equals_a_plain_loop(lightning_run, fresh, tmp_path, accumulation):
    module, _ = lightning_run([LightningWisca(every=3)], accumulate_grad_batches=accumulation)
    model = fresh().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = Scaler(model, optimizer, every=3)
    batches = iter(torch.utils.data.DataLoader(Tokens(), batch_size=2))
    for _ in range(N_STEPS):
        for _ in range(accumulation):
            (model(**next(batches)).loss / accumulation).backward()
        optimizer.step()
        scaler.step()
        optimizer.zero_grad()
    assert same(module.network, model)
    assert [row["step"] for row in read(tmp_path / "lightning" / "wisca.jsonl")] == [0, 3, 6]


def test_in_lightning_a_resumed_run_equals_an_unbroken_one_bit_for_bit(lightning_run, tmp_path):
    import lightning.pytorch as pl

    whole, _ = lightning_run([LightningWisca(every=3)], name="whole", by_step=True)
    keep = pl.callbacks.ModelCheckpoint(tmp_path / "kept", every_n_train_steps=3, save_top_k=-1, filename="{step}")
    lightning_run([LightningWisca(every=3), keep], name="broken", max_steps=5, enable_checkpointing=True, by_step=True)
    callback = LightningWisca(every=3)
    resumed, _ = lightning_run([callback], name="broken", ckpt_path=tmp_path / "kept" / "step=3.ckpt", by_step=True)
    assert same(resumed.network, whole.network)
    assert callback.scaler.steps == N_STEPS and callback.scaler.kept["tensor"].sites
