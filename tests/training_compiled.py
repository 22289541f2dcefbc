"""A compiled model under transformers' Trainer: does it see a rescale without being compiled again?

    python tests/training_compiled.py

does it with inductor, which compiles C++ first (a minute or two); the suite does it with the same graphs left
uncompiled.
"""

import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from wisca_core.training import WiscaCallback

IDS = torch.arange(5, 14)[None]


class Tokens(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, i):
        ids = torch.randint(5, 60, (9,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids}


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.double()


def moved(a, b) -> float:
    """How far the outputs lie apart, of the largest."""
    left, right = logits(a), logits(b)
    return ((left - right).abs().max() / right.abs().max()).item()


def trained(model, folder: Path, backend: str) -> tuple[torch.nn.Module, int]:
    """(the model after four steps at rate 0 with rescales at 0, 2 and 4; how often it was compiled)."""
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=4,
        per_device_train_batch_size=2,
        learning_rate=0.0,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        torch_compile=True,
        torch_compile_backend=backend,
    )
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    trainer = Trainer(model, arguments, train_dataset=Tokens(), callbacks=[WiscaCallback(every=2, check="never")])
    trainer.train()
    return trainer.model, torch._dynamo.utils.counters["stats"]["unique_graphs"]


def main() -> int:
    from wisca_core.equivalence.example import example_config
    from wisca_core.equivalence.miniature import build_miniature
    from wisca_core.equivalence.small_config import shrink

    with tempfile.TemporaryDirectory() as place:
        build_miniature(shrink(example_config("llama")), Path(place) / "model", 5)
        fresh = lambda: AutoModelForCausalLM.from_pretrained(Path(place) / "model", dtype=torch.float32)
        started = time.perf_counter()
        model, n_graphs = trained(fresh(), Path(place) / "run", "inductor")
        gap = moved(model, fresh())
    print(f"inductor, {time.perf_counter() - started:.0f} s: compiled {n_graphs} time(s), outputs moved by {gap:.1e}")
    return 0 if n_graphs == 1 and gap < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
