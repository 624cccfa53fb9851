"""Errors that the user can mend: main() prints them as one line. Others keep their traceback."""


class UserError(ValueError):
    """A flag, a file or a folder is not what it must be; the message says what to do about it."""


class TemporaryError(UserError):
    """A file cannot be read now; the next run tries it again."""
