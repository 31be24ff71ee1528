"""Objects of Kubernetes in which every pod is a node of the mesh.

workers.py      a Deployment of Ray workers, as plain files or as a Helm chart
ray_cluster.py  a RayCluster of KubeRay, as an object or as values for KubeRay's chart
pods.py         what the pods of both have in common
dialect.py      how one template becomes either
values.py       names and quantities, checked
schema.py       the same checks for the values of the chart, which Helm makes
archive.py      the chart as one file

>>> manifests(Workers()).count("kind: Deployment")
1
"""

from meshray.render.kubernetes.ray_cluster import Cluster, ray_cluster, ray_cluster_values
from meshray.render.kubernetes.values import memory
from meshray.render.kubernetes.workers import CHART_NAME, Workers, chart, manifests

__all__ = ["CHART_NAME", "Cluster", "Workers", "chart", "manifests", "memory", "ray_cluster", "ray_cluster_values"]
