"""Everything that has to be seen on a GPU, in at most eight minutes, without a network: one table and one JSON.

    python tests/benchmarks/gpu.py OUT [--minutes 8] [--parts live,throughput,rescale,comparison,inspect] [--toy]

OUT/gpu.json is written after each part, and OUT/compare-gpu is the comparison's folder, which can be bundled as it is.
Each part is a process with a time of its own, so that one that fails or hangs does not stop the others. ``--toy`` runs
all of it on the CPU at the size of a test. Needs torch >= 2.10, transformers >= 5.0, numpy, pandas, scipy, safetensors,
xxhash, typer, rich; neither streamlit nor plotly.
"""

import argparse
import copy
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
# share of the minutes; what a part leaves goes to the last one
PARTS = {"live": 0.15, "throughput": 0.2, "rescale": 0.1, "inspect": 0.05, "comparison": 0.5}


# --- (a) live models against the CPU's numbers ------------------------------------------------------------------------


def live(device: str, toy: bool) -> dict[str, Any]:
    """Case -> how far weights and optimiser state on the device are from the CPU's, relative to the largest; and what
    compiled and captured forwards give before and after.
    """
    import torch

    from wisca_core.training import rescale_

    out: dict[str, Any] = {}
    builds: dict[str, Callable] = {
        "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3),
        "adamw fused": lambda p: torch.optim.AdamW(p, lr=1e-3, fused=True),
        "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    }
    for name, build in builds.items():
        for granularity in ("tensor", "group", "channel"):
            for exact in (False, True):
                here, optimiser = _trained(build, "cpu")
                there, other = _moved(here, optimiser, build, device)
                rescale_(here, optimiser, granularity=granularity, exact=exact)
                rescale_(there, other, granularity=granularity, exact=exact)
                out[f"{name}, {granularity}{', exact' if exact else ''}"] = {
                    "weights": max(_apart(a, b) for a, b in zip(there.parameters(), here.parameters(), strict=True)),
                    "state": max(_apart(a, b) for a, b in zip(_state(other), _state(optimiser), strict=True)),
                }
    for dtype in (torch.float16, torch.bfloat16):
        model = _model().to(device, dtype)
        before, _ = _logits(model, device), rescale_(model, exact=True)
        out[f"{str(dtype).removeprefix('torch.')}, exact: logits"] = _apart(_logits(model, device), before)
    model = _model().to(device)
    compiled = torch.compile(model, dynamic=False) if not toy else model
    before, _ = _logits(compiled, device), rescale_(model)
    out["compiled: logits before and after"] = _apart(_logits(compiled, device), before)
    if device != "cpu":
        out["captured as a graph: logits before and after"] = _replayed(_model().to(device), device, rescale_)
    return out


def _model(width: int = 64):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        attention_bias=True,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    return model


def _ids():
    import torch

    return torch.randint(0, 128, (2, 33), generator=torch.Generator().manual_seed(2))


def _trained(build, device: str):
    model = _model().to(device)
    optimiser = build(model.parameters())
    for _ in range(2):
        model(input_ids=_ids().to(device), labels=_ids().to(device)).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return model, optimiser


def _moved(model, optimiser, build, device: str):
    other = copy.deepcopy(model).to(device)
    moved = build(other.parameters())
    moved.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    return other, moved


def _state(optimiser) -> list:
    groups = (p for group in optimiser.param_groups for p in group["params"])
    return [v for p in groups for k, v in sorted(optimiser.state[p].items()) if hasattr(v, "ndim") and v.ndim]


def _apart(one, other) -> float:
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    return ((one - other).abs().max() / other.abs().max()).item()


def _logits(model, device: str):
    import torch

    with torch.no_grad():
        return model(input_ids=_ids().to(device)).logits


def _replayed(model, device: str, rescale_) -> float:
    import torch

    ids, stream = _ids().to(device), torch.cuda.Stream()
    with torch.no_grad():
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(input_ids=ids, use_cache=False)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = model(input_ids=ids, use_cache=False).logits
    graph.replay()
    before, _ = logits.clone(), rescale_(model)
    graph.replay()
    return _apart(logits, before)


# --- (b), (c) throughput and the cost of a rescale: the scripts beside this one ---------------------------------------


def throughput(device: str, toy: bool) -> dict[str, Any]:
    """Ratios that ``compare_throughput.py`` prints."""
    small = ["--rounds", "1", "--steps", "2", "--model", "default", "--busy"] if toy else ["--rounds", "3"]
    lines = _script("compare_throughput.py", "--device", "cpu" if device == "cpu" else "cuda", *small)
    return {
        "lines": lines,
        "ratios": [float(x) for line in lines for x in re.findall(r" over [^:,]*?:? (\d+\.\d+)", line)],
    }


def rescale(device: str, toy: bool) -> dict[str, Any]:
    """What ``rescale_cost.py`` prints: 1.1 B parameters on a GPU."""
    lines = _script(
        "rescale_cost.py", "--device", "cpu" if device == "cpu" else "cuda", *(["--layers", "1"] if toy else [])
    )
    return {"lines": lines, "ratios": [float(x) for line in lines for x in re.findall(r"ratio (\d+\.\d+)", line)]}


def _script(name: str, *arguments: str) -> list[str]:
    done = subprocess.run([sys.executable, str(HERE / name), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"{name} ended with {done.returncode}"
        )
    return done.stdout.splitlines()


# --- (d) the comparison -----------------------------------------------------------------------------------------------


def comparison(device: str, toy: bool) -> dict[str, Any]:
    """Baseline and WISCA at 2.5 M parameters, rates by pilot seeds, as many fresh seeds as the time allows; what is not
    finished when it is over is paused, and the report is of what is.
    """
    from wisca_core.comparison import folder
    from wisca_core.comparison.presets import ARMS, PRESETS
    from wisca_core.comparison.reporting import write_report
    from wisca_core.comparison.spec import ModelSpec, OptimiserSpec, PilotSpec
    from wisca_core.comparison.spec_checks import check_spec

    seconds, place = float(os.environ["WISCA_GPU_SECONDS"]), Path(os.environ["WISCA_GPU_OUT"]) / "compare-gpu"
    spec = replace(
        PRESETS["default"],
        name="Does balancing help? 2.5 M parameters on a GPU",
        model=ModelSpec(
            width=64 if toy else 224, n_layers=2 if toy else 4, n_heads=8, n_kv_heads=1, mlp_width=128 if toy else 672
        ),
        arms=(ARMS["baseline"], ARMS["wisca"]),
        optimiser=OptimiserSpec(learning_rates=(2e-3, 4e-3), warmup_steps=1)
        if toy
        else OptimiserSpec(learning_rates=(1e-3, 2e-3, 4e-3, 8e-3)),
        pilot=PilotSpec((201,), ("baseline", "wisca"), added_rates=0)
        if toy
        else PilotSpec((201, 202), ("baseline", "wisca")),
        seeds=(211, 212, 213, 214) if toy else tuple(range(211, 227)),
        steps=4 if toy else 900,
        evaluate_every=4 if toy else 90,
        batch_size=2 if toy else 16,
        device=device.partition(":")[0],
        data=replace(PRESETS["default"].data, final_windows=4, validation_windows=4)
        if toy
        else PRESETS["default"].data,
    )
    folder.create(place, check_spec(spec))
    command = "import sys; from wisca_core.cli import main; sys.exit(main())"
    options = ["compare", "--out", str(place), "--resume"]
    running = subprocess.Popen(
        [sys.executable, "-c", command, *options], stdout=subprocess.DEVNULL, cwd=HERE.parents[1]
    )
    try:
        running.wait(seconds)
    except subprocess.TimeoutExpired:
        (place / "pause").touch()
        try:
            running.wait(30)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGINT)
            running.wait(30)
    if running.returncode not in (0, 1, 130):  # 1: paused, or a run failed; 130: paused by the interrupt
        raise RuntimeError(f"wisca compare ended with {running.returncode}")
    read = folder.read(place)
    done = sum(cell.state == "done" for cell in read.cells)
    out: dict[str, Any] = {"state": read.state, "runs done": done, "runs": len(read.cells)}
    if done:
        out["sentence"] = write_report(read).sentence
    return out


# --- (e) norms with the tensors on the GPU ----------------------------------------------------------------------------


def inspect(device: str, toy: bool) -> dict[str, Any]:
    """L1 of every row and column of bf16 matrices that lie in main memory: numpy's way of the measuring pass against a
    copy to the device and the sums there. Whether it pays is this ratio; a disk gives a few GB a second.
    """
    import torch

    matrices = [torch.randn(256 if toy else 4096, 256 if toy else 4096).bfloat16() for _ in range(2 if toy else 32)]
    n_bytes = sum(m.numel() * 2 for m in matrices)

    def sums(place: str) -> float:
        began = time.perf_counter()
        for matrix in matrices:
            values = matrix.to(place).float().abs()
            values.sum(0).cpu(), values.sum(1).cpu()
        return time.perf_counter() - began

    sums("cpu"), sums(device)
    here, there = (statistics.median(sums(place) for _ in range(3)) for place in ("cpu", device))
    return {"cpu_GB_a_second": n_bytes / here / 1e9, "device_GB_a_second": n_bytes / there / 1e9, "ratio": here / there}


# --- all of them ------------------------------------------------------------------------------------------------------


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("out", type=Path)
    options.add_argument("--minutes", type=float, default=8.0)
    options.add_argument("--parts", default=",".join(PARTS))
    options.add_argument("--toy", action="store_true")
    options.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    given = options.parse_args()
    import torch

    device = "cuda:0" if torch.cuda.is_available() and not given.toy else "cpu"
    if given.part:
        print("\n" + json.dumps(globals()[given.part](device, given.toy)))
        return 0
    if device == "cpu" and not given.toy:
        print("no CUDA GPU here: not run. --toy tries the script on the CPU.")
        return 1
    import transformers

    machine = torch.cuda.get_device_name(0) if device != "cpu" else platform.processor() or "CPU"
    found: dict[str, Any] = {
        "format": "wisca-gpu-benchmark",
        "version": 1,
        "machine": machine,
        "date": time.strftime("%Y-%m-%d"),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "toy": given.toy,
        "parts": {},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.minutes
    names = [name for name in PARTS if name in given.parts.split(",")]
    for i, name in enumerate(names):
        left = end - time.monotonic()
        share = PARTS[name] / sum(PARTS[n] for n in names[i:])
        found["parts"][name] = _bounded(name, left * share, given)
        (given.out / "gpu.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    for name, part in found["parts"].items():
        state = part.get("error", "done")
        print(f"| {name} | {part['seconds']:.0f} s | {state} | {json.dumps(part.get('found', {}))[:400]} |")
    return 0 if all("error" not in part for part in found["parts"].values()) else 1


def _bounded(name: str, seconds: float, given: argparse.Namespace) -> dict[str, Any]:
    """A part in a process group of its own, which is gone when its time is over."""
    began = time.monotonic()
    command = [sys.executable, "-W", "ignore", str(Path(__file__)), str(given.out), "--part", name]
    # the comparison ends itself in time to write what it has
    limits = {"WISCA_GPU_SECONDS": str(max(5.0, seconds - 75)), "WISCA_GPU_OUT": str(given.out.absolute())}
    running = subprocess.Popen(
        command + (["--toy"] if given.toy else []),
        env=os.environ
        | limits
        | {"PYTHONPATH": os.pathsep.join(filter(None, (str(HERE.parents[1]), os.environ.get("PYTHONPATH"))))},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, errors = running.communicate(timeout=max(5.0, seconds))
        result = {"found": json.loads(out.splitlines()[-1])} if running.returncode == 0 else {"error": errors[-2000:]}
    except subprocess.TimeoutExpired:
        os.killpg(running.pid, signal.SIGKILL)
        running.communicate()
        result = {"error": f"not finished within {seconds:.0f} s"}
    return {"seconds": time.monotonic() - began, **result}


if __name__ == "__main__":
    sys.exit(main())
