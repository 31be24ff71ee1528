"""Interfaces to the Linux kernel and the machine. Nothing here knows of meshes or Ray."""
