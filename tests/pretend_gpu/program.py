"""What test_pretend_gpu.py runs: comparisons and rescales on the pretended GPU and on the CPU; prints what each gave.

python program.py FOLDER
"""

import copy
import gc
import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from device import Gpu, Graph, install

install()
warnings.filterwarnings("ignore")
sys.path.append(str(Path(__file__).parents[1]))

from small_comparison import TEXT, never, small_spec  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from wisca_core.comparison import cell as single  # noqa: E402
from wisca_core.comparison import folder, worker  # noqa: E402
from wisca_core.comparison.arms import Treatment  # noqa: E402
from wisca_core.comparison.cell import train  # noqa: E402
from wisca_core.comparison.data import load_corpus  # noqa: E402
from wisca_core.comparison.place import Placement  # noqa: E402
from wisca_core.comparison.presets import ARMS  # noqa: E402
from wisca_core.comparison.replicas import group as replicas  # noqa: E402
from wisca_core.comparison.spec import OptimiserSpec, Spec  # noqa: E402
from wisca_core.training import rescale_  # noqa: E402

gc.collect()
gc.freeze()  # a rescale begins with a search for averaged models, which need not go through all that was imported
TOP = Path(sys.argv[1])
COLUMNS = ("train_loss", "val_loss", "grad_norm", "qk", "vo")


def small(*arms: str, optimiser: str = "adamw", rates=(1e-2,), **changes) -> Spec:
    book = TOP / "book.txt"
    book.write_bytes(TEXT)
    given = dict(
        steps=8,
        seeds=(1,),
        arms=tuple(replace(ARMS[a], every=ARMS[a].every and 3) for a in arms or ("baseline", "wisca")),
        optimiser=OptimiserSpec(optimiser, learning_rates=rates, warmup_steps=2),
    )
    return small_spec(book, **{**given, **changes})


def cells(name: str, spec: Spec) -> tuple[folder.Cell, ...]:
    return folder.read(folder.create(TOP / name, spec)).cells


def alone(name: str, spec: Spec, device: str) -> tuple[folder.Cell, ...]:
    found, corpus = cells(name, spec), load_corpus(spec)
    with Gpu():
        for cell in found:
            train(spec, cell, corpus, never, Placement(device, spec.precision))
    return found


def together(name: str, spec: Spec, device: str = "cuda:0") -> tuple[tuple[folder.Cell, ...], dict]:
    found, corpus, ended = cells(name, spec), load_corpus(spec), {}
    with Gpu():
        replicas.train_group(
            spec,
            found,
            corpus,
            never,
            Placement(device, spec.precision),
            lambda cell, error: ended.update({cell.name: error}),
        )
    return found, ended


def apart(some, others) -> float:
    """Largest difference of any value of any row, relative where the values are over 1."""
    largest = 0.0
    for one, other in zip(some, others, strict=True):
        for a, b in zip(folder.rows(one.folder), folder.rows(other.folder), strict=True):
            assert (a["step"], a["lr"]) == (b["step"], b["lr"])
            for column in COLUMNS:
                x, y = a.get(column), b.get(column)
                assert (x is None) == (y is None), (column, x, y)
                largest = max(largest, abs(x - y) / max(1.0, abs(y))) if x is not None else largest
    return largest


def comparisons() -> dict:
    out = {}
    for name, spec in {
        "adamw": small("baseline", "wisca", "inverse", "channel", "gram"),
        "two rates": small(rates=(3e-3, 1e-2)),
        "sgd": small(optimiser="sgd"),
        "muon": small(optimiser="muon"),
        "float64": small(precision="float64"),
    }.items():
        captured = Graph.captured
        on_cpu, _ = together(f"{name} cpu", spec, "cpu")
        at_once, ended = together(f"{name} gpu", spec)
        out[name] = {
            "failed": [str(e) for e in ended.values() if e],
            "captured": Graph.captured - captured,
            "replicas": apart(at_once, on_cpu),
            "alone": apart(alone(f"{name} alone", spec, "cuda:0"), on_cpu),
        }
    return out


def many_tokens() -> dict:
    """A vocabulary looked up, not multiplied with."""
    from wisca_core.comparison.replicas import stack

    stack._ONE_HOT_TOKENS = 0
    try:
        at_once, _ = together("look up", small())
    finally:
        stack._ONE_HOT_TOKENS = 1024
    return {"replicas": apart(at_once, together("multiplied", small())[0])}


def one_leaves() -> dict:
    """A replica without finite losses ends alone; the others are captured anew."""
    spec = small("baseline", "placebo", steps=8, log_every=4, evaluate_every=4)
    treat = Treatment.at

    def spoilt(self, step):
        if self.arm.name == "placebo" and step == 3:
            self._rescaler.model.get_input_embeddings().weight.detach().fill_(float("nan"))
        return treat(self, step)

    captured, Treatment.at = Graph.captured, spoilt
    try:
        found, ended = together("one leaves", spec)
    finally:
        Treatment.at = treat
    return {
        "ended": {name: str(error or "") for name, error in ended.items()},
        "captured": Graph.captured - captured,
        "apart": apart(found[:1], alone("the other", spec, "cpu")[:1]),
    }


def a_wrong_step() -> dict:
    """A captured step that waits for the GPU is found and done without a graph; the numbers stay right."""
    spec = small(steps=4, log_every=2)
    step = replicas._one_step

    def waiting(stack, rows, clip, place):
        losses, norms = step(stack, rows, clip, place)
        assert float(losses.sum()) > 0
        return losses, norms

    captured, replicas._one_step = Graph.captured, waiting
    try:
        found, _ = together("waiting", spec)
    finally:
        replicas._one_step = step
    return {"captured": Graph.captured - captured, "apart": apart(found, alone("waiting alone", spec, "cpu"))}


def waits() -> dict:
    """How often the GPU is waited for over 40 steps with two rows and with 41."""
    out = {}
    single.CHECKPOINT_SECONDS = float("inf")  # on a busy machine a run is kept in between, which waits as well
    for name, every in {"few rows": 40, "many rows": 1}.items():
        Gpu.waits = 0
        together(name, small("baseline", "init_only", steps=40, log_every=every, evaluate_every=40))
        out[name] = Gpu.waits
    return out


def sent() -> dict:
    """Operations a step, by what two lengths differ in."""

    def of(steps: int, train) -> int:
        before = Gpu.sent
        train(
            f"sent {steps} {train.__name__}",
            small("baseline", "init_only", steps=steps, log_every=1000, evaluate_every=steps),
            "cuda:0",
        )
        return Gpu.sent - before

    return {"replicas": (of(30, together) - of(20, together)) / 10, "alone": (of(14, alone) - of(10, alone)) / 4 / 2}


def a_worker() -> dict:
    """The very process of an executor, on the device it is told."""
    spec = small()
    path = folder.create(TOP / "worker", spec)
    with Gpu():
        code = worker.main([str(path), "--executor", "replicas", "--device", "cuda", "--at-once", "2"])
    found = folder.read(path).cells
    return {
        "code": code,
        "states": [c.state for c in found],
        "reasons": [c.reason for c in found],
        "apart": apart(found, alone("worker alone", spec, "cpu")),
    }


def pausing() -> dict:
    """Paused on the GPU, its checkpoints hold nothing of it, and it goes on to the numbers of an unbroken run."""
    spec = small(steps=12)
    whole, _ = together("unbroken", spec)
    found, corpus, asked = cells("paused", spec), load_corpus(spec), []

    def stop() -> bool:
        asked.append(None)
        return len(asked) == 5

    with Gpu():
        ended = replicas.train_group(spec, found, corpus, stop, Placement("cuda:0"), lambda *_: None)
    kept = [torch.load(cell.folder / "resume.pt", weights_only=True) for cell in found]
    places = {
        str(t.device) for state in kept for t in torch.utils._pytree.tree_leaves(state) if isinstance(t, torch.Tensor)
    }
    with Gpu():
        replicas.train_group(spec, found, corpus, never, Placement("cuda:0"), lambda *_: None)
    return {
        "paused": not ended,
        "steps": [state["step"] for state in kept],
        "places": sorted(places),
        "apart": apart(found, whole),
    }


def live() -> dict:
    """rescale_ of a model in training, its optimiser's state with it, as on the CPU."""
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        attn_implementation="eager",
        use_cache=False,
    )
    torch.manual_seed(3)
    first = LlamaForCausalLM(config)
    rows = torch.randint(48, (2, 9))
    makers = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2),
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        "muon": lambda p: torch.optim.Muon([q for q in p if q.dim() == 2], lr=1e-2),
        "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
    }
    out = {}
    for name, make in makers.items():
        for granularity in ("tensor", "group", "channel")[: 1 if name == "adafactor" else 3]:
            model = copy.deepcopy(first)
            optimizer = make(list(model.parameters()))
            model(input_ids=rows, labels=rows).loss.backward()
            optimizer.step()
            with Gpu():
                twin = copy.deepcopy(model).to("cuda:0")
                other = make(list(twin.parameters()))
                states = copy.deepcopy(optimizer.state_dict()["state"])
                keys = list(other.param_groups[0]["params"])
                for i, parameter in enumerate(keys):
                    other.state[parameter] = {
                        k: v.to("cuda:0") if isinstance(v, torch.Tensor) and v.dim() else v
                        for k, v in states.get(i, {}).items()
                    }
                rescale_(twin, other, granularity=granularity)
                moved = [p.detach().cpu() for p in twin.parameters()]
                state = [
                    {k: v.cpu() if isinstance(v, torch.Tensor) else v for k, v in other.state[p].items()} for p in keys
                ]
            before = [p.detach().clone() for p in model.parameters()]
            rescale_(model, optimizer, granularity=granularity)
            own = [optimizer.state[p] for p in optimizer.param_groups[0]["params"]]
            out[f"{name} {granularity}"] = {
                "weights": max(map(relative, moved, model.parameters())),
                "changed": sum(not torch.equal(a, b) for a, b in zip(before, model.parameters())),
                "state": max(
                    relative(torch.as_tensor(a[k]), torch.as_tensor(b[k]))
                    for a, b in zip(state, own, strict=True)
                    for k in b
                ),
            }
    return out


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one - other).abs().max() / other.abs().max().clamp(min=1e-30)).item() if one.numel() else 0.0


def adapters() -> dict:
    """LoRA: A against B, by one factor a rank and by the whole change of basis."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(4)
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter.data, std=0.3 if "lora_A" in name else 0.02)
    out = {}
    for kind in ("wisca", "gram"):
        here, twin = copy.deepcopy(model), copy.deepcopy(model)
        rescale_(here, pairs=("lora",), method=kind)
        with Gpu():
            twin = twin.to("cuda:0")
            rescale_(twin, pairs=("lora",), method=kind)
            moved = [p.detach().cpu() for p in twin.parameters()]
        out[kind] = {
            "apart": max(map(relative, moved, here.parameters())),
            "changed": sum(not torch.equal(a, b) for a, b in zip(here.parameters(), model.parameters())),
        }
    return out


def mixing() -> dict:
    """That the pretended GPU finds what a real one refuses."""
    out = {}
    with Gpu():
        here = torch.ones(3, 2, device="cuda:0", requires_grad=True)
        (here * 2).sum().backward()
        out["gradient"] = str(here.grad.device)
        for name, act in {
            "mixed": lambda: here + torch.ones(3, 2),
            "numpy": lambda: here.detach().numpy(),
            "looked up": lambda: torch.ones(2, 2)[here.long()[0]],
        }.items():
            try:
                act()
                out[name] = ""
            except (RuntimeError, TypeError) as error:
                out[name] = str(error)[:60]
        # a graph keeps the numbers of the CPU that it was captured with, and sees what lies on the GPU
        rate, there, graph = torch.tensor(2.0), torch.ones(2, device="cuda:0"), Graph()
        with torch.cuda.graph(graph):
            found = there * rate
        rate.fill_(5.0)
        there.fill_(3.0)
        graph.replay()
        out["replayed"] = found.tolist()
    return out


PARTS = (mixing, comparisons, many_tokens, one_leaves, a_wrong_step, waits, sent, a_worker, pausing, live, adapters)
print("\n" + json.dumps({part.__name__: part() for part in PARTS}))
