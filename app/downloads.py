"""Finished exports as downloads that never pass through memory: one file, or one uncompressed archive.

A link carries a token of 256 random bits that stands for one export folder; tokens live in this process only, so they
end with the server. A file is found by comparing its name with the names in the folder, so no request can lead out.
"""

import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from wisca_app.archive import Member, archive, archive_bytes
from wisca_core.errors import UnreadableInput

_HEADERS = {"cache-control": "no-store", "referrer-policy": "no-referrer", "x-content-type-options": "nosniff"}
REPORT = "wisca_report.json"

_folders: dict[str, tuple[Path, str]] = {}  # with the file that shows that the folder is finished


def link(folder: Path, whole: str = REPORT) -> str:
    """The token of a finished export, or of another folder that holds the file ``whole`` once it is finished; the same
    while the server lives. Raises UnreadableInput for any other folder.
    """
    path = Path(os.path.realpath(folder))
    if not (path / whole).is_file():
        raise UnreadableInput(f"{path} has no {whole}, so it is no finished export. Export again.")
    for token, known in _folders.items():
        if known == (path, whole):
            return token
    token = secrets.token_urlsafe(32)
    _folders[token] = (path, whole)
    return token


def address(token: str, name: str = "") -> str:
    """Where the browser finds the archive, or the file ``name`` of the folder."""
    return f"/download/{token}/{quote(name)}" if name else f"/download/{token}"


def files(folder: Path) -> list[Member]:
    """Regular files below ``folder``, links left out, by name."""
    found = []
    for top, _, names in os.walk(folder):
        for name in names:
            path = Path(top) / name
            seen = path.lstat()
            if stat.S_ISREG(seen.st_mode):
                found.append(Member(path.relative_to(folder).as_posix(), path, seen.st_size, seen.st_mtime))
    return sorted(found, key=lambda entry: entry.name)


def _folder(request: Request) -> Path:
    folder, whole = _folders.get(request.path_params["token"], (None, ""))
    if folder is None or not (folder / whole).is_file():
        raise HTTPException(404, "This link is no longer valid: the server was restarted or the export was removed.")
    return folder


def _archive(request: Request) -> Response:
    folder = _folder(request)
    name = folder.name if folder.name != "model" else f"{folder.parent.name}-model"  # of a comparison's run
    members = [Member(f"{name}/{e.name}", e.path, e.n_bytes, e.mtime) for e in files(folder)]
    headers = _HEADERS | {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(name)}.zip",
        "content-length": str(archive_bytes(members)),
    }
    content: Iterator[bytes] = iter(()) if request.method == "HEAD" else archive(members)
    return StreamingResponse(content, headers=headers, media_type="application/zip")


def _file(request: Request) -> Response:
    folder, name = _folder(request), request.path_params["name"]
    for entry in files(folder):
        if entry.name == name:
            return FileResponse(
                entry.path, headers=_HEADERS, filename=entry.path.name, media_type="application/octet-stream"
            )
    raise HTTPException(404, "There is no such file in this export.")


ROUTES = [
    Route("/download/{token}", _archive, methods=["GET"]),
    Route("/download/{token}/{name:path}", _file, methods=["GET"]),
]
