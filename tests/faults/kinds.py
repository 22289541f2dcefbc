"""Each kind: ``KINDS[name](folder)`` prepares the work and gives ``once(random, number) -> outcome in words``; Fault
where what is left is neither whole nor absent.
"""

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from small_comparison import TEXT, never, numbers, small_spec

import wisca_core as wisca
from wisca_core.comparison import folder as comparisons
from wisca_core.comparison.cell import train
from wisca_core.comparison.data import load_corpus
from wisca_core.errors import WiscaError
from wisca_core.exporting.export import export
from wisca_core.model import Model
from wisca_core.patterns import store

torch.set_num_threads(1)  # a forked process has none of the others

Once = Callable[[random.Random, int], str]
SAMPLE = Path(__file__).parents[2] / "sample_runs" / "gqa-docs" / "checkpoint-3600"
REFUSED = 7  # exit code of a child that ended in a named error


class Fault(Exception):
    """What no fault may leave behind."""


# --- what is done -----------------------------------------------------------------------------------------------------


class Export:
    """A small model, its plan and proof, and the bytes of an export that nothing disturbed."""

    def __init__(self, folder: Path) -> None:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        sizes = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4, vocab_size=512)
        LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(folder / "model", max_shard_size="2MB")
        self.source, self.folder = folder / "model", folder
        self.bytes = contents(self.source)
        self.model: Model = wisca.open(self.source)
        self.plan, self.proof = wisca.plan(self.model), wisca.prove(self.model)
        self.seconds = self.run(folder / "reference")
        self.reference = contents(folder / "reference")

    def run(self, out: Path) -> float:
        started = time.monotonic()
        export(self.model.checkpoint, self.model.sites, self.plan, out, self.proof)
        return time.monotonic() - started

    def check(self, out: Path, must: bool | None = None) -> str:
        """Whole, or absent with nothing beside it; ``must``: which of them it has to be. The folder is left empty."""
        if contents(self.source) != self.bytes:
            raise Fault("the model itself was written to")
        beside = sorted(path.name for path in out.parent.iterdir() if path != out)
        whole = out.exists()
        if whole and contents(out) != self.reference:
            raise Fault(f"{out} is there and not whole")
        if must is not None and (whole != must or beside):
            raise Fault(f"{out} is {'there' if whole else 'not there'}, beside it: {beside}")
        shutil.rmtree(out.parent)
        return "whole" if whole else "absent"


def contents(folder: Path) -> dict[str, bytes]:
    """Of every file but the times in the report."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if "wisca_report.json" in found:
        lines = found["wisca_report.json"].splitlines()
        found["wisca_report.json"] = b"\n".join(line for line in lines if not line.startswith(b'"created"'))
    return found


def untimed(path: Path) -> dict:
    """The result of an evaluation without when it was made and how long it took."""
    found = json.loads(path.read_bytes(), object_hook=lambda one: {k: v for k, v in one.items() if "second" not in k})
    return {key: value for key, value in found.items() if key != "created"}


def child(work: Callable[[], object]) -> int:
    """The number of a forked process that does it: exit code 0, REFUSED for a named error, 1 for any other."""
    number = os.fork()
    if number:
        return number
    code = 1
    try:
        work()
        code = 0
    except WiscaError:
        code = REFUSED
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def ended(number: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def kill_after(number: int, seconds: float) -> None:
    time.sleep(seconds)
    os.kill(number, signal.SIGKILL)
    ended(number)


# --- kinds ------------------------------------------------------------------------------------------------------------


def killed_export(folder: Path) -> Once:
    """kill -9, then the same export again, which clears what the killed one left."""
    work = Export(folder)

    def once(choose: random.Random, number: int) -> str:
        out = folder / f"out{number}" / "model"
        kill_after(child(lambda: work.run(out)), choose.uniform(0, 1.2 * work.seconds))
        if out.exists():
            return f"killed when {work.check(out)}"
        if sorted(p.name for p in out.parent.glob("*") if not p.name.startswith(".")):
            raise Fault(f"something visible beside {out}")
        work.run(out)
        return "killed before, done again " + work.check(out, must=True)

    return once


def killed_measuring(folder: Path) -> Once:
    """kill -9 while the weights are measured and the table is kept."""
    work = Export(folder)
    path = store.place(work.model.checkpoint, work.model.sites.sites)
    path.unlink(missing_ok=True)
    started = time.monotonic()
    digests = dict(store.measured_patterns(work.model.checkpoint, work.model.sites).digests)
    seconds = time.monotonic() - started

    def once(choose: random.Random, number: int) -> str:
        path.unlink(missing_ok=True)
        measuring = child(lambda: store.measured_patterns(work.model.checkpoint, work.model.sites))
        kill_after(measuring, choose.uniform(0, 1.2 * seconds))
        kept = store.cached_patterns(work.model.checkpoint, work.model.sites)
        if path.exists() and kept is None:
            raise Fault(f"{path} is half a table")
        if dict(store.measured_patterns(work.model.checkpoint, work.model.sites).digests) != digests:
            raise Fault("measured again it is another table")
        return "killed with the table kept" if kept else "killed before it was"

    return once


def killed_comparison(folder: Path) -> Once:
    """kill -9 in the midst of training; resumed, every number is that of an unbroken run."""
    (folder / "text.txt").write_bytes(TEXT)
    spec = small_spec(folder / "text.txt", steps=24)
    corpus = load_corpus(spec)

    def go_on(path: Path) -> None:
        for cell in comparisons.read(path).cells:
            if cell.state != "done":
                train(spec, cell, corpus, never)
                comparisons.write_cell_status(cell, state="done")

    def whole(path: Path) -> dict[str, list[dict]]:
        return {cell.name: numbers(cell) for cell in comparisons.read(path).cells}

    comparisons.create(folder / "reference", spec)
    started = time.monotonic()
    go_on(folder / "reference")
    seconds, reference = time.monotonic() - started, whole(folder / "reference")

    def once(choose: random.Random, number: int) -> str:
        path = folder / f"comparison{number}"
        comparisons.create(path, spec)
        for _ in range(2):
            kill_after(child(lambda: go_on(path)), choose.uniform(0, 0.4 * seconds))
        n_done = sum(cell.state == "done" for cell in comparisons.read(path).cells)
        go_on(path)
        if whole(path) != reference:
            raise Fault(f"{path} has other numbers")
        shutil.rmtree(path)
        return f"killed twice with {n_done} runs done"

    return once


def killed_evaluation(folder: Path) -> Once:
    """kill -9 while a model is evaluated: rows are those of an unbroken evaluation, and a result is whole or absent."""
    source = Path(shutil.copytree(SAMPLE, folder / "model"))
    before = contents(source)

    def run(out: Path) -> None:
        wisca.evaluate(source, tasks=("docs-continuation",), window=64, limit=24, batch_size=2, out=out)

    def rows(out: Path) -> list[bytes]:
        path = out / "metrics.jsonl"
        return path.read_bytes().splitlines(keepends=True) if path.exists() else []

    started = time.monotonic()
    run(folder / "reference")
    seconds, reference = time.monotonic() - started, rows(folder / "reference")
    result = untimed(folder / "reference" / "result.json")

    def once(choose: random.Random, number: int) -> str:
        out = folder / f"evaluation{number}"
        kill_after(child(lambda: run(out)), choose.uniform(0, 1.2 * seconds))
        found = rows(out)
        if contents(source) != before:
            raise Fault("the model itself was written to")
        if b"".join(found) != b"".join(reference)[: sum(map(len, found))]:
            raise Fault(f"{out} has other rows than an evaluation that nothing disturbed")
        is_done = (out / "result.json").exists()
        if is_done and untimed(out / "result.json") != result:
            raise Fault(f"{out} has half a result, or another")
        shutil.rmtree(out, ignore_errors=True)
        return (
            "killed when done"
            if is_done
            else "killed between rows"
            if len(found) > 1
            else "killed before the first row"
        )

    return once


def full_disk(folder: Path) -> Once:
    """No file may grow beyond a random size: the export refuses and leaves nothing; measuring goes on without a kept
    table.
    """
    work = Export(folder)
    largest = max(map(len, work.reference.values()))
    kept = store.place(work.model.checkpoint, work.model.sites.sites)

    def limited(n_bytes: int, do: Callable[[], object]) -> int:
        def inside() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))
            do()

        return ended(child(inside))

    def once(choose: random.Random, number: int) -> str:
        out = folder / f"out{number}" / "model"
        out.parent.mkdir()
        room = int(largest ** choose.uniform(0.3, 1)) - 1
        code = limited(room, lambda: work.run(out))
        if code != REFUSED:
            raise Fault(f"with {room} bytes a file the export ended with {code}")
        kept.unlink(missing_ok=True)
        code = limited(choose.randrange(1000), lambda: store.measured_patterns(work.model.checkpoint, work.model.sites))
        if code or kept.exists() or list(kept.parent.glob(".*.tmp")):
            raise Fault(f"measuring without room ended with {code}, or left {list(kept.parent.iterdir())}")
        return f"refused, {work.check(out, must=False)}"

    return once


def two_writers(folder: Path) -> Once:
    """Two exports to one folder at once, from one WISCA_HOME or two: one is whole, the other says so and leaves
    nothing.
    """
    work = Export(folder)

    def once(choose: random.Random, number: int) -> str:
        out = folder / f"out{number}" / "model"
        out.parent.mkdir()
        n_homes = choose.choice((1, 2))

        def write(home: str, wait: float) -> None:
            os.environ["WISCA_HOME"] = home
            time.sleep(wait)
            work.run(out)

        homes = [f"{folder}/home{k % n_homes}" for k in range(2)]
        waits = (0.0, choose.uniform(0, 1.2 * work.seconds))
        writers = [child(lambda home=home, wait=wait: write(home, wait)) for home, wait in zip(homes, waits)]
        codes = sorted(ended(writer) for writer in writers)
        if codes != [0, REFUSED]:
            raise Fault(f"two writers ended with {codes}")
        return f"{n_homes} home{'s' * (n_homes > 1)}: {work.check(out, must=True)}"

    return once


def changed_source(folder: Path) -> Once:
    """A weight file is written over while it is exported: the export refuses, or was done before."""
    work = Export(folder)
    shard = sorted(work.source.glob("*.safetensors"))

    def once(choose: random.Random, number: int) -> str:
        out = folder / f"out{number}" / "model"
        out.parent.mkdir()
        writer = child(lambda: work.run(out))
        time.sleep(choose.uniform(0, 1.1 * work.seconds))
        one = choose.choice(shard)
        with one.open("r+b") as file:
            file.seek(-100, os.SEEK_END)
            file.write(b"\xff" * 100)
        code = ended(writer)
        for name, content in work.bytes.items():
            (work.source / name).write_bytes(content)
        work.model = wisca.open(work.source)  # it has other times now
        if code not in (0, REFUSED):
            raise Fault(f"the export ended with {code}")
        return f"{'done' if code == 0 else 'refused'}, {work.check(out, must=code == 0)}"

    return once


KINDS = {
    one.__name__: one
    for one in (
        killed_export,
        killed_measuring,
        killed_comparison,
        killed_evaluation,
        full_disk,
        two_writers,
        changed_source,
    )
}
