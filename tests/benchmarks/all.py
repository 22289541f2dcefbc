"""The table of speed and memory: what a person waits for, from process start, each line beside a reference in the same
run.

    python tests/benchmarks/all.py [--only NAME ...] [--out FOLDER] [--rounds N]

Names: inspect, f16, zeros, growth, rescale, runs, what-if, csv, proofs. Models and logs are made in a temporary folder
(up to 6 GB, TMPDIR says where) and thrown away. Writes table.md and table.json to --out (here by default).

Ours and the reference run in turns, ``--rounds`` times; of each the least wall and CPU seconds count, because whatever
else runs on the machine can only add to them. CPU seconds are of the process and all it waited for; memory is the peak
of anonymous memory of the whole process tree. A time is met where the wall or the CPU seconds are within the goal: what
takes so much CPU on a busy machine takes no longer on two quiet cores.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from inspect_2gb import LLAMA, write_checkpoint

WISCA = (sys.executable, "-c", "from wisca_core.cli import main; raise SystemExit(main())")
HERE = Path(__file__).parent
FAMILIES = ("llama", "gpt2", "qwen3", "gemma3_text", "phi3", "mixtral", "opt", "bert", "t5")
WIDE = {"num_attention_heads": 64, "num_key_value_heads": 8, "hidden_size": 8192, "head_dim": 128}
WIDE_MLP = 28672


@dataclass(frozen=True)
class Cost:
    """``mb``: peak of anonymous memory of the process tree."""

    wall: float
    cpu: float
    mb: float
    said: str = ""


@dataclass(frozen=True)
class Line:
    """``ratio``: ours over the reference, in CPU seconds. ``is_met``: None where it only informs."""

    work: str
    goal: str
    ours: str
    reference: str
    ratio: float | None
    is_met: bool | None


def tree(pid: int) -> Iterator[int]:
    yield pid
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text().split():
                yield from tree(int(child))
    except OSError:
        return


def anonymous_mb(pid: int) -> float:
    total = 0
    for one in tree(pid):
        try:
            status = Path(f"/proc/{one}/status").read_text()
        except OSError:
            continue
        total += next((int(x.split()[1]) for x in status.splitlines() if x.startswith("RssAnon")), 0)
    return total / 1024


def run(*command: object, home: Path) -> Cost:
    """One process from start to end."""
    peak, running = 0.0, True
    began = time.perf_counter()
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # as installed
    environment = inherited | {"WISCA_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
    process = subprocess.Popen(
        [str(one) for one in command], env=environment, cwd=home.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )

    def watch() -> None:
        nonlocal peak
        while running:
            peak = max(peak, anonymous_mb(process.pid))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    out, err = process.communicate()
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    running = False
    watcher.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {process.returncode}:\n{err.decode()[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu, peak, out.decode())


def best(rounds: int, **works: Callable[[], Cost]) -> dict[str, Cost]:
    """Each in turns; the least of what each took, and the most memory."""
    found: dict[str, list[Cost]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            found[name].append(work())
    return {
        name: Cost(min(c.wall for c in costs), min(c.cpu for c in costs), max(c.mb for c in costs), costs[-1].said)
        for name, costs in found.items()
    }


def seconds(cost: Cost, memory: bool = True) -> str:
    return f"{cost.wall:.2f} s, {cost.cpu:.2f} s CPU" + (f", {cost.mb:.0f} MB" if memory else "")


def timed(work: str, ours: Cost, within: float, reference: str, theirs: Cost, mb: float | None = None) -> Line:
    goal = f"<= {within:g} s" + (f", <= {mb:g} MB" if mb else "")
    is_met = min(ours.wall, ours.cpu) <= within and (mb is None or ours.mb <= mb)
    return Line(work, goal, seconds(ours), f"{reference}: {seconds(theirs, False)}", ours.cpu / theirs.cpu, is_met)


class Place:
    """The temporary folder: models are written once, when they are first asked for; a fresh home for each run."""

    def __init__(self, top: Path, rounds: int):
        self.top, self.rounds, self._homes = top, rounds, 0
        self.kept = top / "kept-home"

    def home(self) -> Path:
        self._homes += 1
        return self.top / f"home-{self._homes}"

    def model(self, kind: str) -> Path:
        """bf16, f16 or zeros: 2 GB, 22 layers. Zeros: a third is zero, a tenth so small that its square leaves
        float32.
        """
        folder = self.top / kind
        if folder.is_dir():
            return folder
        if kind == "bf16":
            write_checkpoint(folder, 22, 5632)
            return folder
        import torch
        from safetensors.torch import load_file, save_file

        base = self.model("bf16")
        tensors = load_file(base / "model.safetensors")
        generator = torch.Generator().manual_seed(1)
        for name, tensor in tensors.items():
            if kind == "f16":
                tensors[name] = tensor.half()
                continue
            draw = torch.randint(30, tensor.shape, generator=generator, dtype=torch.int8)
            tensor[draw < 10] = 0
            tensor[draw > 26] *= 2.0**-60
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        shutil.copy(base / "config.json", folder)
        return folder

    def run(self, *command: object, home: Path | None = None) -> Cost:
        return run(*command, home=home or self.home())

    def itself(self, name: str, *arguments: object) -> Cost:
        """One of the functions below in a process of its own."""
        return self.run(sys.executable, HERE / "all.py", "--itself", name, *arguments)


# ---- the lines of the table


def inspect(place: Place) -> Iterator[Line]:
    model = place.model("bf16")
    file = model / "model.safetensors"
    file.read_bytes()
    for pairs, within, mb in (("qk,vo", 0.9, 150), ("qk,vo,mlp", 1.3, None)):
        found = best(
            place.rounds,
            ours=lambda pairs=pairs: place.run(*WISCA, "inspect", model, "--pairs", pairs),
            bare=lambda pairs=pairs: place.itself("bare", model, pairs),
            cat=lambda: place.run("sh", "-c", f"cat {file} > /dev/null"),
        )
        work = f"`wisca inspect --pairs {pairs}`, 2 GB of bf16, 22 layers"
        yield timed(work, found["ours"], within, "numpy's pass over the same pairs", found["bare"], mb)
        if "mlp" not in pairs:
            yield Line("`cat` of the whole file", "", seconds(found["cat"], False), "", None, None)
    place.run(*WISCA, "inspect", model, home=place.kept)
    found = best(
        place.rounds,
        ours=lambda: place.run(*WISCA, "inspect", model, home=place.kept),
        imports=lambda: place.run(sys.executable, "-c", "import pandas, typer, rich"),
    )
    yield timed("the same again, kept", found["ours"], 0.5, "importing pandas, typer and rich", found["imports"])


def against_bf16(place: Place, kind: str, work: str) -> Iterator[Line]:
    models = {name: place.model(name) for name in ("bf16", kind)}
    for model in models.values():
        (model / "model.safetensors").read_bytes()
    found = best(
        place.rounds,
        **{
            name: lambda model=model: place.run(*WISCA, "inspect", model, "--pairs", "qk,vo,mlp")
            for name, model in models.items()
        },
    )
    ratio = found[kind].cpu / found["bf16"].cpu
    reference = f"bf16: {seconds(found['bf16'])}"
    yield Line(work, "<= 1.3 x BF16", seconds(found[kind]), reference, ratio, ratio <= 1.3)


def f16(place: Place) -> Iterator[Line]:
    return against_bf16(place, "f16", "`wisca inspect --pairs qk,vo,mlp`, the same as F16")


def zeros(place: Place) -> Iterator[Line]:
    return against_bf16(place, "zeros", "the same in bf16, a third zero and a tenth tiny, in every block")


def growth(place: Place) -> Iterator[Line]:
    """Sparse shards: they take no disk, and reading them costs what reading others does."""
    available = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable"))
    most = min(20e9, 0.6 * 1024 * int(available.split()[1]))
    sizes = {}
    for name, wanted in (("small", 2e9), ("large", most)):
        sizes[name] = sparse(place.top / name, wanted)
    found = best(
        min(2, place.rounds), **{name: lambda name=name: place.itself("measure", place.top / name) for name in sizes}
    )
    costs = {name: json.loads(cost.said) for name, cost in found.items()}
    rates = {name: costs[name]["cpu"] / sizes[name] * 1e9 for name in sizes}
    ratio = rates["large"] / rates["small"]
    apart = costs["large"]["mb"] - costs["small"]["mb"]
    text = {name: f"{rates[name]:.3f} s CPU a GB, +{costs[name]['mb']:.0f} MB" for name in sizes}
    work = f"the pass over a sparse file of {sizes['large'] / 1e9:.1f} GB, 70B-wide shards of zeros"
    reference = f"{sizes['small'] / 1e9:.1f} GB: {text['small']}"
    is_met = ratio <= 1.1 and apart < 64
    yield Line(work, "linear within 10 %, memory flat", text["large"], reference, ratio, is_met)


def rescale(place: Place) -> Iterator[Line]:
    model = place.model("bf16")
    file = model / "model.safetensors"
    file.read_bytes()
    out = place.top / "out"

    def export(home: Path) -> Cost:
        shutil.rmtree(out, ignore_errors=True)
        return place.run(*WISCA, "rescale", "--no-check", model, out, home=home)

    def copy() -> Cost:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        return place.run("cp", file, out / "copy")

    kept = place.home()
    export(kept)
    found = best(place.rounds, first=lambda: export(place.home()), kept=lambda: export(kept), cp=copy)
    shutil.rmtree(out)
    yield timed("`wisca rescale --no-check`, first time", found["first"], 4, "cp", found["cp"])
    yield timed("the same, proof and measurements kept", found["kept"], 1.6, "cp", found["cp"])


def runs(place: Place) -> Iterator[Line]:
    log = place.top / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": s, "loss": 1 / (s + 1)}) + "\n" for s in range(1000)))
    found = best(
        place.rounds,
        ours=lambda: place.run(*WISCA, "runs", log),
        imports=lambda: place.run(sys.executable, "-c", "import pandas, pyarrow, typer, rich"),
    )
    reference = "importing pandas, pyarrow, typer and rich"
    yield timed("`wisca runs` on a log of 1,000 steps", found["ours"], 0.9, reference, found["imports"])


def what_if(place: Place) -> Iterator[Line]:
    cost = json.loads(place.itself("what_if").said)
    reference = f"a bare pass over the L1 column: {cost['bare']:.1f} ms"
    ours = f"{cost['ours']:.0f} ms CPU"
    yield Line(
        "what-if, 126 layers x 128 heads by channel",
        "<= 50 ms",
        ours,
        reference,
        cost["ours"] / cost["bare"],
        cost["ours"] <= 50,
    )


def csv(place: Place) -> Iterator[Line]:
    from read_logs import write_gigabyte

    log = place.top / "log.csv"
    write_gigabyte(log)
    names = {"ours": "csv", "pandas": "pandas"}
    found = best(
        min(2, place.rounds),
        **{
            name: lambda what=what: place.run(sys.executable, HERE / "read_logs.py", "--measure", what, log)
            for name, what in names.items()
        },
    )
    log.unlink()
    reference = f"pandas.read_csv ({found['pandas'].mb:.0f} MB)"
    yield timed("a CSV of 1 GB read for Runs and drawn thrice", found["ours"], 5, reference, found["pandas"], 400)


def proofs(place: Place) -> Iterator[Line]:
    cost = json.loads(place.itself("prove").said)
    work = f"proof by miniature at three granularities, median of {len(FAMILIES)} families"
    reference = f"their miniatures built, loaded and run once: {cost['bare']:.2f} s CPU"
    ours = f"{cost['ours']:.2f} s CPU"
    yield Line(work, "<= 0.8 s", ours, reference, cost["ours"] / cost["bare"], cost["ours"] <= 0.8)


LINES = {
    "inspect": inspect,
    "f16": f16,
    "zeros": zeros,
    "growth": growth,
    "rescale": rescale,
    "runs": runs,
    "what-if": what_if,
    "csv": csv,
    "proofs": proofs,
}


# ---- in processes of their own


def bare(folder: str, pairs: str) -> None:
    """What numpy itself needs: each pair's tensors read in blocks, |w| and its square summed, on two threads."""
    file = Path(folder) / "model.safetensors"
    with file.open("rb") as raw:
        n = int.from_bytes(raw.read(8), "little")
        header = json.loads(raw.read(n))
    parts = ("self_attn",) + (("up_proj", "down_proj") if "mlp" in pairs else ())
    chosen = [v["data_offsets"] for k, v in header.items() if any(part in k for part in parts)]

    def one(span: tuple[int, int]) -> float:
        total = 0.0
        with file.open("rb", buffering=0) as raw:
            raw.seek(8 + n + span[0])
            data = np.empty(1 << 18, np.uint16)
            wide = np.empty(1 << 18, np.uint32)
            left = (span[1] - span[0]) // 2
            while left:
                block = data[: min(left, len(data))]
                raw.readinto(block)
                values = wide[: len(block)]
                np.left_shift(block, 17, out=values, dtype=np.uint32, casting="unsafe")
                values >>= 1
                numbers = values.view(np.float32)
                total += float(np.einsum("i->", numbers)) + float(np.einsum("i,i->", numbers, numbers))
                left -= len(block)
        return total

    with ThreadPoolExecutor(2) as pool:
        assert sum(pool.map(one, chosen)) > 0


def measure(folder: str) -> None:
    from wisca_core.architecture.find import find_sites
    from wisca_core.checkpoint import open_checkpoint
    from wisca_core.patterns.measure import measure as one_pass

    before, cpu, wall = anonymous_mb(os.getpid()), time.process_time(), time.perf_counter()
    checkpoint = open_checkpoint(folder)
    one_pass(checkpoint, find_sites(checkpoint, pairs=("qk", "vo", "mlp")))
    cost = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    print(json.dumps(cost | {"mb": anonymous_mb(os.getpid()) - before}))


def sparse(folder: Path, n_bytes: float) -> int:
    """A checkpoint of 70B-wide layers, a shard each, whose values are a hole in the file; its size in bytes."""
    folder.mkdir()
    width, kv = WIDE["hidden_size"], WIDE["num_key_value_heads"] * WIDE["head_dim"]
    shapes = {f"self_attn.{n}_proj": (rows, width) for n, rows in (("q", width), ("k", kv), ("v", kv), ("o", width))}
    shapes |= {f"mlp.{n}_proj": (WIDE_MLP, width) for n in ("gate", "up")} | {"mlp.down_proj": (width, WIDE_MLP)}
    of_layer = 2 * sum(a * b for a, b in shapes.values())
    n_layers = max(1, int(n_bytes / of_layer))
    where = {}
    for layer in range(n_layers):
        header, at, name = {}, 0, f"model-{layer:05}.safetensors"
        for tensor, shape in shapes.items():
            size = 2 * shape[0] * shape[1]
            full = f"model.layers.{layer}.{tensor}.weight"
            header[full] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
            where[full], at = name, at + size
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + at)
    config = LLAMA | WIDE | {"num_hidden_layers": n_layers, "intermediate_size": WIDE_MLP}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return n_layers * of_layer


def what_if_ms() -> None:
    from recompute import after, big_table

    from wisca_core.planning.options import Options

    patterns, options = big_table(126, 128), Options(granularity="channel")
    cells = patterns.cells("channel")
    after(patterns, options)

    def least(work: Callable[[], object]) -> float:
        times = []
        for _ in range(9):
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
        return 1e3 * min(times)

    found = {"ours": least(lambda: after(patterns, options))}
    print(json.dumps(found | {"bare": least(lambda: np.bincount(cells.row, patterns.rows["l1"]))}))


def prove() -> None:
    import torch

    from wisca_core.architecture.find import find_sites
    from wisca_core.census.judge import judge_type
    from wisca_core.checkpoint import open_checkpoint
    from wisca_core.equivalence.bench import open_bench
    from wisca_core.equivalence.example import example_config
    from wisca_core.equivalence.miniature import build_miniature
    from wisca_core.equivalence.small_config import shrink

    torch.set_num_threads(1)

    def once(family: str) -> None:
        with tempfile.TemporaryDirectory() as place:
            small = Path(place) / "small"
            small.mkdir()
            build_miniature(shrink(example_config(family)), small, seed=1)
            checkpoint = open_checkpoint(small)
            open_bench(checkpoint, find_sites(checkpoint), Path(place))

    def least(work: Callable[[str], object], family: str) -> float:
        times = []
        for _ in range(2):  # the first one imports the family
            began = time.process_time()
            work(family)
            times.append(time.process_time() - began)
        return min(times)

    found = {
        name: statistics.median(least(work, f) for f in FAMILIES)
        for name, work in (("bare", once), ("ours", judge_type))
    }
    print(json.dumps(found))


ITSELF = {"bare": bare, "measure": measure, "what_if": what_if_ms, "prove": prove}


# ---- the table


def markdown(lines: list[Line], machine: str) -> str:
    rows = [
        "| work, from process start | goal | measured | reference | ratio | met |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for one in lines:
        ratio = "" if one.ratio is None else f"{one.ratio:.2f}"
        met = {True: "yes", False: "no", None: ""}[one.is_met]
        rows.append(f"| {one.work} | {one.goal} | {one.ours} | {one.reference} | {ratio} | {met} |")
    return f"{machine}\n\n" + "\n".join(rows) + "\n"


def machine() -> str:
    model = next(
        (x.split(":")[1].strip() for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), ""
    )
    cores = len(os.sched_getaffinity(0))
    return (
        f"{time.strftime('%Y-%m-%d')}, {cores} cores of {model or platform.machine()}, Python "
        f"{platform.python_version()}, "
        f"numpy {np.__version__}; load {os.getloadavg()[0]:.1f} at the start"
    )


def main() -> None:
    if sys.argv[1:2] == ["--itself"]:
        return ITSELF[sys.argv[2]](*sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="NAME", nargs="+", choices=LINES, default=list(LINES))
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for table.md and table.json")
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    lines: list[Line] = []
    words = machine()
    with tempfile.TemporaryDirectory() as top:
        place = Place(Path(top), asked.rounds)
        for name in asked.only:
            for line in LINES[name](place):
                lines.append(line)
                print(markdown([line], words).splitlines()[-1], flush=True)
                asked.out.mkdir(parents=True, exist_ok=True)
                (asked.out / "table.md").write_text(markdown(lines, words))
                (asked.out / "table.json").write_text(
                    json.dumps({"machine": words, "lines": [asdict(one) for one in lines]}, indent=1)
                )


if __name__ == "__main__":
    main()
