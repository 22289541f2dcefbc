"""The trajectories of the Method page: the same small decoder trained three times in true float64.

    python tests/benchmarks/identity.py app/method/identity.json

Baseline; WISCA every 20 steps with transported optimiser state; and no weight touched but the learning rates that
amount to it (``by="rates"``), all from the same start on the same batches. transformers' norms cast to float32 even in
a float64 model; with such casts two runs that are equal in law drift apart, and eager attention does so to its softmax;
here neither happens. One seed: it shows that two trainings are one, not which is better. About two minutes on a quiet
core.
"""

import copy
import inspect
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

from wisca_core.storage import write_json
from wisca_core.training import Scaler

STEPS, EVERY, LOOK, BATCH, CONTEXT, RATE = 300, 20, 5, 4, 48, 2e-3


def norm(self, hidden):
    """RMSNorm without the cast to float32."""
    return self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)


def text() -> torch.Tensor:
    """Sources of the standard library as bytes: on every machine, of this Python's version."""
    modules = (
        "argparse",
        "ast",
        "collections",
        "datetime",
        "decimal",
        "difflib",
        "inspect",
        "json",
        "pathlib",
        "typing",
    )
    source = "".join(inspect.getsource(__import__(name)) for name in modules)
    return torch.tensor(list(source.encode()), dtype=torch.long)


def loss_of(model, rows):
    logits = model(rows[:, :-1]).logits
    return cross_entropy(logits.reshape(-1, logits.shape[-1]), rows[:, 1:].reshape(-1))


def train(first, stream, arm: str) -> list[float]:
    model = copy.deepcopy(first)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    by = {"wisca": "weights", "rates": "rates"}.get(arm)
    scaler = Scaler(model, optimizer, every=EVERY, by=by) if by else None
    cut = int(0.9 * len(stream))
    held = torch.stack([stream[s : s + CONTEXT + 1] for s in torch.linspace(cut, len(stream) - CONTEXT - 2, 16).long()])
    generator, out = torch.Generator().manual_seed(1), []
    for step in range(STEPS + 1):
        if step % LOOK == 0:
            with torch.no_grad():
                out.append(loss_of(model, held).item())
        if step == STEPS:
            break
        starts = torch.randint(0, cut - CONTEXT - 1, (BATCH,), generator=generator)
        loss_of(model, torch.stack([stream[s : s + CONTEXT + 1] for s in starts])).backward()
        optimizer.step()
        if scaler is not None:
            scaler.step()
        optimizer.zero_grad()
    return out


def main(path: Path) -> None:
    torch.set_num_threads(1)
    modeling_llama.LlamaRMSNorm.forward = norm
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=1,
        vocab_size=256,
        max_position_embeddings=CONTEXT + 1,
        attn_implementation="sdpa",
    )
    first, stream = LlamaForCausalLM(config).double(), text()
    started = time.perf_counter()
    found = {arm: train(first, stream, arm) for arm in ("baseline", "wisca", "rates")}
    away = max(abs(a - b) for a, b in zip(found["wisca"], found["rates"]))
    print(f"{time.perf_counter() - started:.0f} s; largest distance of the rates to WISCA {away:.1e} nats")
    what = {
        "steps": STEPS,
        "every": EVERY,
        "rate": RATE,
        "python": sys.version.split()[0],
        "torch": torch.__version__.split("+")[0],
        "step": list(range(0, STEPS + 1, LOOK)),
    }
    write_json(path, "wisca-identity", 1, what | found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
