"""The page Evaluate: asking, the job behind the button, and what it says of the results."""

from pathlib import Path

import pytest
from dashboard_page import charts, page, texts
from small_comparison import TEXT, small_spec
from test_evaluation import SAMPLE

from wisca_app.figures import evaluation
from wisca_core import jobs
from wisca_core.comparison import folder

pytestmark = pytest.mark.usefixtures("own_home")
MODEL, OTHER = SAMPLE / "checkpoint-3600", SAMPLE / "checkpoint-600"


def test_before_an_evaluation_the_page_asks(own_home, jobs_here):
    at = page("evaluate", model=MODEL)
    assert "How well does this model predict?" in texts(at)
    at.multiselect("tasks").set_value([])
    at.number_input("limit").set_value(-1)
    at.button("evaluate").click().run()
    assert "limit: -1 was given; it is a whole number" in texts(at) and not jobs.every()
    at.number_input("limit").set_value(2)
    at.checkbox("inside").set_value(False)
    at.button("evaluate").click().run()
    (job,) = jobs.every()
    assert job.kind == "evaluate" and job.arguments["limit"] == 2 and job.arguments["tasks"] == []
    assert jobs.wait(job.id, 300).state == "done"
    at = page("evaluate", model=MODEL)
    assert "bits a byte, perplexity" in texts(at) and "2 windows" in texts(at)
    assert (job.folder / "metrics.jsonl").read_text().count("window") == 2 * 2


def test_two_models_with_tasks_and_heads(own_home, jobs_here):
    arguments = {"model": str(MODEL), "other": str(OTHER), "text": "", "tasks": ["docs-order", "boolqq"], "drafts": []}
    job = jobs.start("evaluate", arguments | {"inside": True, "limit": 4}, "Evaluate")
    assert jobs.wait(job.id, 300).state == "done"
    at = page("evaluate", model=MODEL)
    said = texts(at)
    assert "gqa-docs/checkpoint-600 predicts this text worse than gqa-docs/checkpoint-3600." in said
    assert "near it: boolq" in said and "The largest logit is" in said
    assert len(charts(at)) == 3
    assert any("McNemar p" in frame.value for frame in at.dataframe)


def test_a_comparison_whose_runs_kept_their_weights_can_be_chosen_in_place_of_the_model(own_home, monkeypatch):
    asked = []
    monkeypatch.setattr(jobs, "start", lambda kind, arguments, *_, **__: asked.append((kind, arguments)))
    place = small_comparison_with_weights(own_home)
    at = page("evaluate", model=MODEL)
    assert "All arms of kept" in at.selectbox("evaluated").options
    at.selectbox("evaluated").set_value("kept").run()
    assert not at.exception and "kept" in texts(at)
    at.text_input("draft").set_value("one, two")
    at.button("evaluate").click().run()
    (kind, arguments), *_ = asked
    assert kind == "evaluate" and arguments["model"] == str(place)
    assert [Path(draft).name for draft in arguments["drafts"]] == ["one", "two"]


def small_comparison_with_weights(home: Path) -> Path:
    place = home / "comparisons" / "kept"
    (home / "text.txt").parent.mkdir(parents=True, exist_ok=True)
    (home / "text.txt").write_bytes(TEXT)
    folder.create(place, small_spec(home / "text.txt", save_weights=True))
    for cell in folder.read(place).cells:
        (cell.folder / "model").mkdir(parents=True)
        (cell.folder / "model" / "config.json").write_text("{}")
    return place


def test_a_failed_evaluation_says_why(own_home, jobs_here, tmp_path):
    (tmp_path / "empty.txt").touch()
    job = jobs.start("evaluate", {"model": str(MODEL), "text": str(tmp_path / "empty.txt")}, "Evaluate")
    assert jobs.wait(job.id, 300).state == "failed"
    said = texts(page("evaluate", model=MODEL))
    assert "The evaluation did not finish" in said and "is empty. Give a text file" in said


def test_the_title_answers_what_was_asked():
    same = {"verdict": "identical", "is_export": True, "words": "words"}
    whole = {"perplexity": [], "same": same, "windows": None, "paired": [], "seeds": [], "tasks": []}
    assert evaluation.headline(whole) == (
        "The two models are the same to the last bit, in every number compared.",
        "words",
    )
    windows = {"difference_nats": -0.0004, "low": -0.01, "high": 0.009, "n": 30, "perplexity_ratio": 0.9996}
    rows = [{"model": name} for name in ("one", "two")]
    title, sentence = evaluation.headline({**whole, "same": None, "windows": windows, "perplexity": rows})
    assert title == "No detectable difference on this text." and "−0.010 to +0.009" in sentence
