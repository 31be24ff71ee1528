"""The pod of Kubernetes, or the machine of a cluster, on which a node runs."""
