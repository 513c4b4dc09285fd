"""The command line: one module per command, each with `SUMMARY`, `add_arguments(parser)` and `run(args)`."""
