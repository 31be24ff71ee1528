"""A program of TypeScript that compiles only if a dashboard has the types that Grafana publishes.

Grafana's own server is not needed: `@grafana/schema` describes the dashboard, and the options of each kind of panel.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TYPESCRIPT = "typescript@5.9.3"
#: Kind of panel → the module with the types of its options.
_PANELS = {"table": "TablePanelCfg", "timeseries": "TimeSeriesPanelCfg", "statetimeline": "StateTimelinePanelCfg"}
_HEAD = """\
import type { AnnotationQuery, Dashboard, DataQuery, Panel, RowPanel } from '@grafana/schema';

// JSON has the values of enumerations, not their members.
type Plain<T> = T extends string ? `${T}`
    : T extends readonly (infer U)[] ? Plain<U>[]
    : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
// Prometheus' own part of an annotation; the schema has only what all data sources share.
type Annotation = AnnotationQuery<DataQuery & { expr: string }> & { titleFormat: string; textFormat: string };
"""
_OPTIONS = ("--noEmit", "--strict", "--skipLibCheck", "--module", "nodenext", "--target", "es2022")
_INSTALL_S, _COMPILE_S = 180, 120


def schema(version: str) -> Path:
    """Return a folder with this version of Grafana's schema and a compiler, which npm installs once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshray-tests"
    folder = cache / f"grafana-{version}"
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"]
        subprocess.run([*install, f"@grafana/schema@{version}", TYPESCRIPT], cwd=folder, check=True, timeout=_INSTALL_S)
        (folder / "complete").touch()
    return folder


def faults(dashboard: Mapping[str, Any], folder: Path, work: Path) -> str:
    """Return the compiler's errors about a dashboard; empty: it has the types of the schema in this folder."""
    (work / "node_modules").symlink_to(folder / "node_modules")
    (work / "dashboard.ts").write_text("\n".join([_HEAD, *_statements(dashboard)]))
    compiler = folder / "node_modules" / ".bin" / "tsc"
    found = subprocess.run(
        [compiler, *_OPTIONS, "dashboard.ts"], cwd=work, capture_output=True, text=True, timeout=_COMPILE_S, check=False
    )
    assert found.returncode in (0, 2), found.stderr
    return found.stdout


def _statements(dashboard: Mapping[str, Any]) -> Iterator[str]:
    for kind, module in _PANELS.items():
        path = f"./node_modules/@grafana/schema/dist/esm/raw/composable/{kind}/panelcfg/x/{module}_types.gen.js"
        yield f"import type * as {kind} from '{path}';"
    for panel in dashboard["panels"]:
        number, kind = panel["id"], panel["type"].replace("-", "")
        if kind != "row":
            custom = panel["fieldConfig"]["defaults"].get("custom", {})
            yield _constant(f"options{number}", f"{kind}.Options", panel["options"])
            yield _constant(f"custom{number}", f"Partial<{kind}.FieldConfig>", custom)
        yield _constant(f"panel{number}", "RowPanel" if kind == "row" else "Panel", panel)
    for number, annotation in enumerate(dashboard["annotations"]["list"]):
        yield _constant(f"annotation{number}", "Annotation", annotation)
    rest = {key: value for key, value in dashboard.items() if key not in ("panels", "annotations")}
    yield _constant("rest", "Omit<Dashboard, 'panels' | 'annotations'>", rest)


def _constant(name: str, of: str, value: object) -> str:
    return f"export const {name}: Plain<{of}> = {json.dumps(value)};"
