"""Shared by all tests: a WISCA_HOME of their own, one thread, and small models with every parameter random.

``small_model`` builds each kind once a session; a test that changes one works on a copy (``edited``).
"""

import gc
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from installed import IS_OLDER
from safetensors.torch import load_file, save_file

from wisca_core import jobs
from wisca_core.errors import ConfigMismatch, UnknownArchitecture
from wisca_core.model import Model, open_model
from wisca_core.processes import collect_seldom

# model_type -> how far its default config is from a structure worth testing; the class it is saved as
_CLASSES = {
    "bert": "BertForMaskedLM",
    "roberta": "RobertaForMaskedLM",
    "xlm-roberta": "XLMRobertaForMaskedLM",
    "camembert": "CamembertForMaskedLM",
    "electra": "ElectraForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
}


# what a refusal says that is about the library, not about a checkpoint
_OF_THE_LIBRARY = (
    "has no model type",
    "does not know",
    "refuses its own defaults",
    "does not run on",
    "cannot be built: ",
)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """An older transformers lacks some model types and cannot run others. What is promised of them there is a refusal
    by name, and a test that ends in one says so instead of failing.
    """
    try:
        return (yield)
    except (UnknownArchitecture, ConfigMismatch) as refusal:
        if IS_OLDER and any(words in str(refusal) for words in _OF_THE_LIBRARY):
            pytest.skip(f"transformers {version('transformers')}: {refusal}")
        raise


# These take longest, so they come first, and no worker is left with one of them while the others have nothing to do.
# The browser's tests mostly wait, so they begin, beside those that compute.
LONGEST = (
    "test_browser",
    "test_families",
    "test_comparison_cluster",
    "test_training_distributed",
    "test_comparison_training",
    "test_pretend_gpu",
    "test_comparison_replicas",
    "test_adapter",
    "test_app_rescale",
    "test_app_compare",
    "test_real_model",
    "test_variants",
    "test_faults",
    "test_inputs",
    "test_full_check",
    "test_app_evaluate",
    "test_comparison_models",
    "test_runs_joining",
    "test_mistakes",
    "test_gpu_script",
    "test_app_inspect",
    "test_front_door",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A file at a time to a worker, so that what its tests share is made once; the types of test_families in four
    parts.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, name = nodeid.partition("::")
            return f"{file} {len(name.partition('[')[2]) % 4}" if file.endswith("test_families.py") else file

    return Scheduling(config, log)


def pytest_configure() -> None:
    collect_seldom()
    # some images forbid it, and then each of the hundred processes of a run compiles the library anew
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False


_n_frozen = 0  # modules that were imported when it was done last


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """What was imported stays: half a million objects that no later garbage collection need look through, nor the
    search for averaged models with which each rescale of a training begins. Libraries import on while tests run.
    """
    global _n_frozen
    if len(sys.modules) > _n_frozen + 20:
        gc.collect()
        gc.freeze()
        _n_frozen = len(sys.modules)


def pytest_collection_finish() -> None:
    pytest_runtest_teardown()


@pytest.fixture(scope="session", autouse=True)
def wisca_home(tmp_path_factory) -> Path:
    """WISCA_HOME for the whole run, so that proofs are made once; a test that needs an empty one sets its own."""
    home = tmp_path_factory.mktemp("wisca-home")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only cost time on models this small, most of it in waiting for one another
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WISCA_HOME", str(home))
        patch.setenv("OMP_NUM_THREADS", "1")  # of the processes that a test starts
        yield home
    torch.set_num_threads(threads)


@pytest.fixture
def own_home(tmp_path, monkeypatch) -> Iterator[Path]:
    """A WISCA_HOME of one test; the jobs that it leaves are ended."""
    monkeypatch.setenv("WISCA_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"
    for job in jobs.every():
        jobs.cancel(job.id, kill_after=0)


@pytest.fixture
def jobs_here(monkeypatch) -> None:
    """Jobs are done in this process, at once, where that one is started is not what a test is about: it would import
    everything anew, and so would the process in which it tries the tokenizer.
    """
    from wisca_core.jobs import control, worker
    from wisca_core.progress import FolderProgress

    def run(folder: Path, descriptor: int, log: int) -> None:
        progress = FolderProgress(folder)
        with monkeypatch.context() as patch:
            patch.setattr(worker.signal, "signal", lambda *_: None)
            progress.finish(*worker._work(folder, progress))

    monkeypatch.setattr(control, "_spawn", run)


@pytest.fixture
def proved_before(wisca_home, own_home) -> Iterator[None]:
    """``own_home`` begins with the proofs that the whole run has made so far, and gives it those that it makes: for
    tests that ask for something else than that one is made.
    """

    def take(source: Path, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for path in source.glob("proof-*.json"):
            if not (target / path.name).exists():
                shutil.copy(path, target)

    take(wisca_home / "proofs", own_home / "proofs")
    yield
    take(own_home / "proofs", wisca_home / "proofs")


@pytest.fixture
def known_speed(own_home, monkeypatch) -> None:
    """A step of any comparison takes 0.05 s on every machine."""
    monkeypatch.setattr("wisca_core.comparison.estimate.measure_step", lambda spec, device: 0.05)


@pytest.fixture(scope="session")
def look() -> Callable[[Path], Model]:
    """look(folder) -> Model, measured anew."""
    from wisca_core.patterns.measure import measure

    def look(folder: Path) -> Model:
        model = open_model(folder)
        model.keep("patterns", lambda: measure(model.checkpoint, model.sites))
        return model

    return look


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Callable[..., Path]:
    """small_model(model_type, dtype=torch.float64, **config changes) -> folder, the same one for the same arguments.

    Two layers, heads as the config's ratio says, biases and gains random. Never to be changed in place.
    """
    from wisca_core.equivalence.example import example_config
    from wisca_core.equivalence.miniature import build_miniature
    from wisca_core.equivalence.small_config import shrink

    made: dict[str, Path] = {}

    def small_model(model_type: str, dtype: torch.dtype = torch.float64, seed: int = 5, **changes) -> Path:
        key = json.dumps([model_type, str(dtype), seed, changes], sort_keys=True)
        if key not in made:
            folder = tmp_path_factory.mktemp(model_type.replace("-", "_"))
            config = example_config(model_type, **changes)
            if model_type in _CLASSES and "architectures" not in changes:
                config["architectures"] = [_CLASSES[model_type]]
            build_miniature(shrink(config), folder, seed)
            if dtype != torch.float64:
                tensors = {name: t.to(dtype) for name, t in load_file(folder / "model.safetensors").items()}
                save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
                written = json.loads((folder / "config.json").read_text())
                written["dtype"] = str(dtype).removeprefix("torch.")
                (folder / "config.json").write_text(json.dumps(written, indent=2))
            made[key] = folder
        return made[key]

    return small_model


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., Path]:
    """tiny_llama(folder, n_layers, change=None) -> folder. As transformers initialises and writes it, bf16, four query
    heads on two KV heads; ``change(model)`` in place.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    def tiny_llama(folder: Path, n_layers: int, change=None) -> Path:
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=n_layers,
                num_attention_heads=4,
                num_key_value_heads=2,
                vocab_size=64,
                max_position_embeddings=64,
            )
        )
        if change is not None:
            change(model)
        model.to(torch.bfloat16).save_pretrained(folder)
        return folder

    return tiny_llama


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """A file of 4,000 bytes for comparisons to train on."""
    from small_comparison import TEXT

    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_bytes(TEXT)
    return path


@pytest.fixture
def edited(tmp_path) -> Callable[..., Path]:
    """edited(folder, change=None, config=None, name="edited") -> a copy with ``change(tensors)`` and ``config(dict)``
    applied in place.
    """

    def edited(folder: Path, change=None, config=None, name: str = "edited") -> Path:
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        if change is not None:
            tensors = load_file(copy / "model.safetensors")
            change(tensors)
            save_file(
                {n: t.contiguous() for n, t in tensors.items()}, copy / "model.safetensors", metadata={"format": "pt"}
            )
        if config is not None:
            written = json.loads((copy / "config.json").read_text())
            config(written)
            (copy / "config.json").write_text(json.dumps(written, indent=2))
        return copy

    return edited
