"""Time and memory of reading logs, against references in the same run. By hand: python tests/benchmarks/read_logs.py
[tensorboard] [csv] [runs]

tensorboard: 200,000 scalars; beside it a bare pass that frames and parses every Event, and TensorBoard's own
EventAccumulator, alternating. csv: a table of 1 GB; beside it pandas.read_csv. runs: a folder of 500 runs. The last two
in processes of their own, with what drawing costs.
"""

import json
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

N_SCALARS = 200_000


def rss_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def anonymous_mb() -> float:
    """Memory that is no file's: what the process itself costs."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) / 1024


def tensorboard(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.compat.proto.event_pb2 import Event
    from torch.utils.tensorboard import SummaryWriter

    from wisca_core.runs import read

    writer = SummaryWriter(folder, max_queue=10_000)
    for i in range(N_SCALARS // 4):
        for tag in ("train/loss", "train/grad_norm", "train/learning_rate", "train/tokens_per_second"):
            writer.add_scalar(tag, i / 7, i)
    writer.close()
    file = next(folder.iterdir())

    def bare() -> int:
        data, at, n = file.read_bytes(), 0, 0
        while at + 12 <= len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            n += bool(Event.FromString(data[at + 12 : at + 12 + length]).summary.value)
            at += length + 16
        return n

    def ours() -> int:
        return len(read([folder]).runs[0])

    def theirs() -> int:
        accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        accumulator.Reload()
        return sum(len(accumulator.Scalars(tag)) for tag in accumulator.Tags()["scalars"])

    seconds: dict[str, list[float]] = {"bare": [], "ours": [], "EventAccumulator": []}
    for _ in range(5):
        for name, function in (("bare", bare), ("ours", ours), ("EventAccumulator", theirs)):
            began = time.process_time()
            assert function() == N_SCALARS, name
            seconds[name].append(time.process_time() - began)
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    print(
        f"{N_SCALARS:,} scalars, CPU seconds, median of 5: "
        + ", ".join(f"{name} {value:.3f}" for name, value in middle.items())
    )
    print(
        f"ours / bare pass {middle['ours'] / middle['bare']:.2f} (at most 1.5), EventAccumulator / ours "
        f"{middle['EventAccumulator'] / middle['ours']:.1f} "
        "(at least 4); ours also checks every checksum"
    )


def write_gigabyte(path: Path, n_bytes: int = 1_000_000_000) -> None:
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    n = 100_000
    table = pd.DataFrame({f"metric_{k}": rng.normal(size=n) for k in range(10)})
    body = table.to_csv(index=False, header=False).encode().splitlines()
    with path.open("wb") as file:
        file.write(("step," + ",".join(table.columns) + "\n").encode())
        step = 0
        while file.tell() < n_bytes:
            file.write(b"".join(b"%d,%s\n" % (step + i, line) for i, line in enumerate(body)))
            step += n


def draw(runs, metric: str) -> None:
    from wisca_core.runs.drawing import line

    for what, options in (("whole", {}), ("smoothed", {"smoothing": 0.99}), ("zoomed", {"window": (1000, 2000)})):
        began = time.perf_counter()
        lines = [line(run, metric, most=2000, **options) for run in runs]
        n = sum(len(one.x) for one in lines)
        print(f"  draw {what}: {time.perf_counter() - began:.2f} s, {n:,} of {sum(one.n for one in lines):,} points")


def measured(what: str, path: str) -> None:
    began, cpu = time.perf_counter(), time.process_time()
    if what == "pandas":
        import pandas as pd

        base = anonymous_mb()
        n = pd.read_csv(path).size
    else:
        from wisca_core.runs import read

        base = anonymous_mb()
        began, cpu = time.perf_counter(), time.process_time()
        logs = read([path])
        n = sum(len(run) for run in logs.runs)
    print(
        f"{what}: {n:,} values in {time.perf_counter() - began:.1f} s ({time.process_time() - cpu:.1f} s CPU), "
        f"{anonymous_mb() - base:.0f} MB of memory afterwards, peak {rss_mb():.0f} MB with mapped files and imports"
    )
    if what != "pandas":
        draw(logs.runs, "metric_3" if what == "csv" else "loss")


def write_runs(folder: Path, n_runs: int = 500, n_steps: int = 10_000) -> None:
    for k in range(n_runs):
        place = folder / f"lr-{k % 5}" / f"seed-{k // 5}"
        place.mkdir(parents=True)
        (place / "metrics.jsonl").write_text(
            "".join(json.dumps({"step": s, "loss": 1 / (s + 1) + k, "lr": 1e-3}) + "\n" for s in range(0, n_steps, 10))
        )


def main() -> None:
    chosen = sys.argv[1:] or ["tensorboard", "csv", "runs"]
    if chosen[0] == "--measure":
        return measured(*chosen[1:])
    with tempfile.TemporaryDirectory() as temporary:
        top = Path(temporary)
        if "tensorboard" in chosen:
            tensorboard(top / "tb")
        if "csv" in chosen:
            write_gigabyte(top / "log.csv")
            print(f"a CSV of {(top / 'log.csv').stat().st_size / 1e9:.2f} GB")
            for what in ("csv", "pandas"):
                subprocess.run([sys.executable, __file__, "--measure", what, str(top / "log.csv")], check=True)
        if "runs" in chosen:
            write_runs(top / "runs")
            print("a folder of 500 runs of 2,000 values")
            subprocess.run([sys.executable, __file__, "--measure", "runs", str(top / "runs")], check=True)


if __name__ == "__main__":
    main()
