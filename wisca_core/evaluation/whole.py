"""One evaluation from what was asked to its tables: ``evaluate``."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from wisca_core.architecture.site import Refusal
from wisca_core.errors import BadOption, Cancelled, ConfigMismatch, WiscaError
from wisca_core.evaluation import drafts as drafting
from wisca_core.evaluation import inside as insides
from wisca_core.evaluation import landing, seeds, statistics
from wisca_core.evaluation.perplexity import TokenScores, score, summary
from wisca_core.evaluation.same import same_model
from wisca_core.evaluation.subjects import LONGEST, Subject, open_subject, same_tokens
from wisca_core.evaluation.tasks import Document, Task, find_task, run_task
from wisca_core.evaluation.text import Text, Tokens, Windows
from wisca_core.progress import Progress, silent
from wisca_core.storage import plain, write_json
from wisca_core.trajectories import find_checkpoints
from wisca_core.untrusted import named_path

TABLES = ("models", "perplexity", "tasks", "paired", "means", "documents", "heads", "layers", "drafts", "seeds")
INSIDE_WINDOWS = 8
N_PROMPTS = 20


@dataclass(frozen=True, eq=False)
class Evaluation:
    """``result``: everything as plain values, what ``--json`` prints; ``table`` gives its parts. ``refused``: what
    could not be evaluated and why, the rest went on.
    """

    result: dict[str, Any]
    folder: Path | None = None

    @property
    def sentences(self) -> tuple[str, ...]:
        return tuple(self.result["sentences"])

    @property
    def refused(self) -> tuple[Refusal, ...]:
        return tuple(Refusal(one["what"], one["reason"]) for one in self.result["refused"])

    def table(self, name: str) -> pd.DataFrame:
        """One of TABLES. Raises BadOption."""
        if name not in TABLES:
            raise BadOption(f"there is no table {str(name)[:40]!r}; there are {', '.join(TABLES)}.")
        return pd.DataFrame(self.result[name])


@dataclass(frozen=True)
class EvaluationOptions:
    """How it is done; 0 and "" leave a choice open. ``limit``: windows of text, and documents a task, at most."""

    text: str = ""
    tasks: tuple[str, ...] = ()
    window: int = 0
    stride: int = 0
    limit: int = 0
    batch_size: int = 0
    inside: bool = False
    device: str = "auto"
    dtype: str = ""

    def __post_init__(self) -> None:
        for name in ("window", "stride", "limit", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise BadOption(f"{name}: {value!r:.40} was given; it is a whole number, 0 for the usual one.")
        if self.window and self.stride > self.window:
            raise BadOption(f"stride: {self.stride} was given; it is at most the window, {self.window}.")


def evaluate(
    model: Any,
    other: Any = None,
    *,
    text: str | os.PathLike = "",
    tasks: Sequence[str] = (),
    drafts: Sequence[Any] = (),
    inside: bool = False,
    window: int = 0,
    stride: int = 0,
    limit: int = 0,
    batch_size: int = 0,
    device: str = "auto",
    dtype: str = "",
    out: str | os.PathLike | None = None,
    progress: Progress = silent,
) -> Evaluation:
    """Perplexity of ``model`` (and ``other``) on a text, tasks by name, drafts, and a look inside.

    ``model``: a folder, an opened model, the folder of a comparison (its arms, by seed), or a folder of checkpoints
    (each of them). ``text``: a file in UTF-8, "" for bundled text that nothing was trained on. ``window``, ``stride``:
    tokens, 0 for the model's context (at most 1024), packed. ``out``: a new folder that keeps every row. Whatever
    cannot be done is refused by name under ``refused`` and the rest goes on; an error is raised where nothing can be:
    WiscaError.

    >>> import wisca_core as wisca
    >>> found = wisca.evaluate("sample_runs/gqa-docs/checkpoint-3600", limit=4)
    >>> found.table("perplexity").n_windows.tolist()
    [4]
    """
    asked = EvaluationOptions(str(text), tuple(tasks), window, stride, limit, batch_size, inside, device, dtype)
    place = landing.new_folder(
        out, {"model": str(model), "other": str(other or ""), **asked.__dict__, "drafts": [*map(str, drafts)]}
    )
    result = evaluation_tables(model, other, asked, tuple(drafts), place, progress)
    if place is not None:
        write_json(place / "result.json", landing.FORMAT, landing.VERSION, result)
    return Evaluation(result, place)


def evaluation_tables(
    model: Any, other: Any, asked: EvaluationOptions, drafts: Sequence[Any], place: Path | None, progress: Progress
) -> dict[str, Any]:
    """The tables as plain values; rows go to ``place`` as they come. Raises what ``evaluate`` raises."""
    rows = landing.MetricsFile(place)
    try:
        work = _Work(asked, rows, progress)
        Text(asked.text).size()
        if isinstance(model, (str, os.PathLike)) and seeds.is_comparison(model):
            seeds.check_alone(model, other)
            work.comparison(model)
        else:
            work.models(model, other, drafts)
        return plain(work.result())
    finally:
        rows.close()


class _Work:
    """One evaluation while it goes on."""

    def __init__(self, asked: EvaluationOptions, rows: landing.MetricsFile, progress: Progress) -> None:
        self.asked, self.rows, self.progress = asked, rows, progress
        self.tables: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
        self.text: dict[str, Any] | None = None
        self.windows: dict[str, Any] | None = None
        self.same: dict[str, Any] | None = None
        self.inside_change: dict[str, float] | None = None
        self.refused: list[dict[str, str]] = []
        self.sentences: list[str] = []
        self.report: str | None = None
        found = [self._try(f"task {name}", lambda name=name: find_task(name)) for name in asked.tasks]
        self.asked_tasks = [task for task in found if task is not None]

    def result(self) -> dict[str, Any]:
        return {
            **self.tables,
            "asked": self.asked.__dict__,
            "text": self.text,
            "windows": self.windows,
            "same": self.same,
            "inside_change": self.inside_change,
            "refused": self.refused,
            "sentences": self.sentences,
            "report": self.report,
        }

    # --- one, two or many models

    def models(self, model: Any, other: Any, drafts: Sequence[Any]) -> None:
        opened = [self._open(one) for one in (*_expand(model), *([other] if other is not None else []))]
        if len({s.name for s in opened}) < len(opened):
            opened = [replace(s, name=f"{s.name} ({i + 1})") for i, s in enumerate(opened)]
        same = all(same_tokens(opened[0], one) for one in opened[1:])
        scored = self._perplexities(opened, same)
        documents = [self._tasks(subject) for subject in opened]
        if len(opened) == 2:
            self._beside(opened, same, scored, documents)
        if self.asked.inside:
            self._inside(opened)
        for draft in drafts:
            self._try(f"draft {draft}", lambda draft=draft: self._draft(opened[0], draft))
        if not any(self.tables[name] for name in ("perplexity", "tasks", "heads", "drafts")) and self.refused:
            raise ConfigMismatch(f"nothing could be evaluated. {self.refused[0]['what']}: {self.refused[0]['reason']}")
        if len(opened) == 2 and self.same and self.same["is_export"]:
            found = landing.land(opened[1], plain(self.result()))
            self.report = str(found) if found else None

    def _open(self, model: Any) -> Subject:
        self.progress("loading the model", 0, 0)
        subject = open_subject(model, self.asked.device, self.asked.dtype)
        self.tables["models"].append(subject.facts())
        return subject

    def _windows_of(self, subject: Subject) -> Windows:
        length = self.asked.window or min(subject.context or LONGEST, LONGEST)
        if subject.context and length > subject.context:
            raise BadOption(
                f"window: {length:,} tokens were asked for; {subject.name} has {subject.context:,} positions."
            )
        return Windows(length, self.asked.stride or length)

    def _perplexities(self, opened: list[Subject], same: bool) -> list[TokenScores | None]:
        share = same and len({self._windows_of(subject) for subject in opened}) == 1
        shared = Text(self.asked.text)
        made = Tokens(shared, opened[0])
        out: list[TokenScores | None] = []
        try:
            for subject in opened:
                first = next(filter(None, out), None) if share else None
                text = shared if share else Text(self.asked.text)
                windows = self._windows_of(subject)
                stream = windows.cut(made if share else text.tokens(subject), _text_name(text))
                scored = self._try(
                    f"perplexity of {subject.name}", lambda s=subject, w=stream, f=first: self._scored(s, w, f)
                )
                out.append(scored)
                if scored is not None:
                    self._keep_perplexity(subject, scored, text, windows)
        finally:
            made.close()
        return out

    def _scored(self, subject: Subject, stream: Iterator, like: TokenScores | None) -> TokenScores:
        keep = lambda i, nats, n: self.rows.add(kind="window", model=subject.name, window=i, nats=nats, tokens=n)
        return score(
            subject, stream, self.progress, self.asked.limit, self.asked.batch_size, like, self.asked.limit, keep
        )

    def _keep_perplexity(self, subject: Subject, scored: TokenScores, text: Text, windows: Windows) -> None:
        row = {"model": subject.name, **summary(scored, text.n_tokens, text.n_bytes), "windows": windows.words()}
        self.tables["perplexity"].append({**row, "window": windows.length, "stride": windows.stride})
        self.text = self.text or text.facts()
        self.sentences.append(
            f"{subject.name}: perplexity {row['perplexity']:.4g} (standard error {row['perplexity_error']:.2g}), "
            f"{row['bits_a_byte']:.4f} bits a byte, over {row['n_windows']:,} {windows.words()}."
        )

    def _tasks(self, subject: Subject) -> list[list[Document]]:
        out = []
        for task in self.asked_tasks:
            found = self._try(f"task {task.name} with {subject.name}", lambda task=task: self._task(subject, task))
            out.append(found or [])
        rows = [row for row in self.tables["tasks"] if row["model"] == subject.name]
        if len(rows) > 1:
            self.tables["means"].append({"model": subject.name, **statistics.mean_row(rows)})
        return out

    def _task(self, subject: Subject, task: Task) -> list[Document]:
        documents = []
        for one in run_task(subject, task, self.progress, self.asked.batch_size or 8, self.asked.limit):
            documents.append(one)
            row = {"model": subject.name, "task": one.task, "document": one.number, "score": one.score}
            row |= {"answer": one.answer, "gold": one.gold, "margin": one.margin, "likelihoods": one.likelihoods}
            self.rows.add(kind="document", **row)
            self.tables["documents"].append({**row, "question": one.question})
        for name in dict.fromkeys(one.task for one in documents):
            row = {"model": subject.name, **statistics.task_row([one for one in documents if one.task == name])}
            self.tables["tasks"].append(row)
            self.sentences.append(_task_words(row))
        return documents

    def _beside(
        self, opened: list[Subject], same: bool, scored: list[TokenScores | None], documents: list[list[list[Document]]]
    ) -> None:
        first, second = scored
        if first is not None and second is not None:
            if same and len(first.nats) == len(second.nats):
                self.windows = statistics.windows_row(first, second)
                self.sentences.append(_windows_words(self.windows))
            else:
                self.sentences.append(
                    "The two models cut the text into different tokens: their perplexities do not compare, bits a byte "
                    "do."
                )
        pairs = [(a, b) for a, b in zip(*documents) if a and b]
        for one, two in pairs:
            for task in dict.fromkeys(document.task for document in one):
                row = statistics.paired_row(*([d for d in side if d.task == task] for side in (one, two)))
                self.tables["paired"].append(row)
                self.sentences.append(_paired_words(row))
        if same and (self.windows or pairs):
            self.same = same_model(opened[0], opened[1], self.windows, pairs)
            if self.same["is_export"] or self.same["verdict"] != "different":
                self.sentences.append(self.same["words"])

    def _inside(self, opened: list[Subject]) -> None:
        kept = []
        for subject in opened:
            found = self._try(f"inside {subject.name}", lambda s=subject: self._look(s))
            heads, layers = found or ([], [])
            kept.append(heads)
            for name, rows in (("heads", heads), ("layers", layers)):
                self.tables[name] += [{"model": subject.name, **row} for row in rows]
        if len(kept) == 2 and all(kept) and len(kept[0]) == len(kept[1]):
            self.inside_change = insides.change(*kept)

    def _look(self, subject: Subject) -> tuple[list, list]:
        text = Text(self.asked.text)
        windows = self._windows_of(subject).cut(text.tokens(subject), _text_name(text))
        most = min(self.asked.limit or INSIDE_WINDOWS, INSIDE_WINDOWS)
        return insides.look_inside(subject, windows, self.progress, most)

    def _draft(self, target: Subject, given: Any) -> None:
        draft = open_subject(given, self.asked.device, self.asked.dtype)
        drafting.check_draft(target, draft)
        text = Text(self.asked.text)
        n = min(self.asked.limit or N_PROMPTS, N_PROMPTS)
        prompts = []
        for ids, _ in Windows(drafting.PROMPT, drafting.PROMPT).cut(text.tokens(target), _text_name(text)):
            if len(prompts) == n:
                break
            prompts.append(ids[: drafting.PROMPT])
        row = drafting.draft_rows(target, draft, prompts, self.progress)
        self.tables["drafts"].append(row)
        self.sentences.append(
            f"{draft.name} as a draft for {target.name}: {row['acceptance']:.1%} of its tokens are kept "
            f"({row['acceptance_low']:.1%} to {row['acceptance_high']:.1%} over {row['n_prompts']} prompts), "
            f"{row['accepted_length']:.2f} tokens a run of the target; the text is the target's own after "
            f"{row['n_same_text']} of {len(prompts)} prompts."
        )

    # --- the arms of a comparison

    def comparison(self, path: Any) -> None:
        baseline, cells = seeds.cells(path)
        values = []
        for i, cell in enumerate(cells):
            self.progress(f"evaluating {cell.name}", i, len(cells))
            found = self._try(cell.name, lambda cell=cell: self._cell(cell))
            values += found or []
        if not values:
            raise ConfigMismatch(f"no run of {path} could be evaluated. {self.refused[0]['reason']}")
        self.tables["seeds"] = seeds.seed_rows(baseline, values)
        for row in self.tables["seeds"]:
            if "words" in row:
                self.sentences.append(
                    f"{row['arm']} at {'its own rate' if row['rate'] is None else format(row['rate'], 'g')}, "
                    f"{row['measure']}: {row['difference']:+.4f} "
                    f"({_number(row['low'])} to {_number(row['high'])}, {row['n_pairs']} seeds): {row['words']}."
                )

    def _cell(self, cell: Any) -> list[dict[str, Any]]:
        subject = open_subject(cell.folder / "model", self.asked.device, self.asked.dtype, name=cell.name)
        self.tables["models"].append(subject.facts() | {"arm": cell.arm, "rate": cell.rate, "seed": cell.seed})
        scored = self._perplexities([subject], True)[0]
        self._tasks(subject)
        own = {"arm": cell.arm, "rate": cell.rate, "seed": cell.seed}
        out = []
        if scored is not None:
            out.append({**own, "measure": "bits a byte", "value": self.tables["perplexity"][-1]["bits_a_byte"]})
        for row in self.tables["tasks"]:
            if row["model"] == subject.name:
                out.append({**own, "measure": row["task"], "value": row["score"]})
        return out

    def _try(self, what: str, work: Callable[[], Any]) -> Any:
        """Its result; None where it raises a named error, which is then kept."""
        try:
            return work()
        except Cancelled:
            raise
        except WiscaError as error:
            self.refused.append({"what": what, "reason": str(error)})
            return None


def evaluate_job(arguments: dict, progress: Progress, folder: Path) -> dict:
    """{model, other, text, tasks, drafts, inside, window, stride, limit, batch_size, device} -> the tables; rows in the
    job's own metrics.jsonl.
    """
    given = {key: value for key, value in arguments.items() if key not in ("model", "other", "drafts", "tasks")}
    asked = EvaluationOptions(**given, tasks=tuple(arguments.get("tasks", ())))
    return evaluation_tables(
        arguments["model"], arguments.get("other") or None, asked, arguments.get("drafts", ()), folder, progress
    )


def _expand(model: Any) -> list[Any]:
    """The checkpoints in a folder of them, else the model itself."""
    if not isinstance(model, (str, os.PathLike)) or str(model).startswith("hub:"):
        return [model]
    place = named_path(model)
    if not place.is_dir() or (place / "config.json").exists():
        return [model]
    try:
        return [found.path for found in find_checkpoints(place)] or [model]
    except WiscaError:
        return [model]


def _text_name(text: Text) -> str:
    return f"text {text.path!r}" if text.path else "the bundled text"


def _number(value: float) -> str:
    return f"{value:+.4f}" if math.isfinite(value) else "?"


def _task_words(row: dict[str, Any]) -> str:
    said = (
        f"{row['model']}, {row['task']}: {row['score']:.3f} (standard error {row['standard_error']:.3f}, n = "
        f"{row['n']:,})"
    )
    if row["chance"] != row["chance"]:
        return f"{said}."
    said += f"; chance {row['chance']:.3f}, always the most frequent answer {row['majority']:.3f}."
    if row["between_constants"]:
        said += (
            f" This lies between the two constant answers ({row['rarest']:.3f} and {row['majority']:.3f}): a "
            "model "
            "that never looks at the question scores as much."
        )
    return said


def _windows_words(row: dict[str, Any]) -> str:
    return (
        f"Second minus first: {row['difference_nats']:+.5f} nats a token ({_number(row['low'])} to "
        f"{_number(row['high'])} over "
        f"{row['n']:,} windows), perplexity times {row['perplexity_ratio']:.5f}."
    )


def _paired_words(row: dict[str, Any]) -> str:
    seen = "no difference" if row["low"] <= 0 <= row["high"] else "higher" if row["difference"] > 0 else "lower"
    return (
        f"{row['task']}, second minus first over the same {row['n']:,} documents: {row['difference']:+.3f} "
        f"({row['low']:+.3f} to {row['high']:+.3f}), only the first right {row['only_first']}, only the second "
        f"{row['only_second']}, McNemar p = {row['p_mcnemar']:.2g}: {seen}."
    )
