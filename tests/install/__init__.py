"""The results of pip for this repository, in empty environments and with a real index."""
