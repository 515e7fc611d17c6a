class InputError(ValueError):
    """Bad input of the user: one line that names the file or field, and the mend."""
