"""The ``nbia-pipeline`` command: one module per subcommand."""
