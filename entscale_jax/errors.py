"""The one exception that a user's mistake raises: what was wrong, where, and what to do, in one message."""


class UserError(ValueError):
    """A mistake in the input. The command prints its message on one line and exits with code 2."""
