"""What runs inside a container: its first process."""
