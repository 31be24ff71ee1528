"""Environments that match the head: `meshray join --env match` builds one with uv and runs Ray from it.

    model.environment.Environment ──plan──► commands of uv ──builder (a process of the user's)──► a folder
                                     matched: finds uv, starts the builder, tells how it goes ◄──────────┘

``plan`` and ``requirements`` are pure. The builder is a process of its own because Ray's user, and not root, owns
what is built, and because ending it ends everything that uv has begun.
"""
