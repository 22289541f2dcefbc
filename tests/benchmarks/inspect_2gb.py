"""Time and memory of inspecting a 2 GB bf16 checkpoint, against the naive way in the same run. By hand: python
tests/benchmarks/inspect_2gb.py

Naive: every tensor loaded, ``.float().abs().sum()``. Ours: open, find the pairs, measure every channel of every pair
(and, as a second figure, the same on a checkpoint of attention tensors only, so that both read the same bytes). Each
runs in a process of its own after the file was read once, alternating; wall, CPU and anonymous memory beyond the
imports are printed with their ratios.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 2048,
    "head_dim": 64,
    "vocab_size": 32000,
    "rope_theta": 10000.0,
}


def write_checkpoint(folder: Path, n_layers: int, mlp: int) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)

    def weight(*shape: int) -> torch.Tensor:
        return (torch.randn(shape) * 0.02).bfloat16()

    tensors = {}
    for i in range(n_layers):
        base = f"model.layers.{i}."
        for name, rows in (("q_proj", 2048), ("k_proj", 512), ("v_proj", 512)):
            tensors[f"{base}self_attn.{name}.weight"] = weight(rows, 2048)
        tensors[f"{base}self_attn.o_proj.weight"] = weight(2048, 2048)
        if mlp:
            for name, shape in (("gate_proj", (mlp, 2048)), ("up_proj", (mlp, 2048)), ("down_proj", (2048, mlp))):
                tensors[f"{base}mlp.{name}.weight"] = weight(*shape)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(LLAMA | {"num_hidden_layers": n_layers, "intermediate_size": mlp}))


def naive(folder: str) -> None:
    from safetensors import safe_open

    with safe_open(Path(folder) / "model.safetensors", "pt") as file:
        sums = {name: file.get_tensor(name).float().abs().sum().item() for name in file.keys()}
    assert all(value > 0 for value in sums.values())


def ours(folder: str) -> None:
    from wisca_core.architecture.find import find_sites
    from wisca_core.checkpoint import open_checkpoint
    from wisca_core.patterns.measure import measure

    checkpoint = open_checkpoint(folder)
    patterns = measure(checkpoint, find_sites(checkpoint))
    assert (patterns.rows["l1"] > 0).all()


def anonymous_mb() -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def child(way: str, folder: str) -> None:
    import threading

    import safetensors.torch  # noqa: F401
    import torch

    import wisca_core.patterns.measure  # noqa: F401

    torch.set_num_threads(1)
    before, peak, running = anonymous_mb(), 0.0, True

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, anonymous_mb())
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    {"naive": naive, "ours": ours}[way](folder)
    wall, used = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
    running = False
    watcher.join()
    print(
        json.dumps(
            {"wall": wall, "cpu": used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime, "mb": peak - before}
        )
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        for title, n_layers, mlp in (("whole model, 2.1 GB", 22, 5632), ("attention tensors only, 2.1 GB", 100, 0)):
            folder = Path(place) / title.split(",")[0].replace(" ", "-")
            write_checkpoint(folder, n_layers, mlp)
            n_bytes = (folder / "model.safetensors").stat().st_size
            (folder / "model.safetensors").read_bytes()  # into the page cache for both
            figures: dict[str, list[dict]] = {"naive": [], "ours": []}
            for _ in range(3):
                for way in figures:
                    run = subprocess.run(
                        [sys.executable, __file__, way, str(folder)],
                        capture_output=True,
                        text=True,
                        check=True,
                        env=os.environ | {"OMP_NUM_THREADS": "1"},
                    )
                    figures[way].append(json.loads(run.stdout))
            middle = {way: {k: statistics.median(f[k] for f in runs) for k in runs[0]} for way, runs in figures.items()}
            print(f"{title} ({n_bytes / 1e9:.2f} GB), medians of 3:")
            for way, f in middle.items():
                print(f"  {way:6s} wall {f['wall']:.2f} s, cpu {f['cpu']:.2f} s, anonymous memory +{f['mb']:.0f} MB")
            ratio = {k: middle["ours"][k] / middle["naive"][k] for k in ("wall", "cpu")}
            print(f"  ours / naive: wall {ratio['wall']:.2f}, cpu {ratio['cpu']:.2f}")
            (folder / "model.safetensors").unlink()


if __name__ == "__main__":
    child(*sys.argv[1:]) if len(sys.argv) > 1 else main()
