"""Tests of the page, its proxies and the metrics, on a mesh of three nodes with Ray and a laptop outside the mesh.

mesh.py        the network, the cluster, and Prometheus with Alertmanager on the head
browser.py     a headless Chromium in the network of a host
"""
