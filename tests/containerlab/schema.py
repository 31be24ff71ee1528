"""The JSON schema of topology files that containerlab publishes, fetched once into the tests' cache.

    python -m tests.containerlab.schema      fetches it; `scripts/setup.sh test` runs this

It is part of containerlab's Go module. Go checks the module, and this module the schema itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.go_programs import CACHE

REPOSITORY = Path(__file__).resolve().parents[2]
VERSION = "v0.79.0"
SHA256 = "51a7025041d90fcded90911d4947773794464ccd903f01c03d5b2ff988f58d02"
_MODULE = "github.com/srl-labs/containerlab"
_FETCH_S = 300


class SchemaError(Exception):
    """The schema could not be fetched, or is not the expected one."""


def load() -> Any:
    """Return the schema, fetched if it is not in the cache.

    Raises:
        SchemaError: it could not be fetched, or is not the expected one.
    """
    path = CACHE / f"containerlab-{VERSION}-{SHA256[:8]}.schema.json"
    if not path.exists():
        _fetch(path)
    return json.loads(checked(path.read_bytes()))


def checked(content: bytes) -> bytes:
    """Return this content if it is the schema (pure).

    Raises:
        SchemaError: it is not.
    """
    if (found := hashlib.sha256(content).hexdigest()) != SHA256:
        raise SchemaError(f"the schema of containerlab {VERSION} has the SHA-256 {found}, not {SHA256}")
    return content


def _fetch(path: Path) -> None:
    go = _go()
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        settings = {"GOMODCACHE": f"{folder}/modules", "GOFLAGS": "-modcacherw", "GOWORK": "off"}
        done = subprocess.run(
            [go, "mod", "download", "-json", f"{_MODULE}@{VERSION}"],
            cwd=folder,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_FETCH_S,
        )
        if done.returncode:
            raise SchemaError(f"{_MODULE} {VERSION} cannot be fetched: {done.stdout}{done.stderr}")
        unfinished = Path(folder) / path.name
        unfinished.write_bytes(
            checked((Path(json.loads(done.stdout)["Dir"]) / "schemas/clab.schema.json").read_bytes())
        )
        unfinished.rename(path)


def _go() -> str:
    unpacked = REPOSITORY / ".cache/go/go/bin/go"
    found = os.environ.get("GO") or shutil.which("go") or (str(unpacked) if unpacked.exists() else "")
    if not found:
        raise SchemaError("no Go: run scripts/setup.sh test, which fetches it")
    return found


if __name__ == "__main__":
    try:
        load()
    except SchemaError as error:
        sys.exit(f"schema: {error}")
