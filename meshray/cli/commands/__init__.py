"""One module per family of commands; `meshray.cli.main` imports only the requested one."""
