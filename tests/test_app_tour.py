"""The guided path: its five stops are walked, left and come back to, and it stands in the address."""

import pytest
from dashboard_page import page, texts

from wisca_app import state, tour


@pytest.fixture(autouse=True)
def at_home(own_home):
    """Nothing kept from other tests."""


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
