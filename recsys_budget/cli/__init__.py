"""The command line: ``recsys-budget``."""
