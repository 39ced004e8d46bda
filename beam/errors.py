"""The errors of jobs that cannot be done as asked."""


class BuildError(Exception):
    """The build cannot be done as asked; the message says what was found, what was expected and what to do."""


class PredictionError(Exception):
    """A batch prediction cannot be done as asked; the message says what was found, what was expected and what to do."""
