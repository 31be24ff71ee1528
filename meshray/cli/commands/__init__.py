"""One module for each family of commands; `meshray.cli.main` imports only the one that was asked for."""
