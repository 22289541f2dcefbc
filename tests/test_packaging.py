"""The wheel: what it installs, and that the installed dashboard starts from it alone."""

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path

import pytest
from test_structure import ROOT

from wisca_core.cli import dashboard, main


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the files that are tracked, by the very backend of pyproject.toml."""
    place = tmp_path_factory.mktemp("source")
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode()
    for name in filter(None, tracked.split("\0")):
        if (
            name.split("/")[0] in ("app", "wisca_core", "pyproject.toml", "README.md", "LICENSE")
            and (ROOT / name).exists()
        ):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place / name)
    code = "import setuptools.build_meta as backend; print(backend.build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", code], cwd=place, check=True, capture_output=True, timeout=300)
    (built,) = (place / "dist").glob("*.whl")
    return built


def test_the_wheel_installs_the_library_and_the_app_under_their_own_names(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tracked = set(subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"wisca_core", "wisca_app"}
    for folder, installed in (("app", "wisca_app"), ("wisca_core", "wisca_core")):
        for path in (ROOT / folder).rglob("*"):
            name = f"{installed}/{path.relative_to(ROOT / folder).as_posix()}"
            if path.suffix in (".py", ".toml", ".svg", ".json") and path.relative_to(ROOT).as_posix() in tracked:
                assert name in names, name


def test_the_installed_dashboard_starts(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    port = 18437 + os.getpid() % 1000
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n"
        "from wisca_core.cli import dashboard\n"
        f"assert str(dashboard.main_file()) == {str(tmp_path / 'site' / 'wisca_app' / 'main.py')!r}, "
        "dashboard.main_file()\n"
        "from wisca_core.cli import main\n"
        f"sys.exit(main(['dashboard', '--port', '{port}']))"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    try:
        said = next(line for line in server.stdout if line.startswith("WISCA"))  # Streamlit has lines of its own
        assert said == f"WISCA: http://127.0.0.1:{port}/\n"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=60) as answer:
            assert answer.status == 200 and b"<title>" in answer.read()
    finally:
        server.terminate()
        server.wait()
    with socket.socket() as left, pytest.raises(ConnectionRefusedError):  # the server goes with the command
        left.connect(("127.0.0.1", port))


def test_a_port_or_a_model_that_is_none_is_refused(tmp_path, capsys):
    assert main(["dashboard", str(tmp_path / "nowhere")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["dashboard", "--port", "70000"]) == 2
    assert "--port: 70000" in capsys.readouterr().err


def test_the_app_is_named_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr(dashboard.importlib.util, "find_spec", lambda name: None)
    assert main(["dashboard"]) == 2
