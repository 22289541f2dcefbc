"""The whole "after" of an 80-layer, 64-head model after one changed option, without touching weights. By hand: python
tests/benchmarks/recompute.py

The reference in the same run is one bare pass over the table: summing its L1 column once by tie group with
numpy.bincount.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

from wisca_core.architecture.site import Attention, Grid, Leg, Site, SiteKey, Sites
from wisca_core.patterns.summary import summaries
from wisca_core.patterns.table import STATS, Patterns
from wisca_core.planning.decide import decide
from wisca_core.planning.options import Options

N_KV, DIM = 8, 128


def big_table(n_layers: int = 80, n_heads: int = 64) -> Patterns:
    """Made-up statistics of a 70B-like model: ``n_heads`` query heads on 8 KV heads of 128."""
    per_kv = n_heads // N_KV
    rng = np.random.default_rng(0)

    def leg(name: str, axis: int, heads: int, side: str, role: str) -> Leg:
        sizes = (N_KV, heads, DIM)
        return Leg(name, axis, Grid(0, sizes, (heads * DIM, DIM, 1)), Grid(0, sizes, (DIM, 0, 1)), side, role)

    sites = []
    groups = (Grid(0, (N_KV, DIM), (DIM, 1)),)
    for i in range(n_layers):
        qk = (leg(f"q{i}", 0, per_kv, "left", "q"), leg(f"k{i}", 0, 1, "right", "k"))
        vo = (leg(f"v{i}", 0, 1, "left", "v"), leg(f"o{i}", 1, per_kv, "right", "o"))
        rotary = (Grid(0, (N_KV, DIM // 2, 2), (DIM, 1, DIM // 2)),)
        sites.append(Site(SiteKey("decoder", i, "self", "qk"), N_KV * DIM, N_KV, qk, rotary, groups))
        sites.append(Site(SiteKey("decoder", i, "self", "vo"), N_KV * DIM, N_KV, vo, (), groups))
    measured = {}
    for site in sites:
        for one in site.legs:
            n = len(one.index.indices())
            stats = {name: np.zeros(n, dtype) for name, dtype in STATS.items()}
            stats["n"][:], stats["max"][:], stats["min_abs"][:] = 8192, 0.3, 1e-6
            stats["l1"] = rng.uniform(50, 200, n)
            stats["l2_sq"] = stats["l1"] ** 2 / 5000
            measured[one.tensor, one.axes, 0.0] = stats
    names = {name for name, _, _ in measured}
    found = Sites("llama", "llama", Attention(n_layers, n_heads, N_KV, DIM, 8192), tuple(sites))
    return Patterns.gather(found, measured, dict.fromkeys(names, ""), "", dict.fromkeys(names, "BF16"))


def median_ms(work: Callable[[], object], n: int = 7) -> float:
    times = []
    for _ in range(n):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def after(patterns: Patterns, options: Options) -> None:
    """The whole "after" of one choice of options."""
    decision = decide(patterns, options)
    summaries(decision.groups(), options.norm)
    decision.heads()
    _ = decision.effects


def main() -> None:
    patterns = big_table()
    rows = patterns.rows
    print(f"{len(rows['l1']):,} rows; medians of 7")
    for options in (
        Options(),
        Options(granularity="group", exact=True),
        Options(granularity="channel"),
        Options(granularity="channel", norm="l2"),
        Options(granularity="group", norm="max", strength=0.5),
    ):
        start = time.perf_counter()
        cells = patterns.cells(options.granularity)
        first = 1e3 * (time.perf_counter() - start)

        bare = median_ms(lambda: np.bincount(cells.row, rows["l1"]))
        ours = median_ms(lambda: after(patterns, options))
        print(
            f"{options.granularity:8s} {options.norm:4s} exact={options.exact!s:5s} {ours:6.1f} ms, {ours / bare:4.1f} "
            f"bare passes of {bare:.1f} ms; "
            f"first use of the granularity {first:.0f} ms more"
        )


if __name__ == "__main__":
    main()
