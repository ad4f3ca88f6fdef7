"""Commands that tell how things stand: lap status (one row per run) and lap why (one product)."""

import json
import sys
import time
from typing import Annotated, Any

import typer

from lap_assets.cli.setup import open_workspace

WATCH_SECONDS = 2.0
COLUMNS = ("run", "sequence", "cell", "band", "state", "exposures", "stacks", "final", "faults", "next", "waits")


def status(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds; Ctrl-C ends it.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Cleaned and cancelled runs, too.")] = False,
) -> None:
    """Tell how every run stands: exposures, stacks, faults, the next step and why it waits."""
    from rich.console import Console

    from lap_assets.operations import status as reading

    space = open_workspace(context)
    collections = [context.obj["collection"]] if context.obj["collection"] else list(space.collections())
    if as_json:
        print(json.dumps(reading.make_document(space, list_statuses(space, collections)), indent=1))
        return
    console = Console(width=None if sys.stdout.isatty() else 240)
    if watch and console.is_terminal:
        watch_status(space, collections, everything, console)
    else:
        console.print(draw_status(space, collections, everything))


def list_statuses(space: Any, collections: list[str]) -> list:
    """Rows of all runs of these collections."""
    from lap_assets.operations.status import summarize_runs

    return [one for collection in collections for one in summarize_runs(space, collection)]


def watch_status(space: Any, collections: list[str], everything: bool, console: Any) -> None:
    """Draw it again and again; a database that is busy or gone for a moment is one line until it is back."""
    from rich.live import Live
    from rich.text import Text

    from lap_assets.errors import LapError

    with Live(console=console, auto_refresh=False, screen=True) as live:
        try:
            while True:
                try:
                    live.update(draw_status(space, collections, everything), refresh=True)
                except LapError as error:
                    live.update(Text(str(error)), refresh=True)
                time.sleep(WATCH_SECONDS)
        except KeyboardInterrupt:
            return


def draw_status(space: Any, collections: list[str], everything: bool) -> Any:
    """The table and the lines below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from lap_assets.operations.status import describe_exposures, measure_space

    statuses = list_statuses(space, collections)
    shown = [one for one in statuses if everything or not one.over]
    table = Table(box=None, header_style="bold")
    for column in COLUMNS:
        table.add_column(column, no_wrap=column in COLUMNS[:5])
    for one in shown:
        waits = "; ".join(text for text in (one.waits, count_busy(one), count_postponed(one)) if text)
        cells = [str(one.lap_id), one.sequence, one.cell, one.band, one.state, describe_exposures(one)]
        cells += [count_stacks(one.stacks_have, one.stacks_defined), count_stacks(one.final_have, one.final_defined)]
        table.add_row(*map(Text, [*cells, str(len(one.faults) or ""), one.next, waits]))
    lines = [f"{len(statuses)} runs, {len(statuses) - len(shown)} of them over and not shown (--all)"]
    lines += ["draining: no run begins"] if space.ledger.draining() else []
    lines.append(f"{measure_space(space) / 1e9:.1f} GB free on the disk of {space.root}")
    return Group(table, *(Text(line) for line in lines))


def count_stacks(have: int, defined: int) -> str:
    """`12/12`; empty before the pass began."""
    return f"{have}/{defined}" if defined else ""


def count_busy(status: Any) -> str:
    """How much is being made now."""
    return f"{len(status.busy)} being made, {status.busy[0]}" if status.busy else ""


def count_postponed(status: Any) -> str:
    """How many differences are left to later runs."""
    return f"{len(status.postponed)} postponed, {status.postponed[0]}" if status.postponed else ""


def why(
    context: typer.Context,
    what: Annotated[str, typer.Argument(help="COLLECTION/PRODUCT/PARTITION[/UNIT], or a product with keys.")],
    keys: Annotated[list[str] | None, typer.Argument(help="exposure=… cell=… of the product.")] = None,
) -> None:
    """Explain one product: made from what, by what, waiting for what, cleaned or dropped why."""
    from lap_assets.errors import BadInput
    from lap_assets.operations import why as explaining

    space = open_workspace(context)
    name, *pairs = [word for text in (what, *(keys or ())) for word in text.split()] or [what]
    if "/" in name:
        if pairs:
            raise BadInput(f"a data id needs no keys: {' '.join(pairs)}")
        texts = [name]
    else:
        collection = context.obj["collection"] or space.settings.collections[0]
        texts = explaining.find_partitions(space, collection, name, pairs)
    for text in texts:
        print("\n".join(explaining.explain(space, text)))
