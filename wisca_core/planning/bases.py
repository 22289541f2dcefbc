"""Changes of basis as one value: kept beside a plan, undone, checked. A matrix a KV group is no line of JSON, so they
lie in a file of their own beside it, in the format of safetensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import xxhash
from safetensors import SafetensorError
from safetensors.numpy import load, save

from wisca_core.architecture.site import Sites
from wisca_core.errors import PlanMismatch, UnreadableInput
from wisca_core.methods import Method
from wisca_core.storage import atomic_file
from wisca_core.untrusted import printable, read_regular

BASES = "wisca_report.bases"  # beside an export's wisca_report.json
MAX_BYTES = 4 * 1024**3  # 80 layers of 64 heads of 128 channels take 0.7 GB


@dataclass(frozen=True, eq=False)
class Bases:
    """``sites``: site name -> float64 (KV groups, n, n), S of each group over its n channels: the left side becomes
    S^-1 left, the right one right S.
    """

    sites: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bases) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __bool__(self) -> bool:
        return bool(self.sites)

    @cached_property
    def digest(self) -> str:
        """Of names, shapes and bits."""
        out = xxhash.xxh3_128()
        for name, matrices in sorted(self.sites.items()):
            out.update(f"{name} {matrices.shape}\n".encode())
            out.update(np.ascontiguousarray(matrices).data)
        return out.hexdigest()

    def undone(self) -> "Bases":
        """What takes a model back, up to one rounding a weight."""
        return Bases({name: inverse(matrices) for name, matrices in self.sites.items()})

    def check(self, sites: Sites, chosen: Method, of: str = "model") -> None:
        """Raises PlanMismatch where these do not fit the pairs of this ``of``, or are none that the method ``chosen``
        may change, or cannot be taken back.
        """
        found = {site.name: site for site in sites.sites if chosen.changes_basis_of(site.key.pair)}
        for name, matrices in self.sites.items():
            if name not in found:
                raise PlanMismatch(f"the plan changes the basis of {printable(name)}; this {of} has no such pair.")
            if reason := chosen.why_not(found[name]):
                raise PlanMismatch(f"the plan changes the basis of {name}: {reason}.")
            labels = found[name].labels("group")
            n_groups = int(labels.max()) + 1
            if matrices.dtype != np.float64 or matrices.shape != (n_groups, *2 * (len(labels) // n_groups,)):
                raise PlanMismatch(
                    f"the plan's change of basis for {name} is {matrices.dtype} {matrices.shape}; this {of} has "
                    f"{n_groups} "
                    f"groups of {len(labels) // n_groups} channels there. It belongs to another model."
                )
            if not is_invertible(matrices):
                raise PlanMismatch(f"the plan's change of basis for {name} is not finite, or cannot be taken back.")

    def write(self, beside: Path) -> None:
        """Into the file that belongs to the JSON file ``beside``; none where there are none. Raises OutputRefused,
        OSError.
        """
        if self.sites:
            with atomic_file(place(beside)) as file:
                file.write(save({name: np.ascontiguousarray(matrices) for name, matrices in self.sites.items()}))

    @classmethod
    def read(cls, beside: Path, digest: str = "", most_bytes: int = MAX_BYTES) -> "Bases":
        """Those that were written beside ``beside``, which have this digest where one is given. Raises UnreadableInput,
        PlanMismatch.
        """
        path = place(beside)
        try:
            found = cls(load(read_regular(path, most_bytes)))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise UnreadableInput(f"{path} holds no changes of basis: {printable(error)}.") from None
        if digest and found.digest != digest:
            raise PlanMismatch(f"{path} holds other changes of basis than {beside.name} was written with.")
        return found


def inverse(matrices: np.ndarray) -> np.ndarray:
    """Of each; not finite where one has none."""
    try:
        return np.linalg.inv(matrices)
    except np.linalg.LinAlgError:
        return np.full_like(matrices, np.nan)


def is_invertible(matrices: np.ndarray) -> bool:
    """Whether S S^-1 is 1 up to what no stored weight shows."""
    with np.errstate(all="ignore"):
        off = np.abs(matrices @ inverse(matrices) - np.eye(matrices.shape[-1]))
    return bool((off < 1e-9).all())


def place(beside: Path) -> Path:
    """wisca_report.json -> wisca_report.bases"""
    return beside.with_suffix(".bases")
