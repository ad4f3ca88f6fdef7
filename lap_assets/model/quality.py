"""What is said of how good a product is: QC1 parameters (PHX-08), and the verdict on a master calibration.

Plain records: numbers are measured in `qa/` and `science/`, kept by `ledger/`.
"""

from dataclasses import dataclass

from lap_assets.model.associations import CERTIFIED

# metric `quality` of a difference that can be believed; of another one it says what is wrong with it
GOOD = "good"


@dataclass(frozen=True)
class QualityRow:
    """One QC1 parameter (PHX-08) of a partition, or of one of its units.

    Attributes
    ----------
    value : float or None
        With its unit in the name; None where it is a text.
    passed : bool or None
        Whether it is within its limit; None where there is none.
    collection, product, partition : str
        Filled in by the ledger.
    """

    name: str
    value: float | None = None
    text: str = ""
    passed: bool | None = None
    unit: str = ""
    collection: str = ""
    product: str = ""
    partition: str = ""


@dataclass(frozen=True)
class Verdict:
    """What was found of a calibration set whose master was made.

    Attributes
    ----------
    state, reason : str
        New state of the set, and why it is not certified.
    judged : str
        Content of the master.
    quality : tuple of QualityRow
        Numbers of the comparison it rests on.
    """

    state: str
    reason: str = ""
    judged: str = ""
    quality: tuple[QualityRow, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it may be used."""
        return self.state == CERTIFIED
