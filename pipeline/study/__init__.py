"""Scaling studies: the runs of a sweep, the laws fitted to them, and plans made from the laws."""


class StudyError(ValueError):
    """The study cannot be run, read or fitted; the message says what was found, what was expected and what to do."""
