"""This installation of meshray: its files, the programs beside it, and the command that reinstalls it."""
