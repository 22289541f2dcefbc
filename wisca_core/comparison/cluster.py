"""Cells on the workers of a Ray cluster that is there already: one task a cell, each with one core or one GPU.

Every node must see the comparison's folder under the same path (a shared file system with locks) and have wisca
installed; what a task finds otherwise is said by name. A worker that is killed loses the steps since its last
checkpoint: its cell goes on in another.

No cluster is started here: Ray listens on all interfaces whatever address it is given, so that is for whoever knows the
network. GPUs under Ray have not been run.
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from wisca_core.comparison import folder
from wisca_core.comparison.folder import Cell
from wisca_core.errors import BadOption, Cancelled, DeviceMissing, OutputRefused

if TYPE_CHECKING:
    from wisca_core.comparison.execution_plan import ExecutionPlan

LOOK_SECONDS = 0.25
PATIENCE_SECONDS = 30.0


def connect() -> dict[str, int]:
    """CPU and GPU of the cluster. Raises BadOption where Ray is not installed, DeviceMissing where none is running."""
    try:
        import ray
    except ImportError:
        raise BadOption(
            "executor: ray was asked for and is not installed. Install it with: pip install 'wisca[ray]'"
        ) from None
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or "auto"
        try:
            _look_for(address)
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (OSError, RuntimeError, ValueError) as error:
            raise DeviceMissing(
                f"executor: no Ray cluster was reached at {address}: {(str(error).splitlines() or [''])[0][:200].rstrip('.')}. Start one, with: ray start --head (it listens "
                "on every interface: only where the network is yours), or set RAY_ADDRESS, "
                "and RAY_AUTH_MODE=token where the cluster asks for a token. Nothing was started."
            ) from error
    found = ray.cluster_resources()
    return {name: int(found.get(name, 0)) for name in ("CPU", "GPU")}


def _look_for(address: str) -> None:
    """Raises OSError where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def spread(
    path: Path, way: "ExecutionPlan", cells: list[Cell], look: Callable[[], None], record_death: Callable[[int], bool]
) -> None:
    """Train ``cells``; ``look()`` is called meanwhile, ``record_death(code)`` when a worker ended without a word: whether its
    cell gets another try.
    """
    import ray

    token = path / f".cluster-{os.urandom(8).hex()}"
    token.touch()
    resources = {"num_cpus": 0, "num_gpus": 1} if way.device == "cuda" else {"num_cpus": 1}
    # retries are ours: they count as attempts of a cell, whichever way it is trained
    task = ray.remote(max_retries=0, **resources)(train_cell)

    def submit(cell: Cell):
        return task.remote(str(path), cell.name, token.name, way.device)

    running = {submit(cell): cell for cell in cells}
    try:
        while running:
            ended, _ = ray.wait(list(running), timeout=LOOK_SECONDS)
            for one in ended:
                cell = running.pop(one)
                try:
                    ray.get(one)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, OutputRefused):
                        raise error.cause from None
                    raise
                except ray.exceptions.RayError:  # the worker or its machine is gone
                    if record_death(-9) and not folder.stop_request(path):
                        running[submit(cell)] = cell
            look()
    except (Cancelled, KeyboardInterrupt) as stopped:
        folder.ask(path, "cancel" if isinstance(stopped, Cancelled) else "pause")
        _stop(list(running), PATIENCE_SECONDS)
        raise
    except BaseException:
        _stop(list(running), 0.0)
        raise
    finally:
        token.unlink(missing_ok=True)


def train_cell(path: str, name: str, token: str, device: str) -> int:
    """The task: one cell of the comparison in ``path``, from its last checkpoint. Raises OutputRefused where this node
    sees another folder than the one that holds ``token``.
    """
    from wisca_core.comparison.worker import work

    here = Path(path)
    if not (here / token).exists():
        raise OutputRefused(
            f"{path} on the Ray node {socket.gethostname()} is not the folder it is here. Put the comparison on a file system that all nodes "
            "share, under the same path."
        )
    return work(here, device, lambda: bool(folder.stop_request(here)), only=name)


def _stop(tasks: list, patience: float) -> None:
    """For the tasks to write their checkpoints; then by force."""
    import ray

    if not tasks:
        return
    _, left = ray.wait(tasks, num_returns=len(tasks), timeout=patience)
    for one in left:
        ray.cancel(one, force=True)
