"""A copy of meshray that only root can change, and the interpreter that runs it.

    sudo ~/ray/bin/meshray init ──► may others change this environment? ──no──► it goes on as it is
                                                    │ yes
                                                    ▼
    packing (as the environment's owner) ──tar──► /usr/local/lib/meshray/VERSION-… ──► the same command runs from there

Ray stays in the user's environment and only ever runs as that user.
"""
