"""What pip makes of this repository, in empty environments and with a real index."""
