"""A rescale as learning rates: the same training as by weights, to the last digits of float64, and nobody sees a
split.
"""

import json
import logging
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from wisca_core.equivalence.float64 import in_float64
from wisca_core.errors import BadOption, NothingToRescale
from wisca_core.planning.factors import Factors
from wisca_core.training import LightningWisca, Scaler, WiscaCallback, param_groups
from wisca_core.training.choices import Choices
from wisca_core.training.rates import Rates
from wisca_core.training.rescaling import Rescaler
from wisca_core.training.telemetry import read

LLAMA = dict(model_type="llama", num_key_value_heads=2, attention_bias=True)


@pytest.fixture
def make(small_model):
    """make(dtype=..., **config) -> a fresh live model with every parameter random; two query heads a KV head."""

    def make(dtype=torch.float64, **config):
        folder = small_model(**(config or LLAMA))
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()

    return make


def loss_of(model, step: int) -> torch.Tensor:
    ids = torch.randint(5, 60, (3, 11), generator=torch.Generator().manual_seed(step))
    logits = model(input_ids=ids, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


def relative(a, b) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


OPTIMISERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1, eps=1e-3),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1, eps=1e-3, foreach=True),
    "AdamW, fused": lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1, eps=1e-3, fused=True),
    "AdamW, amsgrad": lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.1, eps=1e-3, amsgrad=True),
    "Adam, coupled decay": lambda p: torch.optim.Adam(p, lr=2e-3, weight_decay=0.1, eps=1e-3),
    "SGD, momentum and coupled decay": lambda p: torch.optim.SGD(p, lr=2e-2, momentum=0.9, weight_decay=0.01),
}


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_steps_at_rates_are_steps_of_rescaled_weights(make, kind):
    """Sixty steps (of the variants fifteen), rescaled at every third of them, with biases, a decay, an epsilon that
    matters, a scheduler and clipping that binds: every training loss, and the weights once the factors are taken back,
    within 1e-12.
    """
    models = [make(), make()]
    optimizers = [OPTIMISERS[kind](m.parameters()) for m in models]
    schedulers = [torch.optim.lr_scheduler.CosineAnnealingLR(o, 80) for o in optimizers]
    by_weights, by_rates = Rescaler(models[0], optimizers[0], Choices()), Rates(models[1], optimizers[1])
    kept = Factors("tensor")
    losses: list[list[float]] = [[], []]
    clipped, n_steps = 0, 60 if kind == "AdamW" else 15
    for step in range(n_steps):
        if step % (n_steps // 3) == 0:
            kept = kept.then(by_weights.rescale_().factors)
            by_rates.renew()
        for i, model in enumerate(models):
            with in_float64():
                loss = loss_of(model, step)
                loss.backward()
            losses[i].append(loss.item())
        with in_float64():
            norms = [torch.nn.utils.clip_grad_norm_(models[0].parameters(), 1.0), by_rates.clip_grad_norm_(1.0)]
        clipped += bool(norms[0] > 1)
        assert abs(norms[1] / norms[0] - 1) < 1e-11
        for optimizer, scheduler in zip(optimizers, schedulers):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    assert max(abs(a / b - 1) for a, b in zip(*losses)) < 1e-12
    assert clipped > n_steps / 6 and max(abs(m - 1) for m in by_rates.multipliers.values()) > 0.3
    by_weights.rescale_(plan=kept.undone())
    assert all(relative(p, q) < 1e-11 for p, q in zip(*(m.parameters() for m in models)))


def test_left_to_its_plain_rates_the_training_is_another(make):
    """The bound above means something: without the rates the losses part by far more."""
    losses = []
    for strength in (0.0, 1.0):
        model = make()
        optimizer = OPTIMISERS["AdamW"](model.parameters())
        Rates(model, optimizer, strength=strength).renew()
        for step in range(4):
            with in_float64():
                loss = loss_of(model, step)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert abs(losses[0] / losses[1] - 1) > 1e-4


@pytest.mark.parametrize("strength", [-1, 0.5, 1, 1.5])
def test_rates_are_powers_of_the_root_of_the_ratio_and_are_replaced(make, strength):
    model = make()
    rates = Rates(model, OPTIMISERS["AdamW"](model.parameters()), strength=strength)
    attention = model.model.layers[1].self_attn
    for _ in range(2):  # a second renewal of unmoved weights changes nothing: own coordinates
        done = rates.renew()
        m = (attention.q_proj.weight.abs().sum() / attention.k_proj.weight.abs().sum()).item() ** (strength / 2)
        of = rates.multipliers
        for name, expected in (("q_proj", m), ("k_proj", 1 / m)):
            for kind in ("weight", "bias"):
                assert abs(of[f"model.layers.1.self_attn.{name}.{kind}"] / expected - 1) < 1e-12
        n = (attention.o_proj.weight.abs().sum() / attention.v_proj.weight.abs().sum()).item() ** (strength / 2)
        assert abs(of["model.layers.1.self_attn.o_proj.weight"] / n - 1) < 1e-12
        assert abs(of["model.layers.1.self_attn.v_proj.bias"] * n - 1) < 1e-12
    assert not done.factors.sites and len(of) == 14
    ((low, high), (right, _)) = done.rates["decoder.1.self.qk"]
    assert low == high == of["model.layers.1.self_attn.q_proj.weight"] and right * low == pytest.approx(1, rel=1e-14)


def test_with_powers_of_two_muon_is_the_same_bit_for_bit(make):
    """In float32 with its bfloat16 iteration, momentum and decay; the weights once the factors are taken back."""
    models, rescales, kept = [make(torch.float32), make(torch.float32)], [], Factors("tensor")
    for i, model in enumerate(models):
        for name, p in model.named_parameters():
            p.requires_grad_("proj" in name and p.dim() == 2)
        muon = torch.optim.Muon([p for p in model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.125)
        choices = Choices(exact=True, frozen="scale")
        rescales.append((muon, Rescaler(model, muon, choices) if i == 0 else Rates(model, muon, choices)))
    for step in range(6):
        for (muon, rescale), model in zip(rescales, models):
            if step % 3 == 0:
                done = rescale.rescale_()
                kept = kept.then(done.factors) if model is models[0] else kept
            loss_of(model, step).backward()
            muon.step()
            muon.zero_grad()
    assert any(f != 1 for _, fs in kept.sites for f in fs) and rescales[1][1].factors.by_site == kept.by_site
    rescales[0][1].rescale_(plan=kept.undone())
    assert all(torch.equal(p, q) for p, q in zip(*(m.parameters() for m in models)))


# --- the split --------------------------------------------------------------------------------------------------------

HOW = {
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "amsgrad": {"amsgrad": True},
}


@pytest.mark.parametrize("how", HOW)
def test_a_split_inside_the_step_is_real_groups_bit_for_bit(make, how):
    models = [make(torch.float32), make(torch.float32)]
    settings = dict(lr=1e-3, weight_decay=0.1)
    inside = torch.optim.AdamW(models[0].parameters(), **settings, **HOW[how])
    Rates(models[0], inside).renew()
    real = torch.optim.AdamW(param_groups(models[1], **settings), **HOW[how])
    assert len(inside.param_groups) == 1 and len(real.param_groups) == 9  # two pairs in two layers, both sides of each
    for step in range(3):
        for model, optimizer in zip(models, (inside, real)):
            loss_of(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(torch.equal(p, q) for p, q in zip(*(m.parameters() for m in models)))
    assert len(inside.param_groups) == 1 and inside.param_groups[0]["lr"] == 1e-3


def test_groups_of_ones_own_keep_what_is_theirs(make):
    model = make(torch.float32)
    given = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1, "lr": 1e-2},
        {"params": [p for p in model.parameters() if p.dim() == 1]},
    ]
    groups = param_groups(model, given, lr=1e-3, eps=1e-6)
    q, k = (getattr(model.model.layers[0].self_attn, name) for name in ("q_proj", "k_proj"))
    m = (q.weight.abs().sum() / k.weight.abs().sum()).item() ** 0.5
    where = {id(p): group for group in groups for p in group["params"]}
    assert len(where) == len(list(model.parameters()))
    for p, times, lr, decay in ((q.weight, m, 1e-2, 0.1), (k.weight, 1 / m, 1e-2, 0.1), (q.bias, m, 1e-3, 0.0)):
        found = where[id(p)]
        assert found["lr"] == pytest.approx(lr * times, rel=1e-6)
        assert found["weight_decay"] == pytest.approx(decay / times, rel=1e-6)
        assert found["eps"] == pytest.approx(1e-6 / times, rel=1e-6)
    plain = where[id(model.lm_head.weight)]
    assert (plain["lr"], plain["weight_decay"], plain["eps"]) == (1e-2, 0.1, 1e-6)


def test_a_step_that_raises_leaves_nothing_behind(make):
    class Raising(torch.optim.AdamW):
        def step(self, closure=None):
            if self.breaks:
                raise RuntimeError("in the middle")
            return super().step(closure)

    model = make(torch.float32)
    optimizer = Raising(model.parameters(), lr=1e-3)
    groups, optimizer.breaks = optimizer.param_groups, True
    rates = Rates(model, optimizer)
    rates.renew()
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match="in the middle"):
        optimizer.step()
    assert optimizer.param_groups is groups and len(groups) == 1 and groups[0]["lr"] == 1e-3
    optimizer.breaks = False
    before = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    optimizer.step()  # Adam's first step is the rate for every weight
    moved = (model.model.layers[0].self_attn.q_proj.weight - before).abs().median().item()
    m = rates.multipliers["model.layers.0.self_attn.q_proj.weight"]
    assert moved == pytest.approx(1e-3 * m, rel=1e-2) and optimizer.param_groups is groups
    rates.remove()
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_a_step_that_a_gradient_scaler_skips_stays_skipped(make):
    model = make(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = Scaler(model, optimizer, every=2, by="rates")
    amp = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for step in range(3):
        before = [p.detach().clone() for p in model.parameters()]
        amp.scale(loss_of(model, step)).backward()
        if step == 1:
            model.lm_head.weight.grad[0, 0] = torch.inf
        amp.step(optimizer)
        amp.update()
        optimizer.zero_grad()
        scaler.step()
        moved = any(not torch.equal(p, q) for p, q in zip(model.parameters(), before))
        assert moved == (step != 1)
    assert scaler.steps == 2


def test_two_sets_of_rates_on_one_optimiser_are_refused_until_the_first_is_removed(make):
    model = make(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    first = Scaler(model, optimizer, by="rates", pairs=("qk",))
    with pytest.raises(BadOption, match="already trains at other rates of the kind"):
        Scaler(model, optimizer, by="rates", pairs=("vo",))
    first.remove()
    Scaler(model, optimizer, by="rates", pairs=("vo",))


# --- which optimisers -------------------------------------------------------------------------------------------------


class Renamed(torch.optim.AdamW):
    """A user's subclass: clips its own update, which has no scale either."""

    def step(self, closure=None):
        return super().step(closure)


class Signs(torch.optim.Optimizer):
    """A user's own, with a decay of its own name for things: decoupled."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(p.grad.sign(), alpha=-group["lr"])


def lion(parameters):
    import pytorch_optimizer

    return pytorch_optimizer.Lion(parameters, lr=1e-3, weight_decay=0.0)


def galore(parameters):
    import pytorch_optimizer

    low_rank = dict(rank=4, update_proj_gap=10, scale=1.0, projection_type="std")
    parameters = list(parameters)
    matrices = {"params": [p for p in parameters if p.dim() == 2]} | low_rank
    return pytorch_optimizer.GaLore([matrices, {"params": [p for p in parameters if p.dim() != 2]}], lr=1e-3)


def eight_bit(parameters):
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(parameters, lr=1e-3, weight_decay=0.0, min_8bit_size=16)


def adafactor(parameters, **more):
    from transformers.optimization import Adafactor

    return Adafactor(parameters, **({"lr": 1e-3, "relative_step": False, "scale_parameter": False} | more))


WORKING = {
    "a subclass": (lambda p: Renamed(p, lr=1e-3), 1),
    "a class of one's own": (lambda p: Signs(p, lr=1e-3), 1),
    "Lion": (lion, 1),
    "GaLore": (galore, 1),
    "bitsandbytes, 8 bit": (eight_bit, 1),
    "Adafactor without scale_parameter": (adafactor, 1),
    "NAdam": (lambda p: torch.optim.NAdam(p, lr=1e-3), 1),
    "Adamax": (lambda p: torch.optim.Adamax(p, lr=1e-3), 1),
    "Adagrad": (lambda p: torch.optim.Adagrad(p, lr=1e-3), 1),
    "RMSprop": (lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5), 1),
    "SGD": (lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.5), 2),
}


@pytest.mark.parametrize("kind", WORKING)
def test_every_step_is_the_plain_one_times_the_multiplier(make, kind):
    """Also of optimisers whose state no rescale could carry over; SGD's goes with the square."""
    build, power = WORKING[kind]
    bound = 2e-2 if kind == "GaLore" else 2e-3  # its epsilon, not adjusted in the plain step, is 1e-6
    models = [make(torch.float32), make(torch.float32)]
    optimizers = [build(m.parameters()) for m in models]
    rates = Rates(models[0], optimizers[0])
    rates.renew()
    before = {name: p.detach().clone() for name, p in models[1].named_parameters()}
    for model, optimizer in zip(models, optimizers):
        loss_of(model, 0).backward()
        optimizer.step()
    moved = [{n: p.detach() - before[n] for n, p in m.named_parameters()} for m in models]
    for name, plain in moved[1].items():
        if plain.dim() < 2:
            continue  # a gradient of the size of epsilon is no direction without scale
        m = rates.multipliers.get(name, 1.0) ** power
        assert (moved[0][name] - m * plain).norm() < bound * (m * plain).norm(), name
    assert any(abs(m - 1) > 0.3 for m in rates.multipliers.values())


def schedule_free(parameters):
    import pytorch_optimizer

    return pytorch_optimizer.ScheduleFreeAdamW(parameters, lr=1e-3)


class Relative(torch.optim.Optimizer):
    """Its steps are a share of the weights themselves, so a rescale does nothing and a rate would."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 1e-3})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad.sign() * p.norm(), alpha=-group["lr"])


@pytest.mark.parametrize(
    "build, words",
    [
        (lambda p: torch.optim.Adafactor(p), "a rescale does nothing here"),
        (lambda p: adafactor(p, scale_parameter=True), "a rescale does nothing here.*Give scale_parameter=False"),
        (lambda p: adafactor(p, relative_step=True, lr=None), "ignores its group's. Give relative_step=False"),
        (lambda p: torch.optim.RAdam(p), "no one rate stands for both"),
        (lambda p: torch.optim.LBFGS(p), "one step for all parameters together"),
        (schedule_free, "ScheduleFreeAdamW keeps numbers a parameter group"),
        (Relative, "Relative are not known to be its rate times a direction.*not those of a rescaled one at any rate"),
    ],
)
def test_optimisers_whose_rates_cannot_stand_for_a_rescale_are_refused(make, build, words):
    model = make(torch.float32)
    optimizer = build(model.parameters())
    with pytest.raises(BadOption, match=words):
        Rates(model, optimizer)
    assert not optimizer._optimizer_step_pre_hooks


def test_a_captured_step_is_refused(make, monkeypatch):
    model = make(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters())
    Rates(model, optimizer).renew()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(BadOption, match="a captured step .CUDA graph. runs no hook"):
        optimizer.step()


# --- which tensors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, words",
    [
        (dict(model_type="gpt2"), r"attn\.c_attn\.weight holds more than its q side"),
        (dict(model_type="deepseek_v2"), r"holds more than its . side, and a parameter has one rate"),
    ],
)
def test_tensors_that_hold_both_sides_are_refused_by_name(make, config, words):
    model = make(torch.float32, **config)
    with pytest.raises(NothingToRescale, match=words):
        Rates(model, torch.optim.AdamW(model.parameters()))


def test_gains_stored_as_gain_minus_one_are_refused_where_they_decay(make):
    model = make(torch.float32, model_type="gemma3_text")
    done = Rates(model, torch.optim.AdamW(model.parameters(), weight_decay=0.1)).renew()
    reasons = {r.what: r.reason for r in done.refusals}
    assert "stored as gain - 1 and decays" in reasons["decoder.0.self.qk"] and "decoder.0.self.vo" in done.rates
    gains = [p for n, p in model.named_parameters() if p.dim() == 1]
    rest = [p for n, p in model.named_parameters() if p.dim() > 1]
    groups = [{"params": rest, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    rates = Rates(model, torch.optim.AdamW(groups))
    assert "decoder.0.self.qk" in rates.renew().rates
    assert {n for n in rates.multipliers if "_norm" in n and ".0." in n} == {
        f"model.layers.0.self_attn.{x}_norm.weight" for x in "qk"
    }


@pytest.mark.parametrize(
    "options, words",
    [
        ({"granularity": "group"}, "one rate a parameter, so only 'tensor'"),
        ({"strength": math.nan}, "with by='rates' any finite number"),
        ({"strength": 1e6}, "strength: 1e.06 was given; with it decoder.0.self.qk would train at 2"),
        ({"method": "gram"}, "'gram' mixes channels"),
    ],
)
def test_options_that_cannot_be_rates_are_named(make, options, words):
    model = make(torch.float32)
    with pytest.raises(BadOption, match=words):
        Scaler(model, torch.optim.AdamW(model.parameters()), by="rates", **options)


def test_without_an_optimiser_there_are_no_rates(make):
    with pytest.raises(BadOption, match="so it needs one"):
        Scaler(make(torch.float32), by="rates")


# --- on a schedule, in the trainers people have -----------------------------------------------------------------------


class Tokens(torch.utils.data.Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, i):
        ids = torch.randint(5, 60, (9,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids}


@pytest.fixture
def trainer(make, tmp_path):
    def trainer(callbacks=(), name="run", **arguments):
        options = dict(
            output_dir=str(tmp_path / name),
            max_steps=6,
            per_device_train_batch_size=2,
            learning_rate=2e-3,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            logging_steps=1,
            lr_scheduler_type="cosine",
            max_grad_norm=0.0,
            optim="adamw_torch",
            weight_decay=0.1,
            save_strategy="no",
        )
        logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
        return Trainer(
            make().train(),
            TrainingArguments(**(options | arguments)),
            train_dataset=Tokens(),
            callbacks=list(callbacks),
        )

    return trainer


class Logger(TrainerCallback):
    """An integration: it sees what loggers see."""

    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.rows.append(dict(logs))


def curve(one, key: str) -> list[float]:
    return [row[key] for row in one.state.log_history if key in row]


def test_the_trainers_two_ways_are_one_training_and_its_log_and_checkpoints_see_no_split(trainer, tmp_path):
    options = dict(save_strategy="steps", save_steps=3)
    logger = Logger()
    whole = trainer([logger], name="rates", **options)
    rates = WiscaCallback(every=2, by="rates").attach(whole)
    weights = trainer([WiscaCallback(every=2)], name="weights")
    plain = trainer(name="plain", **options)
    for one in (whole, weights, plain):
        one.train()
    losses = [curve(one, "loss") for one in (whole, weights, plain)]
    assert max(abs(a / b - 1) for a, b in zip(losses[0], losses[1])) < 2e-6  # norms and loss are float32 inside
    assert max(abs(a / b - 1) for a, b in zip(losses[0], losses[2])) > 1e-4
    assert curve(whole, "learning_rate") == curve(plain, "learning_rate")
    assert len(whole.optimizer.param_groups) == len(plain.optimizer.param_groups) == 2
    saved = [
        torch.load(tmp_path / name / "checkpoint-3" / "optimizer.pt", weights_only=True)["param_groups"]
        for name in ("rates", "plain")
    ]
    assert saved[0] == saved[1]
    assert any("wisca/log2_rate/decoder.0.self.qk" in row for row in logger.rows)
    # what both write of the equivalent rates is the same thing
    found = [read(tmp_path / name / "wisca.jsonl") for name in ("rates", "weights")]
    for a, b in zip(*found, strict=True):
        assert a["step"] == b["step"] and a["rates"].keys() == b["rates"].keys() and len(a["rates"]) == 4
        for name, sides in a["rates"].items():
            assert sides["left"] == pytest.approx(b["rates"][name]["left"], rel=1e-5)
            assert sides["left"] * sides["right"] == pytest.approx(1, rel=1e-12)
    assert not found[0][0]["factors"] and abs(found[0][0]["rates"]["decoder.0.self.qk"]["left"] - 1) > 0.2
    # a resumed run, between two renewals, is the unbroken one bit for bit
    state = json.loads((tmp_path / "rates" / "checkpoint-3" / "wisca_state.json").read_text())
    assert state["rates"]["sites"].keys() == found[0][0]["rates"].keys() and not state["kept"]
    resumed = trainer([WiscaCallback(every=2, by="rates")], name="resumed", **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "rates" / "checkpoint-3"))
    assert all(torch.equal(p, q) for p, q in zip(resumed.model.parameters(), whole.model.parameters()))
    assert (
        rates.scaler.multipliers and not resumed.optimizer.optimizer._optimizer_step_pre_hooks
    )  # over with the training


def test_in_lightning_a_resumed_run_at_rates_is_the_unbroken_one(make, tmp_path):
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = make(torch.float32).train()

        def training_step(self, batch, i):
            return loss_of(self.network, self.trainer.global_step)

        def configure_optimizers(self):
            optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
            return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=20)]

    def run(name, steps, ckpt=None, callbacks=()):
        wisca = LightningWisca(every=2, by="rates")
        quiet = dict(enable_progress_bar=False, enable_model_summary=False, logger=False)
        module = Module()
        pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=steps,
            callbacks=[wisca, *callbacks],
            default_root_dir=tmp_path / name,
            **quiet,
        ).fit(module, torch.utils.data.DataLoader(Tokens(), batch_size=2), ckpt_path=ckpt)
        return module.network, wisca

    keep = pl.callbacks.ModelCheckpoint(tmp_path / "kept", every_n_train_steps=3, save_top_k=-1, filename="{step}")
    whole, _ = run("whole", 6, callbacks=[keep])
    again, wisca = run("again", 6, ckpt=tmp_path / "kept" / "step=3.ckpt")
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), again.parameters()))
    assert len(wisca.scaler.multipliers) == 14 and wisca.scaler.steps == 6


@pytest.mark.parametrize("schedule", ["cosine", "OneCycle", "ReduceLROnPlateau"])
def test_under_accelerate_with_schedulers_both_ways_are_one_training(make, schedule):
    from accelerate import Accelerator

    losses, rates_seen = [], []
    for by in ("weights", "rates"):
        accelerator = Accelerator(cpu=True)
        plain = make()
        # OneCycle turns at betas as well as at rates
        optimizer = torch.optim.AdamW(plain.parameters(), lr=2e-3, weight_decay=0.1, eps=1e-6)
        scheduler = {
            "cosine": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8),
            "OneCycle": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=8),
            "ReduceLROnPlateau": lambda: torch.optim.lr_scheduler.ReduceLROnPlateau(
                optimizer, patience=0, threshold=0.5
            ),
        }[schedule]()
        model, prepared, scheduler = accelerator.prepare(plain, optimizer, scheduler)
        scaler = Scaler(model, prepared, every=3, by=by)
        found = []
        for step in range(7):
            with in_float64():
                loss = loss_of(model, step)
                accelerator.backward(loss)
                scaler.clip_grad_norm_(1.0)
            prepared.step()
            scheduler.step(loss.item()) if schedule == "ReduceLROnPlateau" else scheduler.step()
            prepared.zero_grad()
            scaler.step()
            found.append(loss.item())
        losses.append(found)
        rates_seen.append([group["lr"] for group in optimizer.param_groups])
        assert scaler.steps == 7
    assert max(abs(a / b - 1) for a, b in zip(*losses)) < 1e-12
    assert rates_seen[0] == rates_seen[1] and rates_seen[0] != [2e-3]


def test_trls_sft_of_a_lora_adapter_at_rates(make, tmp_path):
    """B is zero at first, so there is nothing to balance; from the first renewal after that A and B have their rates,
    and the products B A come to what a rescale of A and B comes to: within 1e-5, because it is float32 on both ways.
    """
    import peft
    from datasets import Dataset
    from test_training_state import letters
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        output_dir=str(tmp_path),
        max_steps=8,
        max_grad_norm=0.0,  # a trainer clips by the plain norm, by weights by that of the rescaled ones
        adam_epsilon=1e-12,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        bf16=False,
        gradient_checkpointing=False,
        logging_steps=1,
    )
    rows = Dataset.from_list([{"text": f"a b c {i} d"} for i in range(20)])
    products = {}
    for by in ("weights", "plain", "rates"):
        wisca = WiscaCallback(every=2, by="rates" if by == "rates" else "weights", pairs=("lora",))
        torch.manual_seed(0)
        one = SFTTrainer(
            make(torch.float32),
            args=arguments,
            train_dataset=rows,
            processing_class=letters(PreTrainedTokenizerFast),
            peft_config=peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
            callbacks=[] if by == "plain" else [wisca],
        )
        one.train()
        held = {name: p.detach().double() for name, p in one.model.named_parameters() if "lora_" in name}
        products[by] = {n: held[n.replace("lora_A", "lora_B")] @ a for n, a in held.items() if "lora_A" in n}
    for name, product in products["weights"].items():
        assert relative(products["rates"][name], product) < 1e-5 < 1e-3 < relative(products["plain"][name], product)
    lines = read(tmp_path / "wisca.jsonl")
    assert [row["step"] for row in lines] == [0, 2, 4, 6, 8] and not lines[0]["rates"] and len(lines[0]["skipped"]) == 4
    assert len(lines[1]["rates"]) == 4 and len(wisca.scaler.multipliers) == 8
    for name, sides in lines[1]["rates"].items():
        # A's norm over B's: A is far heavier while B is small, so it is A that trains faster
        assert sides["left"] == pytest.approx(lines[1]["ratios"][name] ** 0.5, rel=1e-9) and sides["left"] > 1


def test_the_state_of_a_scaler_brings_its_rates_back(make):
    model = make(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    first = Scaler(model, optimizer, every=100, by="rates")
    state, multipliers = json.loads(json.dumps(first.state_dict())), first.multipliers
    first.remove()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(3)
    second = Scaler(model, optimizer, every=100, by="rates", first_step=50)
    assert not second.multipliers
    second.load_state_dict(state)
    assert second.multipliers == multipliers and len(multipliers) == 14
    with pytest.raises(BadOption, match="by: 'weights' was given and the scaler's state is of by='rates'"):
        Scaler(model, first_step=50).load_state_dict(state)
