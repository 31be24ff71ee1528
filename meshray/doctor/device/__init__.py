"""WireGuard and the overlay interface."""
