"""The rows of the benchmark table: what was measured, against what target, and how to get it again."""

import json
import operator
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parents[2] / ".bench" / "results.json"
COMPARE = {"<=": operator.le, ">=": operator.ge}


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes
    ----------
    name : str
        `spine.demo.wall`
    value : float or None
        None where it could not be measured.
    target : str
        `<= 300`, or empty where there is none.
    peer : str
        What it is compared with, and whether measured here or recorded.
    command : str
        Gives the figure again.
    """

    name: str
    value: float | None
    unit: str
    target: str
    peer: str
    command: str

    @property
    def holds(self) -> bool | None:
        """Whether the target is met; None without a target or value."""
        if not self.target or self.value is None:
            return None
        sign, limit = self.target.split()
        return bool(COMPARE[sign](self.value, float(limit)))


def write_rows(rows: list[Row]) -> None:
    """Write rows to `.bench/results.json`; rows of the same name measured before are replaced."""
    RESULTS.parent.mkdir(exist_ok=True)
    kept = {row["name"]: row for row in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    kept |= {row.name: asdict(row) | {"holds": row.holds} for row in rows}
    RESULTS.write_text(json.dumps([kept[name] for name in sorted(kept)], indent=1) + "\n")


def print_rows(rows: list[Row]) -> None:
    """Print rows as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "value", "unit", "target", "holds", "peer")
    for row in rows:
        value = "-" if row.value is None else f"{row.value:.4g}"
        holds = {True: "yes", False: "NO", None: ""}[row.holds]
        table.add_row(row.name, value, row.unit, row.target, holds, row.peer)
    Console(width=140).print(table)
