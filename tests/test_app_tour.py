"""The guided path: its five stops are walked, left and come back to, and it stands in the address."""

import pytest
from dashboard_page import SAMPLE, page, proved, texts

from wisca_app import state, tour


@pytest.fixture(autouse=True)
def at_home(own_home, proved_before):
    """Nothing kept from other tests but the proof of the sample."""
    proved(SAMPLE)


def click(at, key: str):
    """Press, and go where it led: AppTest does not follow to another page by itself."""
    at.button(key=key).click().run()
    number = at.session_state["tour"]
    if key == "tour leave":
        return at
    stop = tour.STOPS[(number or 1) - 1]
    at.switch_page(f"views/{stop.page}.py").run()
    assert not at.exception
    return at


def test_the_five_stops_are_walked_there_and_back_and_left():
    at = page()
    assert "Guided path, stop" not in texts(at)
    at = click(at, "tour start")
    assert dict(at.query_params) == {"tour": "1"} and "stop 1 of 5" in texts(at)
    assert "Apart from size" in texts(at)
    click(at, "tour next")
    assert at.session_state["tour"] == 2 and at.session_state["shown_view"] == "stored"
    assert "Layer 1, KV group 1" in texts(at) and "All 16 KV groups lean to the output" in texts(at)
    at.button(key="tour next").click().run()
    at.switch_page("views/rescale.py").run()
    assert at.session_state["tour"] == 3 and "stop 3 of 5" in texts(at)
    assert "16 of 16 pairs would change, by powers of two; every output stays bit-identical." in texts(at)
    at.button(key="tour next").click().run()
    at.switch_page("views/compare.py").run()
    assert "stop 4 of 5" in texts(at) and at.session_state["comparison"] == tour.COMPARISON
    assert "No useful gain: loss" in texts(at)
    at.button(key="tour back").click().run()
    at.switch_page("views/rescale.py").run()
    assert "stop 3 of 5" in texts(at)
    at.switch_page("views/method.py").run()  # somewhere else: the path waits
    assert "The path waits at **balanced, and proved**" in texts(at)
    at.button(key="tour return").click().run()
    at.switch_page("views/rescale.py").run()
    assert "stop 3 of 5" in texts(at)
    at.button(key="tour leave").click().run()
    assert at.session_state["tour"] is None and "stop 3 of 5" not in texts(at) and "tour" not in at.query_params


def test_an_address_leads_to_its_stop_and_a_wrong_one_to_none():
    at = page("open", tour="5")
    assert "stop 5 of 5" in texts(at) and "Name a folder or hub:owner/name" in texts(at)
    assert at.session_state["tour"] == 5
    assert "Guided path, stop" not in texts(page(tour="6"))
    # what else the address says is kept
    at = page("rescale", tour="3", strength="0.5")
    assert at.session_state["strength"] == 0.5 and at.session_state["exact"] is True


def test_the_model_that_was_open_before_is_open_again_after(tiny_llama, tmp_path):
    model = str(tiny_llama(tmp_path / "mine", n_layers=2))
    at = page("open", model=model)
    at = click(at, "tour start")
    assert at.session_state["model"] == state.default_model() and "gqa-docs/checkpoint-3600" in texts(at)
    at.button(key="tour leave").click().run()
    assert at.session_state["model"] == model and "2 layers" in texts(at)


def opens_checkpoint_0_at_the_last_stop(at):
    at.button(key="sample 0").click().run()
    at.switch_page("views/inspect.py").run()
    return at


def test_a_model_opened_at_the_last_stop_ends_the_path_and_stays():
    first, other = map(str, state.sample_checkpoints()[:2])
    at = opens_checkpoint_0_at_the_last_stop(page("open", tour="5"))
    assert at.session_state["model"] == first and at.session_state["tour"] is None
    assert "The path waits" not in texts(at) and "tour" not in at.query_params
    # nor does what was open before the path come back, at its end or at the end of the next
    at = click(page(model=other), "tour start")
    for _ in range(4):
        click(at, "tour next")
    opens_checkpoint_0_at_the_last_stop(at)
    assert at.session_state["model"] == first and at.session_state["tour"] is None
    click(at, "tour start")
    at.button(key="tour leave").click().run()
    assert at.session_state["model"] == first


def test_done_is_the_main_button_of_the_last_stop_and_leads_to_inspect(tiny_llama, tmp_path):
    model = str(tiny_llama(tmp_path / "mine", n_layers=2))
    at = click(page("open", model=model), "tour start")
    for _ in range(4):
        click(at, "tour next")
    assert [one.key for one in at.button if str(one.key).startswith("tour ")] == ["tour done", "tour back"]
    at.button(key="tour done").click().run()
    at.switch_page("views/inspect.py").run()
    assert at.session_state["tour"] is None and at.session_state["model"] == model
    assert "2 layers" in texts(at) and dict(at.query_params) == {"model": model}


def test_the_proof_is_named_with_a_link_to_it():
    at = page("rescale", tour="3")
    assert "[Proof](#proof)" in texts(at)
    assert [one.anchor for one in at.subheader if one.value == "Proof"] == ["proof"]


def test_the_step_between_two_stops_is_the_one_that_was_left(monkeypatch):
    at = page("compare", tour="4")
    at.button(key="tour next").click().run()  # the step that lies between them is on the page of stop 4
    assert dict(at.query_params) == {"tour": "5"}
    at.switch_page("views/open.py").run()
    monkeypatch.setattr(state, "is_history", lambda: True)
    at.switch_page("views/compare.py").run()
    assert "stop 4 of 5" in texts(at)
    assert dict(at.query_params) == {"tour": "4", "comparison": tour.COMPARISON}


def test_who_comes_back_to_the_path_finds_the_cell_they_clicked():
    at = click(click(page(), "tour start"), "tour next")
    at.selectbox(key="layer").select(5).run()
    at.selectbox(key="group").select(0).run()
    at.switch_page("views/method.py").run()
    click(at, "tour return")
    assert (at.session_state["layer"], at.session_state["group"]) == (5, 0) and "Layer 5, KV group 0" in texts(at)
    click(at, "tour back")  # another stop begins where the verdict points
    assert "Layer 1, KV group 1" in texts(at)
