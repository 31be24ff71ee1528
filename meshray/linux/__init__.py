"""The ground: what the Linux kernel and the machine offer. Nothing here knows of meshes or Ray."""
