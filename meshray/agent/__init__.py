"""The long-running process on every node: it maintains the device, the paths and Ray."""
