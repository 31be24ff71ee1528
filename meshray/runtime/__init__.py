"""Where a node lives: its processes, its service, and what the machine must offer."""
