"""docs/ports.md names every port of Ray with its default and its option."""

from __future__ import annotations

from pathlib import Path

from meshray.defaults import own_ports
from meshray.model.ray_ports import AUTOSCALER_METRIC_PORT, DASHBOARD_METRIC_PORT, RayPorts, option_of

PAGE = Path(__file__).resolve().parents[3] / "docs" / "ports.md"


def test_the_page_has_a_row_for_each_port() -> None:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.read_text().splitlines()]
    options = {row[0]: row[2] for row in rows if len(row) == 4}
    wanted = {str(port): f"`{option_of(name)}`" for name, port in RayPorts().to_json(head=True).items()}
    fixed = {str(port): "none" for port in (DASHBOARD_METRIC_PORT, AUTOSCALER_METRIC_PORT)}
    assert {port: option for port, option in options.items() if port.isdecimal()} == {**wanted, **fixed}


def test_the_page_has_meshrays_own_ports() -> None:
    text = PAGE.read_text()
    assert [port for port in own_ports(51888) if f"| {port} |" not in text] == []
