"""This node on disk: who it is, what it knows of the others, and what it leaves behind."""
