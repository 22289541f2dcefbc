"""Accelerate, a compiled model and Lightning's precisions: the real libraries, a few steps on a tiny model."""

import lightning.pytorch as pl
import pytest
import torch
from accelerate import Accelerator
from training_compiled import Tokens, moved, trained
from transformers import AutoModelForCausalLM

from wisca_core.training import LightningWisca, Scaler
from wisca_core.training.telemetry import read


@pytest.fixture
def fresh(small_model):
    folder = small_model("llama", num_key_value_heads=8, attention_bias=True)
    return lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def query(model) -> torch.Tensor:
    return model.model.layers[0].self_attn.q_proj.weight


def test_accelerate_with_accumulation_and_clipping_is_a_plain_loop(fresh):
    """``scaler.step()`` behind every call of the optimiser's; it counts those that were steps."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = fresh().train()
    loader = torch.utils.data.DataLoader(Tokens(), batch_size=2)
    ours, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=1e-3), loader)
    seen: list[int] = []
    scaler = Scaler(ours, optimizer, every=3, check="always", on_rescale=lambda step, done: seen.append(step))
    norms = []
    for batch in loader:
        with accelerator.accumulate(ours):
            accelerator.backward(ours(**batch).loss)
            if accelerator.sync_gradients:
                norms.append(float(accelerator.clip_grad_norm_(ours.parameters(), 0.1)))
            optimizer.step()
            optimizer.zero_grad()
            if accelerator.sync_gradients:
                scaler.step()

    plain = fresh().train()
    other = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    scaler = Scaler(plain, other, every=3)
    for i, batch in enumerate(torch.utils.data.DataLoader(Tokens(), batch_size=2)):
        (plain(**batch).loss / 2).backward()
        if i % 2:
            torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
            other.step()
            other.zero_grad()
            scaler.step()
    assert seen == [0, 3, 6] and len(norms) == 8 and min(norms) > 0.1  # all were clipped
    for a, b in zip(accelerator.unwrap_model(ours).parameters(), plain.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=2e-6)


def test_a_compiled_model_sees_the_rescale_without_being_compiled_again(fresh, tmp_path):
    model, n_graphs = trained(fresh(), tmp_path / "run", "aot_eager")
    assert n_graphs == 1 and [row["step"] for row in read(tmp_path / "run" / "wisca.jsonl")] == [0, 2, 4]
    assert moved(model, fresh()) < 1e-4
    assert not torch.allclose(query(model), query(fresh()), rtol=1e-2)


# what a free factor rounds: once each weight, in the dtype it is kept in
@pytest.mark.parametrize(
    "precision, limit",
    [("32-true", 1e-4), ("64-true", 1e-6), ("bf16-mixed", 1e-4), ("bf16-true", 0.1), ("16-true", 0.02)],
)
def test_in_lightning_at_every_precision(fresh, tmp_path, precision, limit):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = fresh().train()

        def training_step(self, batch, i):
            return self.network(**batch).loss

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    module = Module()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        precision=precision,
        max_steps=4,
        callbacks=[LightningWisca(every=2, check="always")],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(Tokens(), batch_size=2))
    (file,) = tmp_path.rglob("wisca.jsonl")
    rows = read(file)
    assert [row["step"] for row in rows] == [0, 2, 4] and all(row["factors"] for row in rows)
    before = fresh().to(query(module.network).dtype)
    assert moved(module.network, before) < limit
    assert not torch.allclose(query(module.network), query(before), rtol=1e-2)
