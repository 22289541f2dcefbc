"""The shape of the house: one layout, and, read from the imports, that data flows one way and that the library stands
without the app.
"""

import ast
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# From the ground up: each floor may import those below it, and modules of one floor each other. Every module stands on
# one.
FLOORS = (
    "errors pairs intervals words threads processes answering",
    "storage spreadsheet untrusted wrappers apart",
    "progress verdicts",
    "checkpoint",
    "architecture",
    "methods",
    "patterns",
    "planning",
    "rescale rescale_basis",
    # the model's own architecture made small and run
    *(
        "equivalence." + name
        for name in ("sizes model_config small_config example undisturbed float64 inputs_by_kind").split()
    ),
    "equivalence.miniature",
    "equivalence.inputs equivalence.outputs equivalence.memory_names equivalence.adapter_miniature",
    "rescale_adapter",
    "equivalence",
    "exporting",
    "model trajectories census",
    "steps",
    "runs",
    "circuits training",
    "comparison",
    "evaluation",
    "jobs job_functions",
    "cli",
)


def _module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return f"wisca_{name}" if name.split(".")[0] == "app" else name


MODULES = {_module(path): path for folder in ("wisca_core", "app") for path in (ROOT / folder).rglob("*.py")}


@cache
def _inside(module: str) -> set[str]:
    """Modules of ours that one imports anywhere in it; what only a type checker sees is left out."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            out |= {name if (name := f"{node.module}.{alias.name}") in MODULES else node.module for alias in node.names}
    return {name for name in out if name.split(".")[0] in ("wisca_core", "wisca_app")} - {module}


@cache
def _imports(path: Path) -> set[str]:
    """Every module it imports, ours and others'."""
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
        "import sys, wisca_core.model, wisca_core.cli, wisca_core.cli.dashboard\n"
        "assert not {'streamlit', 'plotly', 'wisca_app'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_figures_know_neither_streamlit_nor_the_session():
    for path in (ROOT / "app" / "figures").rglob("*.py"):
        tops = {name.split(".")[0] for name in _imports(path)}
        assert "streamlit" not in tops, path


def test_every_import_inside_the_house_is_of_something_that_is_there():
    trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
    names = {module: _names(tree) for module, tree in trees.items()}
    for path in [*MODULES.values(), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("wisca_core", "wisca_app"):
                where = f"{path.relative_to(ROOT)}:{node.lineno}"
                assert node.module in MODULES, f"{where} imports {node.module}, which is not there"
                known = names[node.module]
                for alias in node.names:
                    is_there = alias.name in known or f"{node.module}.{alias.name}" in MODULES
                    assert is_there or "__getattr__" in known, f"{where} imports {alias.name} of {node.module}"


# Files of ours, of Python's or of the system, which no stranger wrote; a spelling of a path's own reads nothing.
OWN_FILES = {
    "wisca_core.verdicts": "the code that decides",
    "wisca_core.equivalence.full_check": "/proc/meminfo",
    "wisca_core.equivalence.miniature": "a folder it has just written",
    "wisca_core.comparison.data": "Python's own sources",
    "wisca_core.evaluation.tasks": "the harness's own tasks",
    "wisca_core.untrusted": "the way in itself",
}


def test_what_a_stranger_may_have_put_at_a_path_is_read_by_the_ground_floor_alone():
    """``read_text`` waits on a pipe and reads /dev/zero to the end of memory; ``expanduser`` has no home for nobody."""
    for module, path in MODULES.items():
        if module.split(".")[0] != "wisca_core" or module in OWN_FILES:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            in_package = "joinpath(" in ast.unparse(node.func.value)
            assert node.func.attr not in ("read_text", "read_bytes") or in_package, f"{where}: untrusted.read_regular"
            assert node.func.attr != "expanduser", f"{where}: untrusted.named_path"


def _names(tree: ast.Module) -> set[str]:
    """What a module binds, anywhere in it."""
    out = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            out.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            out.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            out |= {alias.asname or alias.name for alias in node.names}
    return out


def test_data_flows_one_way_through_the_library():
    def floor(module: str) -> int:
        """Of the longest name that the module bears or lies in."""
        inside = [module.removeprefix("wisca_core.").rsplit(".", n)[0] for n in range(module.count("."))]
        names = {name: i for i, names in enumerate(FLOORS) for name in names.split()}
        found = next((names[name] for name in inside if name in names), None)
        assert found is not None, f"{module} stands on no floor: name its room in FLOORS"
        return found

    for module in MODULES:
        if not module.startswith("wisca_core."):
            continue
        for name in _inside(module) - {"wisca_core"}:
            assert floor(name) <= floor(module), f"{module} imports {name}, which stands above it"


def test_no_files_import_each_other_in_a_circle():
    graph = {module: _inside(module) for module in MODULES}
    while graph:
        free = {module for module, needed in graph.items() if not needed & graph.keys()}
        assert free, f"each of these imports another of them: {', '.join(_circle(graph))}"
        graph = {module: needed for module, needed in graph.items() if module not in free}


def _circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of a graph in which everything needs something of it."""
    path = [next(iter(graph))]
    while path[-1] not in path[:-1]:
        path.append(min(graph[path[-1]] & graph.keys()))
    return path[path.index(path[-1]) :]


def test_no_two_classes_bear_one_name():
    homes: dict[str, str] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                home = homes.setdefault(node.name, module)
                assert home == module, f"{node.name} is a class of {home} and of {module}: a name stands for one thing"


def test_session_state_and_caches_are_each_touched_in_one_file():
    for path in (ROOT / "app").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "session_state" not in text or path.name == "state.py", path
        assert "st.cache_" not in text or path.name == "cached.py", path
        ends = "st.rerun(" in text or "st.stop(" in text  # ours write the address first
        assert not ends or path.name == "state.py", path


def test_no_number_is_bounded_by_its_widget():
    """Streamlit keeps a number out of bounds in the browser and goes on with the one before, as if nothing were
    wrong.
    """
    for path in (ROOT / "app").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "number_input":
                bounds = {word.arg for word in node.keywords} & {"min_value", "max_value"}
                assert len(node.args) <= 1 and not bounds, f"{path}:{node.lineno}: let the library judge the number"


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
        "constraints-lowest.txt",
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
        name = {"protobuf": "google"}.get(name, name)  # the one whose package is called otherwise
        assert name in used, f"{name} is required and nowhere imported"


@pytest.mark.parametrize("asked", [["check"], ["format", "--check"]], ids=" ".join)
def test_every_file_has_the_one_layout(asked):
    """Lines of 120 characters at most and the rules of pyproject.toml."""
    command = [sys.executable, "-m", "ruff", *asked, "--no-cache", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
