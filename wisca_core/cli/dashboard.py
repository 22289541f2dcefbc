"""``wisca dashboard``: the app that is installed beside the library, in the browser."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import webbrowser
from pathlib import Path
from urllib.parse import urlencode

from wisca_core.cli.terminal import say
from wisca_core.errors import BadOption, UnreadableInput
from wisca_core.untrusted import named_path

ADDRESS = "127.0.0.1"  # weights are nobody else's business
INSTALLED = "wisca_app"  # named, never imported: the library stands without it


def run(model: str | None, port: int) -> int:
    """Until Ctrl-C. Raises BadOption for a port that is none, UnreadableInput where the app is not installed."""
    if not 0 < port < 1 << 16:
        raise BadOption(f"--port: {port} was given; a number from 1 to 65535 is needed.")
    if model and not model.startswith("hub:"):
        model = str(named_path(model).absolute())
        if not os.path.exists(model):
            raise UnreadableInput(
                f"{model} does not exist. Give a model folder, a .safetensors file or hub:owner/name."
            )
    options = ["--server.address", ADDRESS, "--server.port", str(port), "--server.headless", "true"]
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", str(main_file()), *options], stdin=subprocess.DEVNULL
    )
    try:
        url = f"http://{ADDRESS}:{port}/{'?' + urlencode({'model': model}) if model else ''}"
        if _answers(server, port):
            say(f"WISCA: {url}")
            if sys.stderr.isatty():
                webbrowser.open(url)
        return server.wait()
    except KeyboardInterrupt:
        return 0
    finally:
        server.terminate()
        server.wait()


def _answers(server: subprocess.Popen, port: int) -> bool:
    """Once the server does; False where it ended instead (the port is taken)."""
    while server.poll() is None:
        try:
            socket.create_connection((ADDRESS, port), timeout=1).close()
            return True
        except OSError:
            time.sleep(0.1)
    return False


def main_file() -> Path:
    """The entry of the app. Raises UnreadableInput where it is not installed."""
    lacking = [name for name in (INSTALLED, "streamlit", "plotly") if importlib.util.find_spec(name) is None]
    if lacking:
        raise UnreadableInput(
            f"the dashboard needs {', '.join(lacking)}, which is not installed. Install wisca with pip."
        )
    place = Path(importlib.util.find_spec(INSTALLED).origin or "").parent
    return place / "main.py"
