"""The failure vocabulary: every error this package raises on purpose.

An error message is one line and says what, where and what to do. The class says who can cure it: a person
(`BadInput`), nobody (`UnprocessableData`, `NoWork`), a re-creation (`IntegrityError`), or a later try (`Conflict`).
"""


class LapError(Exception):
    """Base of all errors raised on purpose; its text is one line fit for a terminal."""


class BadInput(LapError):
    """What a person handed in (option, id, file, configuration) cannot be used; the text says what to change."""


class NotFound(LapError):
    """A product, calibration or template is missing; the text names it and its data id."""


class Cleaned(NotFound):
    """The files of a product were removed on purpose; it can be re-created from what its manifest names."""


class PermanentFailure(LapError):
    """A retry cannot cure it."""


class UnprocessableData(PermanentFailure):
    """The data, not the code, is at fault: the unit ends `unprocessable`, which is a result."""


class NoWork(PermanentFailure):
    """There is nothing to do for this unit (no overlap, too few inputs): the unit ends `no_work`, which is a result."""


class IntegrityError(LapError):
    """Bytes on disk are not what their manifest says; the text names the product and how to re-create it."""


class Conflict(LapError):
    """Another writer holds, or has meanwhile replaced, what this one wanted to write."""
