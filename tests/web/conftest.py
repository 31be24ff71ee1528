"""The mesh that the tests of this tier share; see `tests.web.mesh`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.web.mesh import WebMesh, web_mesh


@pytest.fixture(scope="package")
def mesh() -> Iterator[WebMesh]:
    """Yield the one mesh of the tier, whose tests leave it as they found it."""
    with web_mesh() as mesh:
        yield mesh
