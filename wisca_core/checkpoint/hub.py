"""Models of the Hugging Face hub, ``hub:owner/name[@revision]``: size first, then a download into the library's cache.

Everything goes through huggingface_hub (imported late, it is slow): its cache, its retries, its token, which is never
read or shown here. ``HF_ENDPOINT``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` mean what they mean there.
"""

import errno
import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path

from wisca_core.checkpoint.folder import choose
from wisca_core.errors import HubError, WiscaError
from wisca_core.progress import Progress, silent
from wisca_core.untrusted import printable

PREFIX = "hub:"

# Beside the weights: config, tokenizer, model card, licence. Never code; sub-folders hold other formats.
_SMALL_FILES = (".json", ".txt", ".model", ".tiktoken", ".jinja", ".md", ".tsv")
_BARE_FILES = ("LICENSE", "NOTICE")


@dataclass(frozen=True)
class HubSize:
    """What a download would fetch: names and bytes of each file; files already in the cache are counted too."""

    model_id: str  # as written, hub:owner/name[@revision]
    commit: str
    n_bytes: int
    files: tuple[tuple[str, int], ...]


def hub_size(model_id: str) -> HubSize:
    """Asks the hub what ``hub:owner/name[@revision]`` has, downloads nothing. Raises HubError, or UnreadableInput where
    the repository has no weights that can be opened.
    """
    from huggingface_hub import HfApi

    repo, revision = parse(model_id)
    try:
        api = HfApi()
        commit = api.model_info(repo, revision=revision).sha
        tree = list(api.list_repo_tree(repo, revision=commit))
    except Exception as error:
        raise _hub_error(error, model_id) from None
    # Top level only, whatever the server lists: the library makes paths of these names.
    sizes = {entry.path: entry.size for entry in tree if hasattr(entry, "size") and "/" not in entry.path}
    files = tuple((name, sizes[name]) for name in _files_to_download(sorted(sizes), model_id))
    return HubSize(model_id, commit, sum(size for _, size in files), files)


def n_bytes_missing(size: HubSize) -> int:
    """Of what ``hub_size`` lists, the bytes that are not in the cache yet."""
    from huggingface_hub import try_to_load_from_cache

    repo, _ = parse(size.model_id)
    return sum(
        n for name, n in size.files if not isinstance(try_to_load_from_cache(repo, name, revision=size.commit), str)
    )


def download(model_id: str, progress: Progress = silent) -> Path:
    """Fetches what ``hub_size`` lists and is not in the cache yet; real path of the snapshot folder.

    Without a connection the copy in the cache is used, if there is one. Steps of ``progress`` are bytes.
    """
    from huggingface_hub import snapshot_download

    repo, revision = parse(model_id)
    try:
        size = hub_size(model_id)
    except HubError as error:
        if isinstance(error, _Unreachable) and (cached := _cached_folder(repo, revision)):
            return cached
        raise
    try:
        folder = snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[glob.escape(name) for name, _ in size.files],
            tqdm_class=_reporting(progress, size.n_bytes),
        )
    except WiscaError:
        raise
    except Exception as error:
        raise _hub_error(error, model_id) from None
    return Path(os.path.realpath(folder))


def parse(model_id: str) -> tuple[str, str | None]:
    """("owner/name", revision or None) of ``hub:owner/name[@revision]``; HubError where it is not one."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    repo, at, revision = model_id.removeprefix(PREFIX).partition("@")
    expected = "Expected hub:owner/name or hub:owner/name@revision; a path on this machine is written without hub:."
    try:
        # older versions of the library let an id end in a line break
        if repo.count("/") != 1 or re.search(r"\s", repo) or not model_id.startswith(PREFIX):
            raise HFValidationError("it is not owner/name")
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HubError(f"{printable(model_id)}: not a hub id ({printable(error)}). {expected}") from None
    # huggingface_hub makes a file name of the revision
    if at and (not re.fullmatch(r"[\w][\w./-]{0,199}", revision, re.ASCII) or ".." in revision):
        raise HubError(
            f"{printable(model_id)}: the revision {printable(revision)!r} is no branch, tag or commit. {expected}"
        )
    return repo, revision or None


def _files_to_download(names: list[str], model_id: str) -> list[str]:
    choice = choose(names, printable(model_id))
    if choice.index:  # its shards: model-00001-of-00002.safetensors beside model.safetensors.index.json
        stem, ending = choice.index.partition(".")[0], "safetensors" if choice.kind == "safetensors" else "bin"
        shard = re.compile(rf"{re.escape(stem)}.*-\d+-of-\d+.*\.{ending}")
        weights = {choice.index, *(name for name in names if shard.fullmatch(name))}
    else:
        weights = set(choice.files)
        if choice.kind == "dcp":
            weights |= {name for name in names if name.endswith(".distcp")}
    small = (name for name in names if name.endswith(_SMALL_FILES) and not name.endswith(".index.json"))
    bare = (name for name in names if name in _BARE_FILES)
    return sorted({*weights, *small, *bare})


def _cached_folder(repo: str, revision: str | None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for name in (
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "adapter_config.json",
    ):
        found = try_to_load_from_cache(repo, name, revision=revision)
        if isinstance(found, str):
            return Path(os.path.realpath(os.path.dirname(found)))
    return None


class _Unreachable(HubError):
    """No answer from the hub; what is in the cache may still be used."""


def _hub_error(error: Exception, model_id: str) -> HubError:
    from huggingface_hub import errors

    what = printable(model_id)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        return HubError(
            f"{what}: the model is gated: its owner must grant access. Accept its terms on its hub page, then log in "
            f"with `hf auth login`."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(
            f"{what}: the repository has no such revision. Check the part behind @ (branch, tag or commit)."
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return HubError(
            f"{what}: the hub has no such model, or it is private. Check the spelling; for a private one log in with "
            f"`hf auth login`."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return HubError(
            f"{what}: the disk is full. Free space, or set HF_HOME to another disk; it then goes on where it was."
        )
    if isinstance(error, PermissionError):
        return HubError(
            f"{what}: no permission to write {printable(error.filename)}. Set HF_HOME to a folder of your own."
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return _Unreachable(
            f"{what}: HF_HUB_OFFLINE is set: the hub is not asked, and only a model in the cache can be opened. "
            f"Unset it to download."
        )
    if status and status < 500:
        return HubError(f"{what}: the hub answered {status}. Check the id and revision.")
    return _Unreachable(
        f"{what}: the hub could not be reached ({type(error).__name__}{f', status {status}' if status else ''}). "
        f"Check the connection and try again (a download goes on where it was), or give a folder on this machine."
    )


def _reporting(progress: Progress, n_bytes: int) -> type:
    """A progress bar class for huggingface_hub that draws nothing and passes the bytes on."""
    from huggingface_hub.utils import tqdm

    done: dict[int, float] = {}  # the library counts bytes received and bytes written apart: the larger is the truth

    class Reporting(tqdm):
        def __init__(self, *args, **options):
            self._counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **{**options, "disable": True})

        def update(self, n: float | None = 1) -> None:
            if self._counts_bytes:
                done[id(self)] = done.get(id(self), 0) + (n or 0)
                progress("downloading", min(max(done.values()), n_bytes), n_bytes)

    return Reporting
