"""What test_training_distributed.py starts on every rank with torchrun: rescale, train on, and write what a single
process, ``one()``, gives as well.

torchrun ... training_ranks.py MODEL_FOLDER OUT

Each of KINDS in processes of its own: ranks (DDP, FSDP2 in two ways, tensor parallel, on 2 ranks), zero (DeepSpeed
ZeRO-1, 2, 3).
"""

import gc
import json
import os
import sys
import traceback
import warnings

import torch
import torch.distributed as dist
from declared_models import MODELS, VOCABULARY
from transformers import AutoModelForCausalLM

from wisca_core.equivalence.float64 import in_float64
from wisca_core.errors import BadOption
from wisca_core.training import Rescale, Scaler, rescale_

FOLDER = OUT = ""  # the model, and the beginning of the names of what is written
STEPS = 5
CHOICES = {
    "tensor": {},
    "group": {"granularity": "group"},
    "l2": {"granularity": "channel", "norm": "l2"},
    "max": {"norm": "max"},
}


def load(dtype=torch.float64):
    model = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=dtype, attn_implementation="eager")
    model.config.use_cache = False
    return model.train()


def batch(step: int, rank: int | None = None) -> torch.Tensor:
    """Two sequences a step; a data-parallel rank gets one of them."""
    ids = torch.randint(5, 60, (2, 9), generator=torch.Generator().manual_seed(step))
    return ids if rank is None else ids[rank : rank + 1]


def loss_of(model, ids):
    logits = model(input_ids=ids).logits
    return torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))


def train(model, optimizer, step: int, rank: int | None, lift: bool = True) -> None:
    if lift:
        with in_float64():
            loss_of(model, batch(step, rank)).backward()
    else:
        loss_of(model, batch(step, rank)).backward()
    optimizer.step()
    optimizer.zero_grad()


def whole(model) -> dict[str, torch.Tensor]:
    from torch.distributed.tensor import DTensor

    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    return {
        name.removeprefix("module."): (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
        for name, p in model.named_parameters()
    }


def run(wrap, build, rank: int | None, choices: dict, lift: bool = True, gathered: bool = False) -> dict:
    """Two steps, a rescale, five steps: the weights after each, and the factors. ``gathered``: a forward pass has
    left whole parameters.
    """
    model, inner = wrap(load())
    optimizer = build(model.parameters())
    for step in range(2):
        train(model, optimizer, step, rank, lift)
    if gathered:
        with torch.no_grad(), in_float64():
            model(input_ids=batch(99))
        assert not any(type(p).__name__ == "DTensor" for p in model.lm_head.parameters())
    done: Rescale = rescale_(model, optimizer, **choices)
    rescaled = whole(inner)
    for step in range(2, 2 + STEPS):
        train(model, optimizer, step, rank, lift)
    return {
        "factors": done.factors.to_json()["sites"],
        "ratios": dict(done.ratios),
        "check": done.check.to_json(),
        "rescaled": rescaled,
        "trained": whole(inner),
    }


def of_ones_own(model, optimizer, weights, of, **build) -> dict:
    """A declared class that is spread over the ranks and spoiled on one of them alone, which no proof sees."""
    before = weights()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        done = rescale_(model, optimizer, sites=MODELS[of][1], build=lambda: MODELS[of][0](**build))
    after = weights()
    return {
        "refused": sorted(r.what for r in done.refusals),
        "said": [str(one.message) for one in said if "wisca" in str(one.message)],
        "check": done.check.to_json(),
        "changed": {
            name: (after[name] - before[name]).flatten().nonzero().flatten().tolist()
            for name in before
            if not torch.equal(before[name], after[name])
        },
    }


def declared_sharded(rank: int, mesh) -> dict:
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = MODELS["Llama"][0]()
    for layer in model.layers.values():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    if rank == 1:
        model.layers["0"].attention.wk.register_forward_hook(lambda module, args, out: out.clamp(-0.1, 0.1))
    return of_ones_own(model, adamw(model.parameters()), lambda: whole(model), "Llama", width=16)


def run_at_rates(wrap, rank: int | None) -> dict:
    """Five steps at rates that are renewed every second one, clipped by the weighted norm."""
    model, inner = wrap(load())
    optimizer = adamw(model.parameters(), eps=1e-6)
    scaler = Scaler(model, optimizer, every=2, by="rates", replicated=rank is not None)
    found = {"rescaled": whole(inner), "norms": []}
    for step in range(STEPS):
        with in_float64():
            loss_of(model, batch(step, rank)).backward()
            norm = scaler.clip_grad_norm_(0.1)
        found["norms"].append(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
        optimizer.step()
        optimizer.zero_grad()
        scaler.step()
    factors = scaler.state_dict()["rates"]["sites"]
    return found | {"factors": factors, "trained": whole(inner), "n_groups": len(optimizer.param_groups)}


def adamw(parameters, **more):
    return torch.optim.AdamW(parameters, lr=1e-2, foreach=False, **more)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=5e-2, momentum=0.9)


class Tokens(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        ids = torch.randint(5, 60, (9,), generator=torch.Generator().manual_seed(100 + i))
        return {"input_ids": ids, "labels": ids}


def by_trainer(n_ranks: int, **arguments) -> dict:
    """transformers' Trainer with the callback, two sequences a step over all ranks: the weights, and the lines of
    wisca.jsonl.
    """
    from transformers import Trainer, TrainingArguments

    from wisca_core.training import WiscaCallback
    from wisca_core.training.telemetry import read

    place = f"{OUT}-trainer-{len(arguments)}"
    options = dict(
        output_dir=place,
        max_steps=5,
        per_device_train_batch_size=2 // n_ranks,
        learning_rate=1e-2,
        adam_epsilon=1e-2,
        report_to="none",
        lr_scheduler_type="constant",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=1,
        data_seed=1,
        max_grad_norm=0.0,
        optim="adamw_torch",
        average_tokens_across_devices=False,
    )
    trainer = Trainer(
        load(torch.float32),
        TrainingArguments(**options, **arguments),
        train_dataset=Tokens(),
        callbacks=[WiscaCallback(every=2)],
    )
    trainer.train()
    if "deepspeed" in arguments:
        weights = masters(trainer.model)
        dist.barrier()
    else:
        weights = whole(trainer.model)
    return {"trained": weights, "rows": read(place + "/wisca.jsonl"), "wrapped": type(trainer.model_wrapped).__name__}


def one() -> dict:
    def plain(model):
        return model, model

    out = {f"adamw {name}": run(plain, adamw, None, choices) for name, choices in CHOICES.items()}
    out["momentum tensor"] = run(plain, momentum, None, {})
    out["rates"] = run_at_rates(plain, None)
    out["float32"] = zero_reference()
    out["Trainer"] = by_trainer(1)
    return out


def ranks() -> dict:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))

    def ddp(model):
        return torch.nn.parallel.DistributedDataParallel(model), model

    def sharded(model):
        assert all(isinstance(p, DTensor) for p in model.parameters())  # else this would be a test of nothing
        return model, model

    def fsdp(model):
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        return sharded(fully_shard(model, mesh=mesh))

    def fsdp_root_only(model):
        """One group, which a forward pass without a backward one leaves gathered: edits of what is gathered would be
        lost.
        """
        return sharded(fully_shard(model, mesh=mesh, reshard_after_forward=False))

    def tensor_parallel(model):
        plan = {}
        for i in range(len(model.model.layers)):
            plan |= {f"model.layers.{i}.self_attn.{x}_proj": ColwiseParallel() for x in "qkv"}
            plan[f"model.layers.{i}.self_attn.o_proj"] = RowwiseParallel()
        parallelize_module(model, mesh, plan)
        assert isinstance(model.model.layers[0].self_attn.o_proj.weight, DTensor)
        return model, model

    out = {}
    for name, choices in CHOICES.items():
        out[f"FSDP2, adamw {name}"] = run(fsdp, adamw, rank, choices)
        # every rank sees the whole batch
        if name != "max":
            out[f"TP, adamw {name}"] = run(tensor_parallel, adamw, None, choices)
    out["DDP, adamw tensor"] = run(ddp, adamw, rank, {})
    out["DDP, momentum tensor"] = run(ddp, momentum, rank, {})
    out["FSDP2, momentum tensor"] = run(fsdp, momentum, rank, {})
    out["FSDP2 root only, adamw group"] = run(fsdp_root_only, adamw, rank, CHOICES["group"], gathered=True)
    out["declared"] = declared_sharded(rank, mesh)
    out["FSDP2, rates"] = run_at_rates(fsdp, rank)
    # the object on a schedule: all ranks at the same steps, and a proof that was made once
    model, _ = ddp(load())
    optimizer = adamw(model.parameters())
    scaler = Scaler(model, optimizer, every=2, output=OUT + ".jsonl" if rank == 0 else None)
    for step in range(4):
        train(model, optimizer, step, rank)
        scaler.step()
    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    theirs = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(theirs, mine)
    out["replicas stay equal"] = bool(torch.equal(*theirs))
    out["Trainer, DDP"] = by_trainer(2, ddp_backend="gloo")
    made = []

    def accelerated(model):
        model, optimizer = by_accelerate(model, adamw(model.parameters()))
        made.append(optimizer)
        return sharded(model)

    out["FSDP2 by Accelerate, adamw tensor"] = run(accelerated, lambda parameters: made.pop(), rank, {})
    return out


def by_accelerate(model, optimizer):
    """Accelerate's own preparation for FSDP2. It chooses that on accelerators only and DDP on CPUs, so its choice is
    set.
    """
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils import DistributedType

    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        cpu_ram_efficient_loading=False,
    )
    accelerator = Accelerator(cpu=True)
    accelerator.state.distributed_type, accelerator.state.fsdp_plugin = DistributedType.FSDP, plugin
    return accelerator.prepare(model, optimizer)


def zero_reference() -> dict:
    """One process in float32, as ZeRO keeps its masters: two steps, a rescale, five steps.

    eps is large because Adam's first steps are signs, and the sign of a gradient of 1e-9 is noise in float32.
    """
    model = load(torch.float32)
    optimizer = adamw(model.parameters(), weight_decay=0.0, eps=1e-2)
    return _zero_run(
        model, model, optimizer, lambda step: train(model, optimizer, step, None, lift=False), lambda: whole(model)
    )


def _zero_run(model, inner, optimizer, one_step, weights, **choices) -> dict:
    for step in range(2):
        one_step(step)
    before = model(input_ids=batch(50)).logits.detach()
    done = rescale_(model, optimizer, **choices)
    rescaled = weights()
    after = model(input_ids=batch(50)).logits.detach()
    for step in range(2, 2 + STEPS):
        one_step(step)
    return {
        "factors": done.factors.to_json()["sites"],
        "ratios": dict(done.ratios),
        "check": done.check and done.check.to_json(),
        "rescaled": rescaled,
        "trained": weights(),
        "function": ((after - before).abs().max() / before.abs().max()).item(),
    }


def masters(model) -> dict[str, torch.Tensor]:
    from deepspeed.utils import safe_get_full_fp32_param

    return {
        name: safe_get_full_fp32_param(p).reshape(getattr(p, "ds_shape", p.shape)).clone()
        for name, p in model.named_parameters()
    }


def engine_of(model, stage: int):
    """(engine, its optimiser)"""
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "gradient_clipping": 0.0,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
    }
    optimizer = adamw(model.parameters(), weight_decay=0.0, eps=1e-2)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config)[:2]


def declared_partitioned(rank: int, stage: int) -> dict:
    """Of sizes that two ranks do not share evenly; one of them clamps its queries and keys."""
    from deepspeed.utils import safe_get_full_optimizer_state

    torch.manual_seed(0)
    model = MODELS["nanoGPT"][0](width=15)
    engine, optimizer = engine_of(model, stage)
    ids = torch.randint(VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(rank))
    engine.backward(engine(ids)[0].square().mean())
    engine.step()
    if rank == 1:
        clamp = lambda module, args, out: torch.cat([out[..., :30].clamp(-0.1, 0.1), out[..., 30:]], -1)
        model.transformer.h[0].attn.c_attn.register_forward_hook(clamp)

    def everything_kept():
        # what the engine's forwards use, the masters, and the optimiser's state
        named = dict(model.named_parameters())
        out = masters(model)
        for key in ("exp_avg", "exp_avg_sq"):
            out |= {f"{name}|{key}": safe_get_full_optimizer_state(p, key).clone() for name, p in named.items()}
        return out

    def forward(tokens):
        engine.eval()
        with torch.no_grad():
            out = engine(tokens)[0].clone()
        engine.train()
        return out

    before = forward(ids)
    found = of_ones_own(engine, optimizer, everything_kept, "nanoGPT", width=18)
    return found | {"function": ((forward(ids) - before).abs().max() / before.abs().max()).item()}


def zero() -> dict:
    import deepspeed

    deepspeed.init_distributed(dist_backend="gloo")
    rank, out = dist.get_rank(), {}
    for name, stage, choices in (
        ("ZeRO-1", 1, {}),
        ("ZeRO-2", 2, {}),
        ("ZeRO-3", 3, {}),
        ("ZeRO-3, unseen", 3, {"check": "never"}),
    ):
        model = load(torch.float32)
        engine, optimizer = engine_of(model, stage)

        def one_step(step, engine=engine):
            engine.backward(loss_of(engine, batch(step, rank)))
            engine.step()

        out[name] = _zero_run(engine, model, optimizer, one_step, lambda model=model: masters(model), **choices)
        try:
            Scaler(engine, optimizer, by="rates")
        except BadOption as error:
            out[f"{name}, rates"] = str(error)
    for stage in (2, 3):
        out[f"ZeRO-{stage}, declared"] = declared_partitioned(rank, stage)
    settings = {
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    out["Trainer, ZeRO-3"] = by_trainer(2, ddp_backend="gloo", deepspeed=settings)
    return out


KINDS = {"ranks": ranks, "zero": zero}


def of_kind(kind: str) -> None:
    """One kind on all ranks, which meet in a file: the store of torchrun would know the ranks of the kind before."""
    rank, n_ranks = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    dist.init_process_group("gloo", init_method=f"file://{OUT}.{kind}.store", rank=rank, world_size=n_ranks)
    found = KINDS[kind]()
    assert (dist.get_rank(), dist.get_world_size()) == (rank, n_ranks)
    torch.save(found, f"{OUT}.{kind}.{rank}.pt")
    print(json.dumps({"rank": rank, "cases": list(found)}), flush=True)
    dist.barrier()
    dist.destroy_process_group()


def apart(work) -> None:
    """In a fork: Accelerate and DeepSpeed keep for a whole process what they set up, and to start another one imports
    torch and transformers anew, which takes as long as a kind.
    """
    number = os.fork()
    if not number:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])
    if code:
        sys.exit(f"ended with {code}")


if __name__ == "__main__":
    # before the forks, both of which import it, and then nothing that garbage collections need look through again
    import deepspeed
    from transformers import Trainer, TrainingArguments  # noqa: F401

    # an operator that sums in inference alone, on CPUs: where it was never used, g++ compiles it for more than a minute
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    gc.collect()
    gc.freeze()
    FOLDER, OUT = sys.argv[1:]
    torch.set_num_threads(1)
    for kind in KINDS:
        apart(lambda: of_kind(kind))
