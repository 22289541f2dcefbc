"""Inspect on a model type that no file has: the offer to look for a rule, and what the page shows once one was
tried.
"""

from pathlib import Path

from dashboard_page import page

from wisca_core import jobs
from wisca_core.checkpoint import open_checkpoint
from wisca_core.equivalence.trial import discover


def test_an_unknown_type_offers_a_search_and_shows_its_end(small_model, edited, own_home, monkeypatch):
    folder = edited(small_model("llama"), config=lambda config: config.update(model_type="foo3"))
    started = []
    monkeypatch.setattr(jobs, "start", lambda kind, arguments, *_, **__: started.append((kind, arguments)))
    at = page(model=folder)
    assert not at.exception and any("no site rule" in text.value for text in at.text)
    at.button(key="discover").click().run()
    assert [(kind, Path(arguments["model"])) for kind, arguments in started] == [("discover", folder)]
    found = discover(open_checkpoint(folder))
    assert not found.fields  # the installed transformers has no class of that name
    at.run()
    assert not at.exception and not [b for b in at.button if b.key == "discover"]
    assert any("No rule could be tried" in text.value for text in at.text)
