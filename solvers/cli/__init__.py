"""The command line `python -m solvers`, apart from its parser (`solvers.__main__`)."""
