"""What can be wrong with a study."""


class StudyError(ValueError):
    """The study cannot be run, read or fitted; the message says what was found, what was expected and what to do."""
