"""This installation of meshray: its files, the programs beside it, and how it is installed again."""
