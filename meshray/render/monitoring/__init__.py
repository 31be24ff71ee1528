"""Files for Prometheus and Grafana: the scrape configuration, the alert rules and the dashboard.

prometheus_rules.py     the alert rules as data, and as Prometheus' YAML
prometheus_config.py    the scrape configuration
grafana_dashboard.py    the dashboard, which scripts/grafana_dashboard.py has built
promql.py               every query of the rules and of the dashboard, for tests against a real Prometheus

>>> alert_rules().splitlines()[0]
'# Alert rules for a meshray mesh and its Ray cluster, by `meshray render alerts`.'
"""

from meshray.render.monitoring.grafana_dashboard import dashboard
from meshray.render.monitoring.prometheus_config import Member, Monitored, scrape_configuration
from meshray.render.monitoring.prometheus_rules import RULES, Rule, alert_rules
from meshray.render.monitoring.promql import Query, queries

__all__ = [
    "RULES",
    "Member",
    "Monitored",
    "Query",
    "Rule",
    "alert_rules",
    "dashboard",
    "queries",
    "scrape_configuration",
]
