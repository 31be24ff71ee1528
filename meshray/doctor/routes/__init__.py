"""Routes, other VPNs and packet filters of the kernel."""
