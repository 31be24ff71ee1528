"""The long-running process on every node: keeps the device, the paths and Ray as they should be."""
