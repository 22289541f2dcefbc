"""The examples in docstrings, run as they stand, in a folder where sample_runs/ lies."""

import doctest
import importlib
import pkgutil

import pytest
from test_structure import ROOT

import wisca_core


def _with_examples() -> list[str]:
    found = [wisca_core.__name__]
    for module in pkgutil.walk_packages(wisca_core.__path__, "wisca_core."):
        path = ROOT.joinpath(*module.name.split("."))
        source = path / "__init__.py" if module.ispkg else path.with_suffix(".py")
        if ">>> " in source.read_text(encoding="utf-8"):
            found.append(module.name)
    return found


@pytest.mark.parametrize("name", _with_examples())
def test_the_examples_print_what_they_say(name, tmp_path, monkeypatch):
    (tmp_path / "sample_runs").symlink_to(ROOT / "sample_runs")
    monkeypatch.chdir(tmp_path)
    ran = doctest.testmod(importlib.import_module(name))
    assert ran.failed == 0
