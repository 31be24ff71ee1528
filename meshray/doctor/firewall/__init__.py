"""The host's firewall and meshray's own rules."""
