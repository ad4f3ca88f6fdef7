"""What can be said of a unit or a partition: the states, and the record of a partition as the ledger keeps it.

The words are those of the architecture, section 6: `done`, `no_work`, `unprocessable` and `dropped` are *results* that
let the graph go on; `failed` may still be cured by a retry; `blocked` waits for an input that failed.
"""

from dataclasses import dataclass

DONE, FAILED, BLOCKED, NO_WORK, UNPROCESSABLE, DROPPED = (
    "done",
    "failed",
    "blocked",
    "no_work",
    "unprocessable",
    "dropped",
)
CORRUPT, GOTO_CLEANED, CLEANED = "corrupt", "goto_cleaned", "cleaned"
RESULTS = frozenset({DONE, NO_WORK, UNPROCESSABLE, DROPPED})
# results once more, whose files are gone or going on purpose; their content hashes stay
GONE = frozenset({GOTO_CLEANED, CLEANED})
ENDED = RESULTS | GONE
# how the reason of a partition begins that ended and is to be made again all the same
INVALIDATED = "invalidated"


@dataclass(frozen=True)
class PartitionState:
    """The ledger's record of one partition of one product.

    Attributes
    ----------
    state : str
    inputs_sha256 : str
        Hash over the contents of the upstream partitions when it was made (`lap/decide.py`, `hash_inputs`).
    content_sha256 : str
        Hash over the states and contents of its units.
    config_sha256 : str
        Hash of the settings and the code number it was made with.
    attempts : int
        Failed attempts since the last success.
    reason : str
    """

    state: str
    inputs_sha256: str = ""
    content_sha256: str = ""
    config_sha256: str = ""
    attempts: int = 0
    reason: str = ""
