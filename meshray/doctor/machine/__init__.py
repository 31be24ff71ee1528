"""The machine: clock, memory, disks, limits."""
