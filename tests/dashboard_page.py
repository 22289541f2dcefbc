"""The dashboard without a browser: a page opened at an address, and what stands on it."""

import base64
import json
from functools import cache
from pathlib import Path

import numpy as np
from streamlit import config
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Block

from wisca_core.architecture.find import find_sites
from wisca_core.architecture.site import DEFAULT_PAIRS
from wisca_core.checkpoint import open_checkpoint
from wisca_core.equivalence.proving import prove

# AppTest reads the metadata of every installed package for each new page, which takes longer than the page; once will
# do
manifest_scanner.scan_component_manifests = cache(manifest_scanner.scan_component_manifests)
# as in app/.streamlit/config.toml, which is read where the dashboard is started
config.set_option("browser.gatherUsageStats", False)
config.set_option("runner.magicEnabled", False)
DASHBOARD = Path(__file__).parents[1] / "app" / "dashboard.py"
SAMPLE = Path(__file__).parents[1] / "sample_runs" / "gqa-docs" / "checkpoint-3600"  # which the dashboard opens first


def page(view: str = "", **address: str | Path) -> AppTest:
    """The dashboard opened at an address: a page, and what stands behind it ("model" is one of its names)."""
    at = AppTest.from_file(str(DASHBOARD), default_timeout=90)
    for name, value in address.items():
        at.query_params[name] = str(value) if isinstance(value, Path) else value
    if view:
        at.switch_page(f"views/{view}.py")
    at.run()
    assert not at.exception
    return at


def proved(folder: Path, pairs: tuple[str, ...] = DEFAULT_PAIRS) -> Path:
    """``folder``, with a proof that is kept: where Rescale finds none it starts a process, which takes ten times as
    long.
    """
    checkpoint = open_checkpoint(folder)
    assert prove(checkpoint, find_sites(checkpoint, pairs=pairs)).passed
    return folder


def texts(part: AppTest | Block) -> str:
    """All words of a page or of a part of it (``at.main``), without the backslashes and word joiners that keep Markdown
    from reading them.
    """
    assert not part.get("exception")
    kinds = ("text", "markdown", "title", "header", "subheader", "code")
    return (
        "\n".join(element.value for kind in kinds for element in part.get(kind)).replace("\\", "").replace("\u2060", "")
    )


def metrics(at: AppTest) -> dict[str, str]:
    """Numbers by their label, without its colour."""
    return {metric.label.removeprefix(":gray[").removesuffix("]"): metric.value for metric in at.metric}


def charts(at: AppTest) -> list[dict]:
    """The plotly figures of the page."""
    return [decoded(json.loads(chart.proto.spec)) for chart in at.main.get("plotly_chart")]


def decoded(value: object) -> object:
    """A figure's dictionaries with plotly's typed arrays as lists."""
    if isinstance(value, dict) and "bdata" in value:
        flat = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
        return flat.reshape([int(n) for n in value["shape"].split(",")] if "shape" in value else -1).tolist()
    if isinstance(value, dict):
        return {name: decoded(one) for name, one in value.items()}
    return [decoded(one) for one in value] if isinstance(value, list | tuple) else value
