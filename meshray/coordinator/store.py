"""The coordinator's store, which keeps the registry's rows. The store of this meshray is SQLite.

>>> store = open_store(home)
>>> registry = store.load()
>>> store.apply(rows)                      # one transaction, on disk when it returns
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from meshray.coordinator.records import RowChange, Settings
from meshray.coordinator.registry import Registry
from meshray.coordinator.sqlite_store import SqliteStore
from meshray.home import Home


class Store(Protocol):
    """One open store. It must not be used by two threads at the same time."""

    def settings(self) -> Settings:
        """Return the settings. Raises MeshrayError store_corrupt."""
        ...

    def load(self) -> Registry:
        """Return everything that was applied. Raises MeshrayError store_corrupt."""
        ...

    def apply(self, changes: Sequence[RowChange]) -> None:
        """Apply all rows or none. Raises MeshrayError store_failed."""
        ...

    def copy(self) -> Path:
        """Write a copy beside the store, for its owner alone, and return its file. Raises MeshrayError store_failed."""
        ...

    def close(self) -> None:
        """Let another process open the store."""
        ...


def open_store(home: Home) -> Store:
    """Open the existing store of this home.

    Raises:
        MeshrayError: no_mesh, store_corrupt, store_locked, store_too_new. The store is unchanged.
    """
    return SqliteStore.open(home.database)


def create_store(home: Home, settings: Settings, rows: Sequence[RowChange]) -> None:
    """Create the store of a new mesh with these rows, or nothing. Raises OSError, MeshrayError store_unwritable."""
    SqliteStore.write(home.database, settings, rows)
