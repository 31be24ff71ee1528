"""What is wrong and how to mend it: checks as data, decided by pure functions over what the agent sees.

Facts (status and a little more) ──checks──► findings ──report──► checks with what follows from a failure hidden
"""
