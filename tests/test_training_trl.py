"""TRL's own trainers, each a few steps on a tiny model: rescales happen, the outputs stay, references follow."""

import pytest
import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from wisca_core.training import WiscaCallback
from wisca_core.training.telemetry import read

WORDS = "the small model reads one word after another and says what comes next or nothing at all".split()
TEXTS = [" ".join(WORDS[i % 7 : i % 7 + 3 + i % 5]) for i in range(32)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    words = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


@pytest.fixture
def fresh(small_model):
    """Every parameter random, so that a rescale that was not carried everywhere shows."""
    folder = small_model("llama", num_key_value_heads=8, attention_bias=True)
    return lambda: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture
def options(tmp_path):
    return dict(
        output_dir=str(tmp_path / "run"),
        max_steps=4,
        per_device_train_batch_size=2,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        logging_steps=1,
    )


IDS = torch.arange(3, 17)[None]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.double()


def moved(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def rescaled(tmp_path, steps=(0, 2, 4)) -> list[dict]:
    """The rescales that the run wrote down: at these steps, none taken back."""
    rows = read(tmp_path / "run" / "wisca.jsonl")
    assert [row["step"] for row in rows] == list(steps) and all(row["factors"] for row in rows)
    return rows


PREFERENCES = [{"prompt": t, "chosen": " next word", "rejected": " nothing at all"} for t in TEXTS]


def sft(model, tokenizer, options, callbacks):
    config = trl.SFTConfig(**options, packing=True, max_length=16)
    return trl.SFTTrainer(
        model, config, train_dataset=Dataset.from_dict({"text": TEXTS}), processing_class=tokenizer, callbacks=callbacks
    )


def dpo(model, tokenizer, options, callbacks, **more):
    config = trl.DPOConfig(**options, max_length=16, **more)
    return trl.DPOTrainer(
        model,
        None,
        config,
        train_dataset=Dataset.from_list(PREFERENCES),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


def grpo(model, tokenizer, options, callbacks, **more):
    config = trl.GRPOConfig(**options, num_generations=2, max_completion_length=4, **more)
    return trl.GRPOTrainer(
        model,
        lambda completions, **_: [float(len(one)) for one in completions],
        config,
        Dataset.from_dict({"prompt": TEXTS}),
        processing_class=tokenizer,
        callbacks=callbacks,
    )


SYNCED = dict(sync_ref_model=True, ref_model_sync_steps=1, ref_model_mixup_alpha=0.5)


@pytest.mark.parametrize(
    "make, more",
    [(sft, {}), (dpo, {}), (dpo, SYNCED), (grpo, {}), (grpo, {"beta": 0.1, **SYNCED})],
    ids=["SFT packed", "DPO", "DPO synced", "GRPO", "GRPO synced"],
)
def test_without_a_learning_rate_nothing_moves_but_the_coordinates(make, more, fresh, tokenizer, options, tmp_path):
    """The model and the reference that is mixed with it compute what they did."""
    callback = WiscaCallback(every=2, check="always")
    trainer = make(fresh(), tokenizer, options | {"learning_rate": 0.0}, [callback], **more)
    if "sync_ref_model" in more:
        assert trainer.ref_model is not None
    trainer.train()
    rescaled(tmp_path)
    before = logits(fresh())
    weight = lambda model: model.model.layers[0].self_attn.q_proj.weight
    assert not torch.allclose(weight(trainer.model), weight(fresh()), rtol=1e-2)
    assert moved(logits(trainer.model), before) < 1e-4
    if "sync_ref_model" in more:
        assert moved(logits(trainer.ref_model), before) < 1e-4
        assert torch.allclose(weight(trainer.ref_model), weight(trainer.model), rtol=1e-4)


@pytest.mark.parametrize("make", [sft, dpo, grpo])
def test_it_trains_with_rescales_on_the_way(make, fresh, tokenizer, options, tmp_path):
    trainer = make(fresh(), tokenizer, options | {"learning_rate": 1e-3}, [WiscaCallback(every=2, check="always")])
    trainer.train()
    rows = rescaled(tmp_path)
    assert all(abs(row["ratios"]["decoder.1.self.qk"] - 1) < 0.1 for row in rows[1:])
    assert moved(logits(trainer.model), logits(fresh())) > 1e-3
