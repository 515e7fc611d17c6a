"""The exception for invalid input."""


class InputError(ValueError):
    """Invalid input. The message is one line: what is wrong, where, and how to fix it."""
