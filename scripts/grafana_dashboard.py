"""Build Grafana's dashboard of a mesh with Grafana's SDK; `make docs` writes it to templates/monitoring/dashboard.json.

    python scripts/grafana_dashboard.py > templates/monitoring/dashboard.json

A row of the dashboard is a function here, which returns its panels. Every query keeps the labels mesh and node, by
which the variables at the top of the dashboard choose. A query that would return nothing on a healthy mesh does not
belong here: tests run them all against a real Prometheus.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as shown
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

#: Grafana replaces an installed dashboard of the same identifier.
UID = "meshray"
SOURCE = model.DataSourceRef(type_val="prometheus", uid="${datasource}")
#: Width of the dashboard's grid, height of a panel in it.
WIDTH, HEIGHT = 24, 8
GREEN, YELLOW, ORANGE, RED, BLUE, GREY = "green", "yellow", "orange", "red", "blue", "text"

OURS = 'job="meshray", mesh=~"$mesh", node=~"$node"'
RAY = 'job="ray", mesh=~"$mesh", node=~"$node"'
BY_NODE = "by (mesh, node)"
BY_PAIR = "by (mesh, node, peer)"

#: Value of the matrix's query → kind and transport, text and colour.
PATHS = (
    (1, "direct", "udp", "direct", GREEN),
    (2, "direct", "wss", "direct (wss)", YELLOW),
    (3, "hub", "udp", "hub", ORANGE),
    (4, "hub", "wss", "hub (wss)", RED),
)


def query(expr: str, legend: str = "{{node}}", ref: str = "A") -> prometheus.Dataquery:
    """Return a query over the chosen time."""
    return prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(ref).range().datasource(SOURCE)


def newest(expr: str, ref: str) -> prometheus.Dataquery:
    """Return a query for the newest values, as a table with a column for each label."""
    return prometheus.Dataquery().expr(expr).format(PromQueryFormat.TABLE).ref_id(ref).instant().datasource(SOURCE)


def steps(*levels: tuple[float | None, str]) -> dashboard.ThresholdsConfig:
    """Return colours by value: each level's colour counts from its value on; the first level's is None."""
    thresholds = [model.Threshold(value=value, color=color) for value, color in levels]
    return dashboard.ThresholdsConfig().mode(model.ThresholdsMode.ABSOLUTE).steps(thresholds)


def texts(*values: tuple[int, str, str]) -> model.ValueMap:
    """Return a mapping of numbers to texts and colours."""
    return model.ValueMap(
        {
            str(value): model.ValueMappingResult(text=text, color=color, index=n)
            for n, (value, text, color) in enumerate(values)
        }
    )


UP_OR_DOWN = texts((1, "up", GREEN), (0, "down", RED))


def graph(
    title: str, description: str, unit: str, *targets: prometheus.Dataquery, width: int = 12, most: float | None = None
) -> timeseries.Panel:
    """Return a panel of lines over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .height(HEIGHT)
        .span(width)
        .line_width(1)
        .fill_opacity(8)
        .show_points(shown.VisibilityMode.NEVER)
        .tooltip(common.VizTooltipOptions().mode(shown.TooltipDisplayMode.MULTI).sort(shown.SortOrder.DESCENDING))
        .legend(
            common.VizLegendOptions()
            .display_mode(shown.LegendDisplayMode.TABLE)
            .placement(shown.LegendPlacement.RIGHT)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
    )
    if most is not None:
        panel.max(most)
    for target in targets:
        panel.with_target(target)
    return panel


def timeline(title: str, description: str, expr: str, width: int = 12) -> statetimeline.Panel:
    """Return a panel with a bar for each node, green while it is up."""
    return (
        statetimeline.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .height(HEIGHT)
        .span(width)
        .mappings([UP_OR_DOWN])
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .thresholds(steps((None, RED), (1, GREEN)))
        .show_value(shown.VisibilityMode.NEVER)
        .merge_values(True)
        .row_height(0.8)
        .line_width(0)
        .fill_opacity(80)
        .legend(
            common.VizLegendOptions()
            .display_mode(shown.LegendDisplayMode.LIST)
            .placement(shown.LegendPlacement.BOTTOM)
            .show_legend(False)
        )
        .tooltip(common.VizTooltipOptions().mode(shown.TooltipDisplayMode.SINGLE).sort(shown.SortOrder.NONE))
        .with_target(query(expr))
    )


def a_table(title: str, description: str, width: int) -> table.Panel:
    """Return an empty table."""
    return (
        table.Panel()
        .title(title)
        .description(description)
        .datasource(SOURCE)
        .height(HEIGHT)
        .span(width)
        .show_header(True)
        .cell_height(shown.TableCellHeight.SM)
    )


def column(
    panel: table.Panel, name: str, *, unit: str = "", coloured: dashboard.ThresholdsConfig | None = None
) -> None:
    """Set the unit and the colours of a table's column."""
    settings: list[tuple[str, Any]] = []
    if unit:
        settings.append(("unit", unit))
    if coloured is not None:
        settings.append(("thresholds", coloured.build()))
        settings.append(("custom.cellOptions", shown.TableColorTextCellOptions()))
    panel.override_by_name(name, [model.DynamicConfigValue(key, value) for key, value in settings])


def nodes() -> table.Panel:
    """Return the table of all nodes: one row each, with what is most asked about."""
    panel = a_table("Nodes", "Every node of the mesh, its versions and what is used of it now.", WIDTH)
    columns = (
        ("up", "Agent", f"max {BY_NODE} (up{{{OURS}}})"),
        ("ray", "Ray", f"max {BY_NODE} (meshray_ray_alive{{{OURS}}})"),
        ("cpu", "CPU", f"max {BY_NODE} (ray_node_cpu_utilization{{{RAY}}})"),
        ("memory", "Memory", memory_share()),
        ("cpus", "CPUs", f'sum {BY_NODE} (ray_resources{{{RAY}, Name="CPU"}})'),
        ("gpus", "GPUs", or_zero(f'sum {BY_NODE} (ray_resources{{{RAY}, Name="GPU"}})')),
        ("store", "Object store", object_store_share()),
        ("loss", "Worst loss", f"max {BY_NODE} (meshray_peer_loss_ratio{{{OURS}}})"),
    )
    information = f"max by (mesh, node, ip, roles, version, site) (meshray_node_info{{{OURS}}})"
    panel.with_target(newest(information, "info"))
    for ref, _, expr in columns:
        panel.with_target(newest(expr, ref))
    panel.with_transformation(model.DataTransformerConfig("merge", options={}))
    names = ["mesh", "node", "site", "roles", "ip", "version", *(f"Value #{ref}" for ref, _, _ in columns)]
    titles = {"mesh": "Mesh", "node": "Node", "site": "Site", "roles": "Roles", "ip": "Address", "version": "Version"}
    panel.with_transformation(
        model.DataTransformerConfig(
            "organize",
            options={
                "excludeByName": {"Time": True, "Value #info": True},
                "indexByName": {name: place for place, name in enumerate(names)},
                "renameByName": titles | {f"Value #{ref}": title for ref, title, _ in columns},
            },
        )
    )
    for name in ("Agent", "Ray"):
        panel.override_by_name(
            name,
            [
                model.DynamicConfigValue("mappings", [UP_OR_DOWN]),
                model.DynamicConfigValue("custom.cellOptions", shown.TableColorTextCellOptions()),
            ],
        )
    column(panel, "CPU", unit="percent", coloured=steps((None, GREY), (90, ORANGE)))
    column(panel, "Memory", unit="percentunit", coloured=steps((None, GREY), (0.9, RED)))
    column(panel, "Object store", unit="percentunit", coloured=steps((None, GREY), (0.9, RED)))
    column(panel, "Worst loss", unit="percentunit", coloured=steps((None, GREY), (0.05, RED)))
    return panel


def matrix(title: str, description: str, expr: str) -> table.Panel:
    """Return a table with a row for each node and a column for each of its peers."""
    pairs = {"rowField": "node", "columnField": "peer", "valueField": "Value", "emptyValue": "null"}
    background = shown.TableColoredBackgroundCellOptions(mode=shown.TableCellBackgroundDisplayMode.BASIC)
    return (
        a_table(title, description, 12)
        .with_target(newest(expr, "A"))
        .with_transformation(model.DataTransformerConfig("groupingToMatrix", options=pairs))
        .no_value("–")
        .override_by_regexp(r"/^(?!node\\peer$)/", [model.DynamicConfigValue("custom.cellOptions", background)])
    )


def mesh_row() -> Iterator[Any]:
    """Yield the panels about the mesh as a whole."""
    yield nodes()
    yield timeline("Agents", "Whether each node's agent answers Prometheus.", f"max {BY_NODE} (up{{{OURS}}})")
    yield timeline("Ray", "Whether each node's Ray is alive.", f"max {BY_NODE} (meshray_ray_alive{{{OURS}}})")


def path_row() -> Iterator[Any]:
    """Yield the panels about the paths between nodes."""
    kinds = " or ".join(
        f'{value} * max {BY_PAIR} (meshray_peer_path_info{{{OURS}, kind="{kind}", transport="{transport}"}})'
        for value, kind, transport, _, _ in PATHS
    )
    yield (
        matrix("Paths", "How packets travel from each node (row) to each peer (column) that it uses.", kinds)
        .mappings([texts(*((value, text, color) for value, _, _, text, color in PATHS))])
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .thresholds(steps((None, GREY)))
    )
    yield (
        matrix(
            "Round trips",
            "The median round trip from each node (row) to each peer (column).",
            f"max {BY_PAIR} (meshray_peer_rtt_seconds{{{OURS}}})",
        )
        .unit("s")
        .color_scheme(dashboard.FieldColor().mode(model.FieldColorModeId.THRESHOLDS))
        .thresholds(steps((None, GREEN), (0.05, YELLOW), (0.15, ORANGE), (0.3, RED)))
    )
    pair = "{{node}} → {{peer}}"
    yield graph(
        "Round trip",
        "The median round trip of the agents' probes over the overlay.",
        "s",
        query(f"max {BY_PAIR} (meshray_peer_rtt_seconds{{{OURS}}})", pair),
    )
    yield graph(
        "Loss",
        "The share of the agents' probes that were not answered.",
        "percentunit",
        query(f"max {BY_PAIR} (meshray_peer_loss_ratio{{{OURS}}})", pair),
    )
    for direction, words in (("receive", "from"), ("transmit", "to")):
        yield graph(
            f"{direction.capitalize()}d by pair" if direction == "receive" else "Transmitted by pair",
            f"Bytes per second through WireGuard {words} each peer; a hub's include what it forwards.",
            "Bps",
            query(f"sum {BY_PAIR} (rate(meshray_peer_{direction}_bytes_total{{{OURS}}}[$__rate_interval]))", pair),
        )
    yield graph(
        "Bandwidth by node",
        "Bytes per second through WireGuard, all peers together.",
        "Bps",
        *(
            query(
                f"sum {BY_NODE} (rate(meshray_peer_{direction}_bytes_total{{{OURS}}}[$__rate_interval]))",
                f"{{{{node}}}} {direction}",
                ref,
            )
            for ref, direction in (("A", "receive"), ("B", "transmit"))
        ),
    )
    yield graph(
        "Age of the last handshake",
        "WireGuard repeats the handshake every 2 minutes while there is traffic, and rejects a key after 3.",
        "s",
        query(f"time() - max {BY_PAIR} (meshray_peer_last_handshake_seconds{{{OURS}}})", pair),
    )


def ray_row() -> Iterator[Any]:
    """Yield the panels about each node's resources, as Ray's own exporters measure them."""
    yield graph(
        "CPU",
        "The used share of each machine's CPUs.",
        "percent",
        query(f"max {BY_NODE} (ray_node_cpu_utilization{{{RAY}}})"),
        most=100,
    )
    yield graph("Memory", "The used share of each machine's memory.", "percentunit", query(memory_share()), most=1)
    for name in ("CPU", "GPU"):
        used = f'sum {BY_NODE} (ray_resources{{{RAY}, Name="{name}", State="USED"}})'
        yield graph(
            f"{name}s in use by Ray",
            f"The {name}s of each node that tasks and actors have reserved.",
            "short",
            query(used if name == "CPU" else or_zero(used)),
        )
    yield graph(
        "GPU utilization",
        "How busy each GPU is. Empty if no node has a GPU that Ray can read.",
        "percent",
        query(
            f"max by (mesh, node, GpuIndex, GpuDeviceName) (ray_node_gpus_utilization{{{RAY}}})",
            "{{node}} {{GpuIndex}} {{GpuDeviceName}}",
        ),
        most=100,
    )
    used, free = (f"sum by (mesh, node, GpuIndex) (ray_node_gram_{what}{{{RAY}}})" for what in ("used", "available"))
    yield graph(
        "GPU memory",
        "The used share of each GPU's memory. Empty if no node has a GPU that Ray can read.",
        "percentunit",
        query(f"{used} / ({used} + {free})", "{{node}} {{GpuIndex}}"),
        most=1,
    )
    yield graph(
        "Object store",
        "The used share of each node's object store.",
        "percentunit",
        query(object_store_share()),
        most=1,
    )
    yield graph(
        "Disk",
        "The used share of the disk with Ray's temporary folder.",
        "percentunit",
        query(
            f"max {BY_NODE} (ray_node_disk_usage{{{RAY}}}) / "
            f"(max {BY_NODE} (ray_node_disk_usage{{{RAY}}}) + max {BY_NODE} (ray_node_disk_free{{{RAY}}}))"
        ),
        most=1,
    )
    yield graph(
        "Network of the machines",
        "Bytes per second on all interfaces of each machine, the overlay's and other programs' included.",
        "Bps",
        query(f"max {BY_NODE} (ray_node_network_receive_speed{{{RAY}}})", "{{node}} receive", "A"),
        query(f"max {BY_NODE} (ray_node_network_send_speed{{{RAY}}})", "{{node}} transmit", "B"),
    )
    yield graph(
        "Tasks",
        "Tasks by state, at the node whose program submitted them.",
        "short",
        query(
            or_zero(f'sum by (mesh, node, State) (clamp_min(ray_tasks{{{RAY}, State!~"FINISHED|FAILED"}}, 0))'),
            "{{node}} {{State}}",
        ),
    )


def agent_row() -> Iterator[Any]:
    """Yield the panels about meshray itself: agents, WireGuard's interface, coordinator."""
    yield graph(
        "Memory of the agents",
        "The resident memory of each node's agent.",
        "bytes",
        query(f"max {BY_NODE} (meshray_agent_resident_memory_bytes{{{OURS}}})"),
    )
    yield graph(
        "Processor time of the agents",
        "The share of one processor that each node's agent uses.",
        "percentunit",
        query(f"max {BY_NODE} (rate(meshray_agent_cpu_seconds_total{{{OURS}}}[$__rate_interval]))"),
    )
    lost = " + ".join(
        f"sum {BY_NODE} (rate(meshray_engine_interface_{what}_total{{{OURS}}}[$__rate_interval]))"
        for what in ("receive_errors", "transmit_errors", "receive_drops", "transmit_drops")
    )
    yield graph("Lost packets", "Packets that each overlay interface dropped or failed to send.", "pps", query(lost))
    yield graph(
        "Coordinator: nodes",
        "Members of the mesh, and those whose agents are connected.",
        "short",
        query(f"max {BY_NODE} (meshray_coordinator_nodes{{{OURS}}})", "members", "A"),
        query(f"max {BY_NODE} (meshray_coordinator_links{{{OURS}}})", "connected", "B"),
        query(f"max {BY_NODE} (meshray_coordinator_enrolments_total{{{OURS}}})", "enrolments", "C"),
    )
    buckets = f"rate(meshray_coordinator_request_duration_seconds_bucket{{{OURS}}}[$__rate_interval])"
    yield graph(
        "Coordinator: requests",
        "The time in which 95 % and half of the requests are answered.",
        "s",
        *(
            query(f"histogram_quantile({share}, sum by (mesh, node, le) ({buckets}))", legend, ref)
            for ref, share, legend in (("A", 0.95, "95 %"), ("B", 0.5, "median"))
        ),
    )
    refused = f"sum {BY_NODE} (rate(meshray_coordinator_refused_requests_total{{{OURS}}}[$__rate_interval]))"
    changes = f"max {BY_NODE} (rate(meshray_coordinator_map_revision{{{OURS}}}[$__rate_interval]))"
    yield graph(
        "Coordinator: changes and refusals",
        "Changes of the map, and requests that were answered with an error, per second.",
        "short",
        query(changes, "changes of the map", "A"),
        query(f"{refused} or 0 * max {BY_NODE} (meshray_coordinator_links{{{OURS}}})", "refused requests", "B"),
    )


def memory_share() -> str:
    """Return the used share of each machine's memory."""
    return f"max {BY_NODE} (ray_node_mem_used{{{RAY}}}) / max {BY_NODE} (ray_node_mem_total{{{RAY}}})"


def object_store_share() -> str:
    """Return the used share of each node's object store, as in the alert RayHighMemoryUsage."""
    store = f'{RAY}, Name="object_store_memory"'
    return f'sum {BY_NODE} (ray_resources{{{store}, State="USED"}}) / sum {BY_NODE} (ray_resources{{{store}}})'


def or_zero(expr: str) -> str:
    """Return the expression, with 0 for each node with Ray for which it returns nothing."""
    return f"{expr} or on (mesh, node) 0 * max {BY_NODE} (up{{{RAY}}})"


def variables() -> Iterable[Any]:
    """Yield the dashboard's choices: the Prometheus, the meshes and their nodes."""
    yield dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus").multi(False)
    for name, label, of in (
        ("mesh", "Mesh", 'up{job="meshray"}'),
        ("node", "Node", 'up{job="meshray", mesh=~"$mesh"}'),
    ):
        yield (
            dashboard.QueryVariable(name)
            .label(label)
            .datasource(SOURCE)
            .query({"qryType": 1, "query": f"label_values({of}, {name})", "refId": name})
            .refresh(model.VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(model.VariableSort.NATURAL_ASC)
            .multi(True)
            .include_all(True)
            .all_value(".*")
            .current(model.VariableOption(selected=True, text="All", value="$__all"))
        )


def alerts() -> dict[str, Any]:
    """Return the annotation that marks firing alerts in every graph."""
    expr = 'ALERTS{alertstate="firing", mesh=~"$mesh", node=~"$node"}'
    return {
        # The SDK's own builder has only the deprecated form without a target.
        "datasource": SOURCE,
        "enable": True,
        "iconColor": RED,
        "name": "Alerts",
        "target": {"expr": expr, "refId": "Alerts"},
        "titleFormat": "{{alertname}}",
        "textFormat": "{{node}} {{peer}}",
    }


def build() -> str:
    """Return the dashboard as JSON."""
    made = (
        dashboard.Dashboard("Meshray")
        .uid(UID)
        .description("A meshray mesh and its Ray cluster: nodes, paths between them, resources.")
        .tags(["meshray", "ray", "wireguard"])
        .time("now-1h", "now")
        .refresh("30s")
        .timezone("browser")
        .tooltip(model.DashboardCursorSync.CROSSHAIR)
        .editable()
    )
    for variable in variables():
        made.with_variable(variable)
    rows = {"Mesh": mesh_row, "Paths": path_row, "Ray": ray_row, "meshray": agent_row}
    for title, panels in rows.items():
        made.with_row(dashboard.Row(title))
        for panel in panels():
            made.with_panel(panel)
    whole = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    for number, panel in enumerate(whole["panels"], start=1):
        panel["id"] = number
        # Without one there is no footer; its form differs between the versions of Grafana.
        panel.get("options", {}).pop("footer", None)
    for variable in whole["templating"]["list"]:
        # The SDK gives every variable the fields of an interval's steps.
        for name in ("auto", "auto_count", "auto_min"):
            variable.pop(name, None)
    whole["annotations"] = {"list": [json.loads(json.dumps(alerts(), cls=JSONEncoder))]}
    return json.dumps(whole, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(build())
