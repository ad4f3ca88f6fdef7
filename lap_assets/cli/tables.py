"""Tables on the terminal: one look for all commands that list something."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def print_table(table: "pd.DataFrame", width: int = 240) -> None:
    """Print a table, all of its columns, numbers short; nothing where it has no rows.

    On a terminal it is as wide as that, elsewhere `width` characters.
    """
    from rich.console import Console
    from rich.table import Table

    if table.empty:
        return
    view = Table(box=None, header_style="bold")
    for column in table.columns:
        view.add_column(str(column), no_wrap=True)
    for row in table.itertuples(index=False):
        view.add_row(*(_write_value(value) for value in row))
    Console(width=None if sys.stdout.isatty() else width, markup=False).print(view)


def _write_value(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:g}"  # NaN is not itself
    return str(value)
