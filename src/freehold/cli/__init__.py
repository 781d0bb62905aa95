"""The command line: one file a command, each importing its room when it runs."""
