"""The coordinator's page: the mesh in a browser, and the programs of its nodes."""
