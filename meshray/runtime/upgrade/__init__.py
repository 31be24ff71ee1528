"""Versions of meshray beside the installed one, and the change from one to another.

    order ──► installer: wheel beside it ──► pointer: trial ──► launch: the new version's agent
                                                 │                   │ works: pointer kept
                                              watchdog (old code) ───┘ ends, or 60 s: pointer returned, old agent

`docs/design.md` describes the states and what is atomic.
"""
