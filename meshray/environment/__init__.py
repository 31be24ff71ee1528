"""Environments that match the head: `meshray join --env match` builds one with uv and runs Ray from it.

    model.environment.Environment ──plan──► commands of uv ──builder (a process of the user)──► a folder
                                     matched: finds uv, starts the builder, reports progress ◄─────────┘

``plan`` and ``requirements`` are pure. The builder is a separate process because the result must belong to Ray's user,
not to root, and because ending the builder ends all processes of uv.
"""
