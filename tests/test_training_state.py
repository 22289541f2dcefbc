"""What lives beside the weights: averages and references that have to follow, copies inside optimisers, and the state
of a run wherever its checkpoints go.
"""

import copy
import json
import logging
import shutil
import warnings

import pytest
import torch
from torch.optim.swa_utils import AveragedModel
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from wisca_core.errors import BadOption
from wisca_core.training import Factors, LightningWisca, Scaler, WiscaCallback, rescale_
from wisca_core.training.telemetry import read

LLAMA = dict(model_type="llama", num_key_value_heads=2, attention_bias=True)


class Tokens(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        ids = torch.randint(5, 60, (9,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids}


@pytest.fixture
def fresh(small_model):
    def fresh(dtype=torch.float64):
        return AutoModelForCausalLM.from_pretrained(small_model(**LLAMA), dtype=dtype)

    return fresh


@pytest.fixture
def trainer(fresh, tmp_path):
    """trainer(callbacks, name="run", model=None, **arguments) -> a Trainer on the CPU in float64."""

    def trainer(callbacks=(), name="run", model=None, **arguments):
        options = dict(
            output_dir=str(tmp_path / name),
            max_steps=6,
            per_device_train_batch_size=2,
            learning_rate=1e-3,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            seed=1,
            data_seed=1,
            optim="adamw_torch",
            lr_scheduler_type="constant",
        )
        logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
        return Trainer(
            model or fresh(),
            TrainingArguments(**(options | arguments)),
            train_dataset=Tokens(),
            eval_dataset=torch.utils.data.Subset(Tokens(), range(4)),
            callbacks=list(callbacks),
        )

    return trainer


def logits(model) -> torch.Tensor:
    ids = torch.randint(5, 60, (3, 11), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits.double()


def relative(a, b) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def kept_in(folder) -> dict:
    return json.loads((folder / "wisca_state.json").read_text())


# --- averages ---------------------------------------------------------------------------------------------------------
# At a learning rate of nothing the weights never move in their own coordinates, so whatever is averaged over a rescale
# is still the function of the start.


@pytest.mark.parametrize("kind", ["WeightAveraging", "EMAWeightAveraging", "StochasticWeightAveraging"])
def test_lightnings_averages_follow(fresh, tmp_path, kind):
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = fresh().train()

        def training_step(self, batch, i):
            return self.network(**batch).loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.0)

    average = {
        "WeightAveraging": lambda: pl.callbacks.WeightAveraging(),
        "EMAWeightAveraging": lambda: pl.callbacks.EMAWeightAveraging(decay=0.5),
        "StochasticWeightAveraging": lambda: pl.callbacks.StochasticWeightAveraging(1e-30, swa_epoch_start=1),
    }[kind]()
    module, wisca = Module(), LightningWisca(every=5, at_start=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        max_epochs=4,
        callbacks=[wisca, average],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, torch.utils.data.DataLoader(torch.utils.data.Subset(Tokens(), range(6)), batch_size=2))
    assert (
        trainer.global_step == 12 and max(abs(f - 1) for _, fs in wisca.scaler.kept["tensor"].sites for f in fs) > 0.1
    )
    assert relative(logits(module.network), logits(fresh())) < 1e-6  # transformers' norms are float32 inside
    start = dict(fresh().named_parameters())
    mine = dict(module.network.named_parameters())
    for (left, right), tie in {("q_proj", "k_proj"): 0, ("v_proj", "o_proj"): 1}.items():
        a, b = (f"model.layers.1.self_attn.{name}.weight" for name in (left, right))
        grew, shrank = mine[a] / start[a], mine[b] / start[b]  # one factor, everywhere the same, and its inverse
        assert grew.std() < 1e-12 and abs(grew.mean() * shrank.mean() - 1) < 1e-12, tie


def test_an_averaged_model_that_was_forgotten_is_refused_until_it_is_named(fresh):
    model = fresh()
    averaged = AveragedModel(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BadOption, match=r"an AveragedModel of this model is kept and was not named.*also=\[averaged\]"):
        rescale_(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    rescale_(model, also=[averaged])
    averaged.update_parameters(model)
    assert relative(logits(averaged.module), logits(fresh())) < 1e-6


def test_averages_of_strangers_and_those_that_are_gone_are_nothing_to_refuse(fresh):
    torch.manual_seed(0)
    other = fresh()
    with torch.no_grad():
        for p in other.parameters():
            p.normal_()
    stranger = AveragedModel(other)
    model = fresh()
    gone = AveragedModel(model)
    gone.__dict__["itself"] = gone  # a cycle, which only the collector frees
    del gone
    assert len(rescale_(model).factors.sites) == 4
    assert stranger.module is not other


def test_one_made_during_the_run_is_found_at_the_next_rescale(fresh, monkeypatch):
    model = fresh()
    scaler = Scaler(model, every=1)
    scaler._rescaler._next_look = 0.0
    averaged = AveragedModel(model)
    with pytest.raises(BadOption, match="AveragedModel"):
        scaler.step()
    assert averaged is not None


def test_trls_synced_reference_follows(fresh, tmp_path):
    """DPO with ``sync_ref_model``: at a rate of nothing policy and reference stay the function they began as."""
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    tokenizer = letters(PreTrainedTokenizerFast)
    rows = [{"prompt": f"a{i}", "chosen": "b c d", "rejected": "c c"} for i in range(12)]
    arguments = DPOConfig(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=2,
        learning_rate=0.0,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        sync_ref_model=True,
        ref_model_sync_steps=1,
        ref_model_mixup_alpha=0.5,
        save_strategy="no",
        bf16=False,
        gradient_checkpointing=False,
    )
    wisca = WiscaCallback(every=3, at_start=False)
    one = DPOTrainer(
        fresh(),
        fresh(),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[wisca],
    )
    one.train()
    assert max(abs(f - 1) for _, fs in wisca.scaler.kept["tensor"].sites for f in fs) > 0.1
    for model in (one.model, one.ref_model):
        assert relative(logits(model), logits(fresh())) < 1e-6
    q, r = (m.model.layers[0].self_attn.q_proj.weight for m in (one.model, one.ref_model))
    assert relative(r, q) < 1e-12


def letters(kind):
    """A tokenizer of single letters, made here."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefgh", *"0123456789"]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return kind(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


# --- optimisers that keep copies --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ScheduleFreeAdamW", "ScheduleFreeSGD", "Lookahead", "Prodigy", "Ranger21", "ASGD"])
@pytest.mark.parametrize("mode", ["transport", "leave"])
def test_an_optimiser_that_keeps_copies_of_the_weights_is_refused_by_name_either_way(fresh, kind, mode):
    import pytorch_optimizer

    model = fresh()
    parameters = list(model.parameters())
    optimizer = {
        "Lookahead": lambda: pytorch_optimizer.Lookahead(torch.optim.AdamW(parameters)),
        "ASGD": lambda: torch.optim.ASGD(parameters),
        "Ranger21": lambda: pytorch_optimizer.Ranger21(parameters, num_iterations=10),
    }.get(kind, lambda: getattr(pytorch_optimizer, kind)(parameters))()
    with pytest.raises(
        BadOption, match=rf"{kind} keeps copies of the weights themselves.*Rescale once, before it is made"
    ) as e:
        rescale_(model, optimizer, optimizer_state=mode)
    assert "'leave'" not in str(e.value)


def test_a_copy_inside_an_unknown_optimiser_is_seen_by_its_values(fresh):
    class Anchored(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {"lr": 0.1})

        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    state = self.state[p]
                    state.setdefault("anchor", p.detach().clone())
                    state.setdefault("speed", torch.zeros_like(p)).add_(p.grad)
                    p.data.add_(p.grad, alpha=-1e-4).lerp_(state["anchor"], 0.01)

    model = fresh()
    optimizer = Anchored(model.parameters())
    model(**{k: v[None] for k, v in Tokens()[0].items()}).loss.backward()
    optimizer.step()
    with pytest.raises(BadOption, match="Anchored keeps as 'anchor' of .*q_proj.weight is a copy of the weights"):
        rescale_(model, optimizer, optimizer_state="leave")


# --- a decay that is a part of the gradient ---------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["transport", "leave"])
def test_a_coupled_decay_is_said_once_with_the_number_it_acts_as(fresh, mode):
    model = fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    attention = model.model.layers[0].self_attn
    before = attention.q_proj.weight.detach().clone()
    with pytest.warns(RuntimeWarning, match=r"decay of SGD, 0.01, is a part of the gradient.*0.01 c\^2 on W") as seen:
        scaler = Scaler(model, optimizer, every=1, optimizer_state=mode)
    numbers = {f"{0.01 * float(f**e) ** 2:.3g}" for _, fs in scaler.kept["tensor"].sites for f in fs for e in (1, -1)}
    text = str(seen[0].message)
    low, high = text.split("from now on as ")[1].split(" (")[0], text.split(" to ")[1].split(" (")[0]
    assert float(low) == min(map(float, numbers)) and float(high) == max(map(float, numbers))
    assert abs((attention.q_proj.weight / before).mean() - 1) > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaler.rescale_(1)
        plain = fresh()
        rescale_(plain, torch.optim.AdamW(plain.parameters(), weight_decay=0.1), optimizer_state=mode)
        plain = fresh()
        rescale_(plain, torch.optim.SGD(plain.parameters(), lr=0.1), optimizer_state=mode)


# --- state that travels -----------------------------------------------------------------------------------------------


def test_a_run_resumed_from_a_folder_elsewhere_keeps_its_factors(trainer, tmp_path):
    options = dict(save_strategy="steps", save_steps=3)
    whole = trainer([WiscaCallback(every=2)], name="whole", **options)
    whole.train()
    expected = kept_in(tmp_path / "whole" / "checkpoint-6")["kept"]
    moved = tmp_path / "elsewhere" / "kept"
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", moved)
    (moved / "wisca_state.json").unlink()  # trainer_state.json has it too
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "wisca")
        resumed = trainer([WiscaCallback(every=2)], name="resumed", **options)
        resumed.train(resume_from_checkpoint=str(moved))
    assert kept_in(tmp_path / "resumed" / "checkpoint-6")["kept"] == expected


def test_resuming_a_checkpoint_that_knows_nothing_of_wisca_says_so(trainer, tmp_path):
    trainer(save_strategy="steps", save_steps=3).train()
    with pytest.warns(RuntimeWarning, match="goes on at step 3 from a checkpoint without a state"):
        trainer([WiscaCallback(every=2)]).train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))


def product(rows, until: int) -> dict[str, float]:
    out: dict[str, float] = {}
    for row in rows:
        for name, (factor,) in row["factors"].items() if row["step"] <= until else ():
            out[name] = out.get(name, 1.0) * factor
    return out


def test_the_best_model_comes_with_its_own_factors_and_training_on_is_in_its_coordinates(
    trainer, tmp_path, monkeypatch
):
    options = dict(
        save_strategy="steps",
        save_steps=2,
        eval_strategy="steps",
        eval_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=True,  # the first is the best: it has the largest loss
    )
    wisca = WiscaCallback(every=1)
    one = trainer([wisca], **options)
    one.train()
    best = int(one.state.best_model_checkpoint.rsplit("-", 1)[1])
    rows = read(tmp_path / "run" / "wisca.jsonl")
    assert best < 6 and wisca.scaler.kept["tensor"].by_site != product(rows, 6)
    for name, factor in product(rows, best).items():
        assert wisca.scaler.kept["tensor"].by_site[name][0] == pytest.approx(factor, rel=1e-14)
    # squares of the last step, in the coordinates of the best: those of the last step times the squares of c6 / c2
    q = one.model.model.layers[0].self_attn.q_proj.weight
    squares = one.optimizer.state[q]["exp_avg_sq"]
    part = product(rows, 6)["decoder.0.self.qk"] / product(rows, best)["decoder.0.self.qk"]
    saved = torch.load(tmp_path / "run" / "checkpoint-6" / "optimizer.pt", weights_only=True)["state"]
    shapes = [s["exp_avg_sq"] for s in saved.values() if s["exp_avg_sq"].shape == squares.shape]
    assert any(torch.allclose(squares, s * part**2, rtol=1e-9, atol=0) for s in shapes) and abs(part - 1) > 1e-4
    one.save_model(str(tmp_path / "saved"))
    assert kept_in(tmp_path / "saved")["kept"] == kept_in(tmp_path / "run" / f"checkpoint-{best}")["kept"]


def test_training_again_goes_on_counting(trainer):
    wisca = WiscaCallback(every=2)
    one = trainer([wisca])
    start = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    one.args.learning_rate = 0.0
    one.train()
    first = wisca.scaler.kept["tensor"].by_site
    one.train()
    assert wisca.scaler.steps == 6
    name = "model.layers.0.self_attn.q_proj.weight"
    (c,) = wisca.scaler.kept["tensor"].by_site["decoder.0.self.qk"]
    assert torch.allclose(dict(one.model.named_parameters())[name], start[name] * c, rtol=1e-12, atol=0)
    assert abs(c - 1) > 0.1 and c == pytest.approx(first["decoder.0.self.qk"][0], rel=1e-9)


def test_a_saved_and_a_pushed_model_carry_the_state(trainer, tmp_path, monkeypatch):
    pushed = []
    for uploads in (
        "huggingface_hub.HfApi.upload_folder",
        "transformers.trainer.upload_folder",
    ):  # before 5.10 the second
        monkeypatch.setattr(uploads, lambda *_, **given: pushed.append(given["folder_path"]), raising=False)
    wisca = WiscaCallback(every=2)
    one = trainer([wisca])
    one.train()
    one.save_model(str(tmp_path / "saved"))
    assert kept_in(tmp_path / "saved")["kept"] == wisca.scaler.state_dict()["kept"]
    monkeypatch.setattr(one, "init_hf_repo", lambda *args, **kwargs: None)
    monkeypatch.setattr(one, "create_model_card", lambda *args, **kwargs: None)
    one.hub_model_id, one.push_in_progress = "somebody/model", None
    one._save_checkpoint(one.model, trial=None)
    state = tmp_path / "run" / "wisca_state.json"
    for push in (one.push_to_hub, lambda: one._push_from_checkpoint(str(tmp_path / "run" / "checkpoint-6"))):
        state.unlink(missing_ok=True)
        push()
        assert pushed.pop() == str(tmp_path / "run")
        assert kept_in(tmp_path / "run")["kept"] == wisca.scaler.state_dict()["kept"]


def test_two_callbacks_for_different_pairs_have_files_of_their_own(trainer, tmp_path):
    both = [WiscaCallback(every=2, pairs=("qk",)), WiscaCallback(every=3, pairs=("vo",))]
    trainer(both, save_strategy="steps", save_steps=3).train()
    assert [row["step"] for row in read(tmp_path / "run" / "wisca.jsonl")] == [0, 2, 4, 6]
    assert [row["step"] for row in read(tmp_path / "run" / "wisca_2.jsonl")] == [0, 3, 6]
    folder = tmp_path / "run" / "checkpoint-3"
    assert {n.split(".")[-1] for n in kept_in(folder)["kept"][0]["sites"]} == {"qk"}
    second = json.loads((folder / "wisca_state_2.json").read_text())
    assert {n.split(".")[-1] for n in second["kept"][0]["sites"]} == {"vo"}
    again = [WiscaCallback(every=2, pairs=("qk",)), WiscaCallback(every=3, pairs=("vo",))]
    resumed = trainer(again, name="other", save_strategy="steps", save_steps=3)
    resumed.train(resume_from_checkpoint=str(folder))
    for one, whole in zip(again, both):
        assert one.scaler.kept == whole.scaler.kept


def test_two_callbacks_for_one_pair_are_refused(trainer):
    with pytest.raises(BadOption, match="two WiscaCallbacks of one trainer both have vo"):
        trainer([WiscaCallback(every=2), WiscaCallback(every=3, pairs=("vo",))]).train()


def test_a_scaler_made_of_loaded_weights_does_not_rescale_them_twice(fresh, tmp_path):
    model = fresh()
    scaler = Scaler(model, every=2)
    for _ in range(3):
        scaler.step()
    saved, state = copy.deepcopy(model.state_dict()), scaler.state_dict()
    # weights first: the step 0 of the new object would be one too many
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    late = Scaler(model, every=2)
    with pytest.raises(BadOption, match="rescaled the model when it was made.*first_step=3, or load the weights after"):
        late.load_state_dict(state)
    # weights after it, or an object that knows the step: both fine
    after = Scaler(model, every=2)
    model.load_state_dict(saved)
    after.load_state_dict(state)
    knows = Scaler(model, every=2, first_step=3)
    knows.load_state_dict(state)
    for one in (after, knows):
        assert one.steps == 3 and one.kept == scaler.kept
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


# --- arguments --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        ({"layers": (0, 9)}, "layers: 9 is in no stack of this model; it has decoder 0-1"),
        ({"layers": "0-9"}, "layers: 0-9 reaches beyond the last layer of this model, 1"),
        ({"layers": "4-9"}, "layers: 4-9 is in no stack of this model; it has decoder 0-1"),
        ({"layers": 1.5}, "layers: 1.5 was given"),
        ({"layers": (-1,)}, "layers: .*-1.* was given"),
        ({"exclude": ("foo",)}, "exclude: 'foo' is no pair of this model; they are named like decoder.0.self.qk"),
        ({"exclude": "decoder.0.self.qk"}, "exclude: 'decoder.0.self.qk' was given; a tuple of site names"),
        ({"exact": "yes"}, "exact: 'yes' was given; True or False"),
        ({"strength": "1"}, "strength: '1' was given; it lies between 0"),
        ({"strength": True}, "strength: True was given"),
        ({"by": "rate"}, "by: 'rate' was given; choose from weights, rates"),
    ],
)
def test_arguments_that_cannot_be_are_named(fresh, options, words):
    with pytest.raises(BadOption, match=words):
        rescale_(fresh(), **options)


def test_layers_may_be_numbers(fresh):
    for layers in ((1,), [1], range(1, 2), 1, "1"):
        assert {name.split(".")[1] for name, _ in rescale_(fresh(), layers=layers).factors.sites} == {"1"}


def test_a_model_with_adapters_alone_is_told_of_its_rank_channels(fresh):
    import peft

    from wisca_core.errors import NothingToRescale

    model = peft.get_peft_model(fresh(), peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with pytest.raises(NothingToRescale, match=r"pairs=\('lora',\)"):
        rescale_(model)


def test_kept_factors_of_the_state_are_what_brings_weights_back(fresh):
    model = fresh()
    scaler = Scaler(model, every=1)
    kept = Factors.from_json(scaler.state_dict()["kept"][0], "state")
    rescale_(model, plan=kept.undone())
    assert all(relative(p, q) < 1e-14 for p, q in zip(model.parameters(), fresh().parameters()))
