"""Meshes on containerlab's topologies, deployed by containerlab or by `tests.containerlab.runner`."""
