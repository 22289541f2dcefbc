"""What a rescale costs in a training run, against an optimiser step of the same model in the same run. By hand:

python tests/benchmarks/rescale_cost.py [--layers 4] [--granularity tensor] [--device cpu|cuda] [--threads 1]

Layers of TinyLlama-1.1B (width 2048, 32 query heads on 4 KV heads), with fewer of them the vocabulary is cut alike, so
that attention has its share of the 1.1B parameters; AdamW in float32 with its state transported. The defaults are a
4-layer model on one CPU thread, and all 22 layers (1.1B parameters) where there is a GPU. Median of interleaved
repetitions; on a GPU the clock stops after a synchronisation. Printed: optimiser step (foreach, fused), training step
(forward, backward, step), rescale, and the share of a run that a rescale every 250 steps takes.
"""

import argparse
import statistics
import time
import warnings

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from wisca_core.training.choices import Choices
from wisca_core.training.rescaling import Rescaler

REPEATS = 7
TOKENS = {"cpu": (1, 128), "cuda": (8, 1024)}  # a small batch makes the rescale look dear, never cheap


def seconds(device: str, work) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--device", default="cuda" if has_gpu else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--layers", type=int)
    parser.add_argument("--granularity", default="tensor", choices=["tensor", "group", "channel"])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    n_layers = options.layers or (22 if options.device == "cuda" else 4)
    vocab_size = 32000 * n_layers // 22
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=n_layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
    )
    with torch.device(options.device):
        model = LlamaForCausalLM(config)
    batch, length = TOKENS[options.device]
    ids = torch.randint(0, vocab_size, (batch, length), device=options.device)

    steps = {}
    for name in ("foreach", "fused"):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, **{name: True})

        def train(optimizer=optimizer) -> None:
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        train()
        whole = [seconds(options.device, train) for _ in range(2)]
        model(input_ids=ids, labels=ids).loss.backward()
        rescaler = Rescaler(model, optimizer, Choices(granularity=options.granularity))
        found = {"step": [], "rescale": []}
        gradients = [p.grad for p in model.parameters()]
        for _ in range(REPEATS):
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                p.grad = gradient
            found["step"].append(seconds(options.device, optimizer.step))
            optimizer.zero_grad()
            # away from balance again, so that every rescale has all its work to do
            with torch.no_grad():
                torch._foreach_mul_([layer.self_attn.q_proj.weight for layer in model.model.layers], 1.1)
                torch._foreach_mul_([layer.self_attn.v_proj.weight for layer in model.model.layers], 1.1)
            found["rescale"].append(seconds(options.device, rescaler.rescale_))
        steps[name] = {key: statistics.median(values) for key, values in found.items()} | {"train": min(whole)}
        del optimizer, rescaler, gradients
        model.zero_grad()

    n = sum(p.numel() for p in model.parameters())
    print(
        f"{n / 1e6:,.0f}M parameters, {n_layers} layers, {options.granularity}, {options.device}, {options.threads} "
        f"thread(s), torch {torch.__version__}"
    )
    for name, found in steps.items():
        print(
            f"AdamW {name:8s} optimiser step {found['step'] * 1e3:9.2f} ms   rescale {found['rescale'] * 1e3:9.2f} "
            "ms   ratio "
            f"{found['rescale'] / found['step']:.3f}   training step of {batch * length} tokens "
            f"{found['train'] * 1e3:9.1f} ms   "
            f"every 250 steps {100 * found['rescale'] / (250 * found['train']):.4f} %"
        )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
