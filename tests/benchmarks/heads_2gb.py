"""Time and memory of the circuits of every head of a 2 GB bf16 checkpoint. By hand: python
tests/benchmarks/heads_2gb.py

Reference: the singular values of one head's whole product Wq^T Wk, times the heads and their two circuits. Ours: open,
find the pairs, measure every head, on a whole model (22 layers, 704 heads) and on a checkpoint of attention tensors
only (100 layers, 3,200 heads). Each runs in a process of its own after the file was read once; wall, CPU (over two
workers) and anonymous memory beyond the imports.
"""

import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from inspect_2gb import anonymous_mb, write_checkpoint


def ours(folder: str) -> int:
    from wisca_core.architecture.find import find_sites
    from wisca_core.checkpoint import open_checkpoint
    from wisca_core.circuits.measure import measure

    checkpoint = open_checkpoint(folder)
    table = measure(checkpoint, find_sites(checkpoint)).table
    assert (table["qk_norm"] > 0).all() and (table["ov_norm"] > 0).all()
    return len(table)


def whole_product(folder: str) -> int:
    """One head, without its QR: what is formed here is (hidden, hidden)."""
    import torch
    from safetensors import safe_open

    with safe_open(Path(folder) / "model.safetensors", "pt") as file:
        q, k = (file.get_tensor(f"model.layers.0.self_attn.{name}_proj.weight")[:64].float() for name in "qk")
    assert torch.linalg.svdvals(q.T @ k)[0] > 0
    return 1


def child(way: str, folder: str) -> None:
    import safetensors.torch  # noqa: F401

    import wisca_core.circuits.measure  # noqa: F401

    before, peak, running = anonymous_mb(), 0.0, True

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, anonymous_mb())
            time.sleep(0.01)

    watcher = threading.Thread(target=watch)
    watcher.start()
    wall, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    n = {"ours": ours, "whole product": whole_product}[way](folder)
    wall, used = time.perf_counter() - wall, resource.getrusage(resource.RUSAGE_SELF)
    running = False
    watcher.join()
    cpu = used.ru_utime + used.ru_stime - cpu.ru_utime - cpu.ru_stime
    print(json.dumps({"heads": n, "wall": wall, "cpu": cpu, "mb": peak - before}))


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        for title, n_layers, mlp in (("whole model", 22, 5632), ("attention tensors only", 100, 0)):
            folder = Path(place) / title.replace(" ", "-")
            write_checkpoint(folder, n_layers, mlp)
            n_bytes = len((folder / "model.safetensors").read_bytes())
            figures = {}
            for way in ("whole product", "ours"):
                run = subprocess.run(
                    [sys.executable, __file__, way, str(folder)], capture_output=True, text=True, check=True
                )
                figures[way] = json.loads(run.stdout)
            one, all_ = figures["whole product"], figures["ours"]
            print(f"{title} ({n_bytes / 1e9:.2f} GB), {all_['heads']} heads:")
            print(f"  ours  wall {all_['wall']:.1f} s, cpu {all_['cpu']:.1f} s, anonymous memory +{all_['mb']:.0f} MB")
            ratio = 2 * all_["heads"] * one["cpu"] / all_["cpu"]
            print(f"  whole products of all heads would take {ratio:.0f} times the cpu ({one['cpu']:.1f} s for one)")
            (folder / "model.safetensors").unlink()


if __name__ == "__main__":
    child(*sys.argv[1:]) if len(sys.argv) > 1 else main()
