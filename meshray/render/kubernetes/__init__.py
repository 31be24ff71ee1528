"""Objects of Kubernetes in which every pod is a node of the mesh.

workers.py      a Deployment of Ray workers, as plain files or as a Helm chart
dialect.py      how one template becomes either
values.py       names and quantities, checked
archive.py      the chart as one file

>>> manifests(Workers()).count("kind: Deployment")
1
"""

from meshray.render.kubernetes.values import memory
from meshray.render.kubernetes.workers import CHART_NAME, Workers, chart, manifests

__all__ = ["CHART_NAME", "Workers", "chart", "manifests", "memory"]
