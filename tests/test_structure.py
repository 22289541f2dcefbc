"""The shape of the house, read from the imports: data flows one way, the library stands without the app."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

# Each part may import those before it (and errors, progress, storage, which stand below all). Leaves come last.
ORDER = [
    "checkpoint",
    "architecture",
    "patterns",
    "planning",
    "rescale",
    "checkpoint.writer",
    "exporting.preview",
    "equivalence",
    "exporting",
    "census",
    "job_functions",
    "jobs",
    "cli",
]


def _imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out.add(node.module)
    return out


def test_the_library_imports_neither_the_app_nor_its_packages():
    for path in (ROOT / "wisca_core").rglob("*.py"):
        tops = {name.split(".")[0] for name in _imports(path)}
        assert not tops & {"app", "wisca_app", "streamlit", "plotly"}, path


def test_the_library_loads_without_streamlit_or_plotly():
    code = (
        "import sys, wisca_core.job_functions, wisca_core.cli, wisca_core.equivalence.verify\n"
        "assert not {'streamlit', 'plotly', 'wisca_app'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_figures_know_neither_streamlit_nor_the_session():
    for path in (ROOT / "app" / "figures").rglob("*.py"):
        tops = {name.split(".")[0] for name in _imports(path)}
        assert "streamlit" not in tops, path


def test_data_flows_one_way_through_the_library():
    def place(module: str) -> int | None:
        named = [
            i
            for i, part in enumerate(ORDER)
            if module == f"wisca_core.{part}" or module.startswith(f"wisca_core.{part}.")
        ]
        return min(named) if named else None

    for path in (ROOT / "wisca_core").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        here = place(module)
        if here is None:
            continue
        for name in _imports(path):
            there = place(name)
            assert there is None or there <= here, f"{module} imports {name}, which stands above it"


def test_session_state_and_caches_are_each_touched_in_one_file():
    for path in (ROOT / "app").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "session_state" not in text or path.name == "state.py", path
        assert "st.cache_" not in text or path.name == "cached.py", path


def test_ci_runs_the_very_test_command_of_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = next(line for line in readme.splitlines() if "pytest" in line and "pip install" in line)
    assert command.strip().replace("pip install", "pip install -q") in (ROOT / ".ci" / "run").read_text(
        encoding="utf-8"
    )


def test_top_level_holds_only_what_was_agreed():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")
    names = {line.split("/")[0] for line in tracked if line}
    agreed = {
        "pyproject.toml",
        "app",
        "wisca_core",
        "tests",
        "sample_runs",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "constraints.txt",
    }
    assert {name for name in names if not name.startswith(".")} <= agreed


def test_every_dependency_is_imported_somewhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    used = set()
    for folder in ("app", "wisca_core"):
        for path in (ROOT / folder).rglob("*.py"):
            used |= {name.split(".")[0] for name in _imports(path)}
    for requirement in project["dependencies"]:
        name = requirement.split(">")[0].split("=")[0].split("<")[0].split("[")[0].strip().replace("-", "_")
        assert name in used, f"{name} is required and nowhere imported"
