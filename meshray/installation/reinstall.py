"""The command that reinstalls this meshray, with its WireGuard engine, from its original source.

>>> reinstall_command(Path("/home/ann/ray/bin/python"))
'MESHRAY_BUILD_ENGINE=1 /home/ann/ray/bin/python -m pip install --force-reinstall --no-deps --no-cache-dir /home/ann/m'
"""

from __future__ import annotations

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import unquote, urlsplit

from meshray import __version__

#: Files in which pip and uv record the source of a distribution (PEP 610) and the installer (PEP 376).
ORIGIN_FILES = ("direct_url.json", "INSTALLER")
_CLONE = Path(__file__).resolve().parents[2]


def reinstall_command(python: Path) -> str:
    """Return a shell command that reinstalls meshray, or builds the engine if meshray runs from a clone.

    The command fails with the reason if the engine cannot be built. It does not use pip's cache, which may contain a
    wheel without an engine.

    Args:
        python: the interpreter of the environment in which meshray is installed.
    """
    try:
        found = distribution("meshray")
    except PackageNotFoundError:
        return _make(_CLONE)
    source, clone = read_origin(found.read_text("direct_url.json") or "")
    if clone is not None:
        return _make(clone)
    what = shlex.quote(source or f"meshray=={__version__}")
    program = shlex.quote(str(python))
    if (found.read_text("INSTALLER") or "").strip() == "uv":
        return f"MESHRAY_BUILD_ENGINE=1 uv pip install --python {program} --reinstall --no-deps --no-cache {what}"
    return f"MESHRAY_BUILD_ENGINE=1 {program} -m pip install --force-reinstall --no-deps --no-cache-dir {what}"


def read_origin(text: str) -> tuple[str, Path | None]:
    """Return the source that pip can install, and the clone of an editable installation.

    Args:
        text: the content of direct_url.json: ``{"url", "vcs_info": {"vcs", "commit_id"}, "dir_info": {"editable"}}``.
            If it is missing or damaged the result is ``("", None)``: meshray came from an index.
    """
    try:
        record = json.loads(text)
        url = str(record["url"])
        if "vcs_info" in record:
            return f"{record['vcs_info']['vcs']}+{url}@{record['vcs_info']['commit_id']}", None
        if "dir_info" not in record:
            return url, None
        path = unquote(urlsplit(url).path)
        return ("", Path(path)) if record["dir_info"].get("editable") else (path, None)
    except (ValueError, KeyError, TypeError, AttributeError):
        return "", None


def _make(clone: Path) -> str:
    return f"make -C {shlex.quote(str(clone))} engine"
