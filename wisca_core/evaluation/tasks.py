"""Zero-shot tasks, run by lm-evaluation-harness itself (the extra ``eval``): bundled, a JSONL file, or any it has.

A task is asked for as the name of a bundled one (docs-continuation, docs-order), the path of a .jsonl file (an object a
line: question, choices, answer as a number from 0 or the text of the choice), a name the harness knows, or
FOLDER:NAME for tasks of a folder of one's own (its YAML may name Python code, which the harness then runs).

Not covered: chat templates, several shots, tasks that the harness judges with a second model.
"""

import contextlib
import difflib
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from wisca_core.errors import BadOption, HubError, UnreadableInput, UnsupportedCheckpoint, WiscaError
from wisca_core.evaluation import bundled_tasks
from wisca_core.evaluation.subjects import Subject
from wisca_core.progress import Progress
from wisca_core.untrusted import named_path, read_regular

MOST_BYTES = 64 * 1024**2  # of a local task
_NAME = re.compile(r"^(?:task|group): *['\"]?([\w.+-]+)['\"]? *$", re.M)


@dataclass(frozen=True)
class Document:
    """What one model did with one document. ``answer`` and ``gold`` are numbers of choices, None where the task has
    none; ``score`` is the task's own; ``margin``: log likelihood of the answer over the next best choice, nats.
    """

    task: str
    number: int
    score: float
    answer: int | None
    gold: int | None
    n_choices: int
    margin: float | None
    likelihoods: tuple[float, ...]
    question: str


@dataclass(frozen=True)
class Task:
    """``given``: what was asked for; ``source``: bundled, file, harness or folder; ``items``: of the first two."""

    given: str
    name: str
    source: str
    items: tuple[dict, ...] = ()
    place: str = ""


def harness_is_here() -> bool:
    """Whether lm-evaluation-harness can be imported."""
    from importlib.util import find_spec

    return find_spec("lm_eval") is not None


def find_task(given: str) -> Task:
    """Raises BadOption (unknown, with the near ones), UnreadableInput (a file that is no task), UnsupportedCheckpoint
    where the harness is not installed.
    """
    if not harness_is_here():
        raise UnsupportedCheckpoint(
            "tasks run through lm-evaluation-harness, which is not installed: pip install 'wisca[eval]'."
        )
    if given in bundled_tasks.N_ITEMS:
        return Task(given, given, "bundled", bundled_tasks.items(given))
    if given.endswith(".jsonl"):
        return Task(given, Path(given).stem, "file", _items(named_path(given)))
    folder, colon, name = given.rpartition(":")
    if colon and folder and named_path(folder).is_dir():
        place = str(named_path(folder).resolve())
        with _silence():
            known = sorted(_manager(place).all_tasks)
        if name not in known:
            raise BadOption(_unknown_task(name, known, f"the tasks of {folder}"))
        return Task(given, name, "folder", place=place)
    with _silence():
        known = _own_names()
    if given not in known:
        raise BadOption(
            _unknown_task(given, [*bundled_tasks.N_ITEMS, *known], "the tasks of the harness and the bundled ones")
        )
    return Task(given, given, "harness", place=known[given])


def run_task(
    subject: Subject, task: Task, progress: Progress, batch_size: int = 8, limit: int = 0
) -> Iterator[Document]:
    """Every document of the task, in its order. Raises HubError where its data cannot be had, UnsupportedCheckpoint."""
    found = _evaluate(subject, task, progress, batch_size, limit)
    for name, samples in found["samples"].items():
        for sample in sorted(samples, key=lambda one: one["doc_id"]):
            yield _document(name if len(found["samples"]) > 1 else task.name, sample)


@lru_cache(maxsize=1)
def _own_names() -> dict[str, str]:
    """Name of every task and group of the harness -> the folder of its file. Read from the files' first words: to have
    the harness read all its files takes 20 s, for one folder of them an instant.
    """
    import lm_eval.tasks

    root = Path(lm_eval.tasks.__file__).parent
    out = {}
    for file in sorted(root.rglob("*.yaml")):
        for found in _NAME.finditer(file.read_text(encoding="utf-8", errors="replace")):
            out.setdefault(found[1], str(file.parent))
    return out


@lru_cache(maxsize=4)
def _manager(place: str):
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=place or None, include_defaults=False)


def _unknown_task(name: str, known: Sequence[str], where: str) -> str:
    near = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    said = f"; near it: {', '.join(near)}" if near else ""
    return f"task {name[:80]!r} is not among {where}{said}. A file of your own is given by its path, ending in .jsonl."


def _items(file: Path) -> tuple[dict, ...]:
    if not file.is_file():
        raise UnreadableInput(f"task {str(file)!r} is no file. Give a JSONL file with question, choices and answer.")
    out = []
    for i, line in enumerate(read_regular(file, MOST_BYTES).splitlines()):
        if line.strip():
            out.append(_item(file, i + 1, line))
    if not out:
        raise UnreadableInput(f"task {str(file)!r} has no documents.")
    return tuple(out)


def _item(file: Path, number: int, line: bytes) -> dict:
    where = f"{file}, line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UnreadableInput(f"{where}: not JSON ({error}); expected an object a line.") from error
    if not isinstance(row, dict):
        raise UnreadableInput(f"{where}: {type(row).__name__}; expected an object with question, choices and answer.")
    question, choices, answer = row.get("question"), row.get("choices"), row.get("answer")
    if not isinstance(question, str) or not question.strip():
        raise UnreadableInput(f"{where}: question is {question!r:.60}; expected text.")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise UnreadableInput(f"{where}: choices is {choices!r:.60}; expected a list of two texts or more.")
    if isinstance(answer, str) and choices.count(answer) == 1:
        answer = choices.index(answer)
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise UnreadableInput(
            f"{where}: answer is {answer!r:.60}; expected a number from 0 to {len(choices) - 1}, or the text of one "
            "choice."
        )
    return {"question": question, "choices": choices, "answer": answer}


def _evaluate(subject: Subject, task: Task, progress: Progress, batch_size: int, limit: int) -> dict:
    step = f"{task.name} with {subject.name}"
    progress(f"starting {step}", 0, 0)
    with _silence():
        from lm_eval.evaluator import evaluate

        try:
            # not simple_evaluate, which then looks for git, the network and all installed packages
            loaded = _manager(task.place).load([_config(task) if task.items else task.name])
            for one in loaded["tasks"].values():
                one.set_config("num_fewshot", 0)
            return evaluate(
                _watched_model(subject, step, progress, batch_size),
                loaded,
                limit=limit or None,
                bootstrap_iters=0,
                log_samples=True,
            )
        except WiscaError:
            raise
        except Exception as error:
            raise _why(task, error) from error


def _config(task: Task) -> dict[str, Any]:
    rows = [dict(row) for row in task.items]

    def data(**_: Any) -> Any:
        from datasets import Dataset

        return {"test": Dataset.from_list(rows)}

    return {
        "task": task.name,
        "custom_dataset": data,
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": lambda row: row["question"],
        "doc_to_choice": lambda row: row["choices"],
        "doc_to_target": lambda row: row["answer"],
        "target_delimiter": "" if task.source == "bundled" else " ",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _watched_model(subject: Subject, step: str, progress: Progress, batch_size: int):
    """The harness's own model class around ours; it says how far it is, and can be cancelled, before every batch."""
    from lm_eval.models.huggingface import HFLM

    class Watched(HFLM):
        n_done, n_asked = 0, 0

        def _loglikelihood_tokens(self, requests, *args, **more):
            self.n_asked += len(requests)
            return super()._loglikelihood_tokens(requests, *args, **more)

        def _model_call(self, inps, *args, **more):
            progress(step, min(self.n_done, self.n_asked), self.n_asked)
            self.n_done += len(inps)
            return super()._model_call(inps, *args, **more)

    more = {"max_length": subject.context} if subject.context else {}
    return Watched(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=batch_size, **more)


def _why(task: Task, error: Exception) -> WiscaError:
    words = " ".join(str(error).split())[:300]
    chain, one = [], error
    while one is not None and len(chain) < 8:
        chain.append(type(one).__name__)
        one = one.__cause__ or one.__context__
    network = (
        "ConnectionError",
        "ConnectError",
        "OfflineModeIsEnabled",
        "LocalEntryNotFoundError",
        "ConnectTimeout",
        "gaierror",
    )
    if (
        any(name in network for name in chain)
        or "couldn't connect" in words.lower()
        or "couldn't find" in words.lower()
    ):
        return HubError(
            f"task {task.name} takes its data from the hub, which cannot be reached from here and has no copy on this "
            f"machine ({type(error).__name__}). The bundled tasks and JSONL files need no network."
        )
    return UnsupportedCheckpoint(f"task {task.name} failed in the harness: {type(error).__name__}: {words}")


def _document(name: str, sample: dict[str, Any]) -> Document:
    metrics = [metric for metric in sample.get("metrics", ()) if isinstance(sample.get(metric), (int, float, bool))]
    if not metrics:
        raise UnsupportedCheckpoint(
            f"task {name} gives no score for single documents; it cannot be compared pair by pair."
        )
    metric = "acc" if "acc" in metrics else metrics[0]
    scores = [float(one[0]) for one in sample["filtered_resps"]] if _is_choice(sample) else []
    n = len(scores)
    answer = max(range(n), key=scores.__getitem__) if n else None
    ordered = sorted(scores, reverse=True)
    texts = [str(argument) for argument in next(iter(_arguments(sample)), ())]
    return Document(
        name,
        int(sample["doc_id"]),
        float(sample[metric]),
        answer,
        _gold(sample, n) if n else None,
        n,
        ordered[0] - ordered[1] if n > 1 else None,
        tuple(scores),
        texts[0][-400:] if texts else "",
    )


def _arguments(sample: dict[str, Any]) -> list:
    """(context, continuation) of every request; the harness writes them as a list or as a dictionary."""
    found = sample.get("arguments", ())
    if isinstance(found, dict):
        return [tuple(one.values()) if isinstance(one, dict) else tuple(one) for one in found.values()]
    return [tuple(one) for one in found]


def _is_choice(sample: dict[str, Any]) -> bool:
    found = sample.get("filtered_resps", ())
    return len(found) > 1 and all(isinstance(one, (list, tuple)) and len(one) == 2 for one in found)


def _gold(sample: dict[str, Any], n: int) -> int | None:
    target = sample.get("target")
    if isinstance(target, str) and not target.strip().isdigit():
        endings = [str(argument[-1]).strip() for argument in _arguments(sample)]
        return endings.index(target.strip()) if endings.count(target.strip()) == 1 else None
    try:
        found = int(target)
    except (TypeError, ValueError):
        return None
    return found if 0 <= found < n else None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The harness and its data sets talk to the terminal; what they say of a failure is in the error."""
    before = os.environ.get("HF_DATASETS_DISABLE_PROGRESS_BARS")
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if before is None:
            os.environ.pop("HF_DATASETS_DISABLE_PROGRESS_BARS", None)
        else:
            os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = before
