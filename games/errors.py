"""The one exception for input that a user has to mend."""


class InputError(ValueError):
    """Bad input: one line that names the file or the field, and the mend."""
