"""Cells on the workers of a Ray cluster that is there already: one task a cell, each with one core or one GPU.

Every node must see the comparison's folder under the same path (a shared file system with locks) and have wisca
installed; what a task finds otherwise is said by name. A worker that is killed loses the steps since its last
checkpoint: its cell goes on in another.

No cluster is started here: Ray listens on all interfaces whatever address it is given, so that is for whoever knows the
network. GPUs under Ray have not been run.
"""

import os
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from wisca_core.comparison import folder
from wisca_core.errors import BadOption, DeviceMissing, OutputRefused

LOOK_SECONDS = 0.25


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
                f"executor: no Ray cluster was reached at {address}: "
                f"{(str(error).splitlines() or [''])[0][:200].rstrip('.')}. Start one, with: ray start --head (it "
                "listens "
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


@contextmanager
def tasks(path: Path, device: str) -> Iterator[tuple[Callable, Callable, Callable]]:
    """How the executor starts a cell, asks which have ended, and stops them."""
    import ray

    token = path / f".cluster-{os.urandom(8).hex()}"
    token.touch()
    resources = {"num_cpus": 0, "num_gpus": 1} if device == "cuda" else {"num_cpus": 1}
    # retries are ours: they count as attempts of a cell, whichever way it is trained
    task = ray.remote(max_retries=0, **resources)(train_cell)
    try:
        yield lambda cell: task.remote(str(path), cell.name, token.name, device), _ended, _stop
    finally:
        token.unlink(missing_ok=True)


def _ended(running: Iterable) -> Iterator[tuple[object, int]]:
    import ray

    for one in ray.wait(list(running), timeout=LOOK_SECONDS)[0]:
        code = 0
        try:
            ray.get(one)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, OutputRefused):
                raise error.cause from None
            raise
        except ray.exceptions.RayError:  # the worker or its machine is gone
            code = -signal.SIGKILL
        yield one, code


def train_cell(path: str, name: str, token: str, device: str) -> int:
    """The task: one cell of the comparison in ``path``, from its last checkpoint. Raises OutputRefused where this node
    sees another folder than the one that holds ``token``.
    """
    from wisca_core.comparison.worker import work

    here = Path(path)
    if not (here / token).exists():
        raise OutputRefused(
            f"{path} on the Ray node {socket.gethostname()} is not the folder it is here. Put the comparison on a file "
            "system that all nodes "
            "share, under the same path."
        )
    return work(here, device, lambda: bool(folder.stop_request(here)), only=name)


def _stop(*running: object, patience: float = 0.0) -> None:
    """For the tasks to write their checkpoints; then by force."""
    import ray

    for one in ray.wait(list(running), num_returns=len(running), timeout=patience)[1] if running else ():
        ray.cancel(one, force=True)
