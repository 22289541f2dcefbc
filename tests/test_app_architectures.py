"""The Architectures page: before and after a census, one looked up, filters, and the job behind the button."""

from dataclasses import replace
from pathlib import Path

import pytest
from dashboard_page import charts, metrics, page, texts
from streamlit.testing.v1 import AppTest

from wisca_app.architectures import many, running
from wisca_core import jobs
from wisca_core.architecture.find import find_sites
from wisca_core.census import causal_types, kept, released
from wisca_core.census.entry import PAIRS, PARTLY, PROVED, REFUSED, Entry, Pair, Place
from wisca_core.census.judge import unreached_entry
from wisca_core.checkpoint import open_checkpoint
from wisca_core.equivalence.proving import prove

pytestmark = pytest.mark.usefixtures("own_home")
ALL = ("tensor", "group", "channel")
CLIP = "a clip [x](http://evil.example) stands behind q"


@pytest.fixture(autouse=True)
def nothing_came_with_it(monkeypatch):
    monkeypatch.setattr("wisca_core.census.released._all", dict)


@pytest.fixture
def some():
    """One proved, one in part, one refused, one not reached; the other architectures are open."""
    good = Place("decoder.self", 2, ("channel",), ALL)
    bad = Place("decoder.self", 0, reason=CLIP)
    figures = {
        "granularities": ALL,
        "n_cases": 11,
        "n_trials": 15,
        "max_rel": 2e-15,
        "liveness": 0.1,
        "seconds": 2.5,
        "when": 1.0,
    }
    pairs = {
        "llama": tuple(Pair(pair, PROVED, (good,)) for pair in PAIRS),
        "gpt2": (Pair("qk", PARTLY, (good, bad)), Pair("vo", PROVED, (good,)), Pair("mlp", REFUSED, (bad,))),
        "dbrx": tuple(Pair(pair, REFUSED, (bad,)) for pair in PAIRS),
    }
    for name, found in pairs.items():
        kept.keep(Entry(name, "AClass", "", found, **figures))
    kept.keep(unreached_entry("bloom", "it took longer than 120 s", ALL, 120.0))


def shown(at: AppTest) -> list[str]:
    return list(next(d.value for d in at.dataframe if "Architecture" in d.value and "QK" in d.value)["Architecture"])


def test_before_a_census_every_rule_is_there_and_nothing_is_claimed():
    at = page("architectures")
    assert "llama has a rule; the census has not tried it here yet." in texts(at)  # the bundled sample is a llama
    assert shown(at) == list(causal_types())
    n_open = int(metrics(at)["Not proved yet"])
    assert (
        n_open > 150
        and int(metrics(at)["Refused by it"]) == len(causal_types()) - n_open
        and "QK exact" not in metrics(at)
    )
    assert [b.label for b in at.button if "rove" in b.label and b.label != "Remove these"] == ["Prove them here"]
    assert "the model has no attention" in "\n".join(map(str, at.dataframe[-1].value["Why"]))


def test_what_came_with_this_version_is_there_at_once_and_called_that(monkeypatch, some, tmp_path):
    """Proved elsewhere: in the counts and the table, and the button still offers to prove it here."""
    file = released.write((kept.entry("llama"),), tmp_path / "released.json")
    monkeypatch.setenv("WISCA_HOME", str(tmp_path / "other home"))
    monkeypatch.setattr("wisca_core.census.released._all", lambda: released.read(file))
    at = page("architectures")
    said = texts(at)
    assert "llama is covered: QK, VO and MLP are exact" in said
    assert "as it was tried when this version of wisca was made" in said and "not on this machine" in said
    assert metrics(at)["QK exact"].startswith("1 of ")
    assert at.button(key="prove_all").label == f"Prove the {int(metrics(at)['Not proved yet']) + 1} that are missing"


def test_a_proof_of_the_open_model_is_not_contradicted_by_a_census_that_was_not_run():
    at = page("architectures")
    assert "on the open model" not in at.title[0].value
    checkpoint = open_checkpoint(at.session_state["model"])
    assert prove(checkpoint, find_sites(checkpoint)).passed
    at = page("architectures")
    assert at.title[0].value.replace("\\", "") == "llama has a rule, and it passed its proof on the open model."
    assert "The census, which tries default configs, has not tried it here yet." in texts(
        at
    ) and "not proved here yet" not in texts(at)
    assert (
        "on the open model" not in page("architectures", architecture="gpt2").title[0].value
    )  # of another architecture nothing is said by it


def test_after_it_the_title_answers_for_the_open_model_and_the_counts_are_those_of_the_results(some):
    at = page("architectures")
    assert at.title[0].value.replace("\\", "") == "llama is covered: QK, VO and MLP are exact, down to single channels."
    found = metrics(at)
    proved = len(causal_types()) - int(found["Not proved yet"])
    assert (found["QK exact"], found["VO exact"], found["MLP exact"]) == (
        f"1 of {proved}",
        f"2 of {proved}",
        f"1 of {proved}",
    )
    assert (found["Attention in part"], found["Not reached"]) == ("1", "1")
    assert any(b.label.startswith("Prove the ") for b in at.button) and any(
        b.label == "Prove all again" for b in at.button
    )


def test_one_is_looked_up_by_the_address_and_by_hand(some):
    at = page("architectures", architecture="dbrx")
    assert "dbrx is refused: nothing of it can be rescaled exactly." in texts(at)
    assert "[families.dbrx]" in texts(at)
    at = at.selectbox(key="architecture").set_value("bloom").run()
    assert "bloom was not reached" in texts(at) and "it took longer than 120 s" in texts(at)
    assert at.query_params["architecture"] in ("bloom", ["bloom"])
    at = at.selectbox(key="architecture").set_value("gpt2").run()
    assert "gpt2 is covered: VO is exact, QK in part, down to single channels." in texts(at)
    assert CLIP in list(at.dataframe[0].value["Why not"])  # in a cell, letter by letter
    assert "llama is covered" in texts(page("architectures", architecture="no-such-type"))


def test_another_open_model_brings_its_own_architecture(some, small_model):
    at = page("architectures")
    at = at.selectbox(key="architecture").set_value("dbrx").run()
    at.switch_page("views/open.py").run()
    at.text_input(key="written").set_value(str(small_model("gpt2")))
    next(b for b in at.button if b.label == "Open").click().run()
    at.switch_page("views/architectures.py").run()
    assert "gpt2 is covered" in at.title[0].value.replace("\\", "") and "architecture" not in at.query_params


def test_search_and_verdict_filter_the_table_and_say_so_when_nothing_is_left(some):
    at = page("architectures", search="CLIP evil")
    assert shown(at) == ["dbrx", "gpt2"]
    assert shown(page("architectures", search="clip evil", verdict=REFUSED)) == ["dbrx"]
    at = page("architectures", search="clip evil", verdict="not reached")
    assert "No architecture fits" in texts(at)
    more = shown(page("architectures", kinds="all"))
    assert set(causal_types()) < set(more) and "distilbert" in more


def a_job(state: str, **fields) -> jobs.Job:
    empty = dict.fromkeys(("started", "updated", "finished", "error", "result"))
    job = jobs.Job(
        id="x",
        kind="census",
        title="t",
        state=state,
        step="proving llama",
        done=3.0,
        total=189.0,
        created=1.0,
        folder=Path("/nowhere"),
        arguments={},
        **empty,
    )
    return replace(job, **fields)


def test_the_button_starts_the_job_and_a_running_one_is_followed_instead(some, monkeypatch):
    started, followed = [], []
    monkeypatch.setattr(running.jobs, "start", lambda *given, **named: started.append((*given, named)))
    at = page("architectures", kinds="all")
    next(b for b in at.button if b.label == "Prove all again").click().run()
    assert started == [("census", {"all": True, "again": True}, "Prove every architecture", {"exclusive": "census"})]
    monkeypatch.setattr(running, "latest", lambda kind: a_job("running"))
    monkeypatch.setattr(running, "follow", lambda job: followed.append(job.id))
    at = page("architectures")
    assert followed and not any("Prove " in b.label for b in at.button)


def test_a_census_that_failed_says_why_and_can_be_started_again(monkeypatch):
    error = {"class": "WiscaError", "message": "the census cannot start: no torch."}
    monkeypatch.setattr(running, "latest", lambda kind: a_job("failed", error=error))
    at = page("architectures")
    assert "The census did not finish" in texts(at) and "no torch" in texts(at)
    assert any(b.label == "Prove them here" for b in at.button)


@pytest.mark.parametrize(("points", "chosen"), [([{"customdata": "gpt2"}], "gpt2"), ([], None), ([{"x": 1}], None)])
def test_a_click_on_a_tile_looks_it_up_and_one_beside_it_changes_nothing(monkeypatch, points, chosen):
    session = {"census map llama": {"selection": {"points": points}}}
    monkeypatch.setattr(many.state, "get", session.get)
    monkeypatch.setattr(many.state, "put", session.__setitem__)
    many._select_from_chart("census map llama")
    assert session.get("architecture") == chosen


def test_the_picture_has_a_tile_for_every_architecture_in_the_block_of_its_verdict(some):
    at = page("architectures")
    (fig,) = charts(at)
    tiles = {trace["name"]: trace for trace in fig["data"]}
    assert tiles["proved"]["customdata"] == ["llama"] and tiles["partly"]["customdata"] == ["gpt2"]
    assert "dbrx" in tiles["refused"]["customdata"] and tiles["not reached"]["customdata"] == ["bloom"]
    n = sum(len(trace["customdata"]) for name, trace in tiles.items() if name != "chosen")
    assert n == len(causal_types())
    assert tiles["proved"]["marker"]["symbol"] == "square" and tiles["refused"]["marker"]["symbol"] == "square-open"
    assert (tiles["chosen"]["x"], tiles["chosen"]["y"]) == (tiles["proved"]["x"], tiles["proved"]["y"])  # the sample's
    said = texts(at)
    assert f"Attention is exact on 1 of {n}, in part on 1" in said and "<a" not in tiles["refused"]["text"][0]
    assert said.index("Attention is exact on") < said.index("Every architecture")
