"""Finds out the facts that the doctor's checks look at: all I/O of the doctor is here, one module for each group."""
