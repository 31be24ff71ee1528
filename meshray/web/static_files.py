"""The page's own style sheets, scripts and images, from memory.

Their address contains a hash of all of them, so browsers may keep them for ever.

>>> files = StaticFiles(folder)
>>> files.url("frame.css")
'/static/0a1b2c3d4e5f6071/frame.css'
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from aiohttp import web

_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_CACHE = "public, max-age=31536000, immutable"


class StaticFiles:
    """The files of one folder.

    Args:
        folder: read once; files of other types than css, js and svg are ignored.
    """

    def __init__(self, folder: Path) -> None:
        files = sorted(file for file in folder.iterdir() if file.suffix in _TYPES)
        self._files = {file.name: file.read_bytes() for file in files}
        digest = hashlib.sha256()
        for name, content in self._files.items():
            digest.update(f"{name} {len(content)} ".encode() + content)
        self._version = digest.hexdigest()[:16]

    def url(self, name: str) -> str:
        """Return the address of a file. Raises KeyError if there is none of this name."""
        self._files[name]
        return f"/static/{self._version}/{name}"

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Answer a request for a file. Raises HTTPNotFound if there is none."""
        name = request.match_info["name"]
        content = self._files.get(name)
        if content is None or request.match_info["version"] != self._version:
            raise web.HTTPNotFound
        response = web.Response(body=content, content_type=_TYPES[Path(name).suffix], charset="utf-8")
        response.headers["Cache-Control"] = _CACHE
        return response
