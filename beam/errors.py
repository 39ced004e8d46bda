"""The error of a build that cannot be done as asked."""


class BuildError(Exception):
    """The build cannot be done as asked; the message says what was found, what was expected and what to do."""
