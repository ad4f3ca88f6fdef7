"""The asset `lap_status` of a collection: one row per run, as `lap status` prints it, told to Dagster when it changed.

Nobody materializes it: the status sensor reports it. What the rows say is `operations/status.py`'s.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict

import dagster as dg

from lap_assets.operations.status import RunStatus, describe_exposures

NAME = "lap_status"
MAX_ROWS = 200
DESCRIPTION = """How the LAP runs of this collection stand: exposures by data_state, stacks defined and there, faults,
the next step, and why it waits. Reported by the status sensor whenever it changed."""


def build(collection: str, group: str) -> dg.AssetSpec:
    """The asset of one collection."""
    return dg.AssetSpec(
        dg.AssetKey([collection, NAME]), description=DESCRIPTION, group_name=group, kinds={"table"},
        metadata={"collection": collection},
    )  # fmt: skip


def hash_rows(rows: Sequence[RunStatus]) -> str:
    """Hash of what the rows say."""
    return hashlib.sha256(json.dumps([asdict(one) for one in rows], sort_keys=True).encode()).hexdigest()[:24]


def report_rows(collection: str, rows: Sequence[RunStatus]) -> dg.AssetMaterialization:
    """What Dagster is told: a table of the runs, the ones under way first, and how many there are in each state."""
    ordered = sorted(rows, key=lambda one: (one.state.startswith("full"), one.lap_id))
    states = sorted({one.state for one in rows})
    metadata: dict[str, dg.MetadataValue] = {
        "runs": dg.MetadataValue.table([tabulate_run(one) for one in ordered[:MAX_ROWS]] or [dg.TableRecord({})]),
        "n_runs": dg.MetadataValue.int(len(rows)),
        **{f"n_{name.replace(', ', '_')}": dg.MetadataValue.int(sum(one.state == name for one in rows))
           for name in states},
        "n_faults": dg.MetadataValue.int(sum(len(one.faults) for one in rows)),
        "summary": dg.MetadataValue.md(write_markdown(ordered[:MAX_ROWS])),
    }  # fmt: skip
    return dg.AssetMaterialization(dg.AssetKey([collection, NAME]), metadata=metadata)


def tabulate_run(one: RunStatus) -> dg.TableRecord:
    """The row of one run."""
    return dg.TableRecord(
        {
            "lap_id": one.lap_id,
            "cell": one.cell,
            "band": one.band,
            "state": one.state,
            "exposures": describe_exposures(one),
            "stacks": f"{one.stacks_have}/{one.stacks_defined}",
            "final_stacks": f"{one.final_have}/{one.final_defined}",
            "faults": len(one.faults),
            "next": one.next,
            "waits": one.waits,
        }
    )


def write_markdown(rows: Sequence[RunStatus]) -> str:
    """The rows as a table of Markdown; what faults there are below it."""
    lines = ["| run | cell, band | state | exposures | stacks | final | next, or why it waits |", "|" + "---|" * 7]
    for one in rows:
        cells = (
            one.lap_id, f"{one.cell}, {one.band}", one.state, describe_exposures(one),
            f"{one.stacks_have}/{one.stacks_defined}", f"{one.final_have}/{one.final_defined}", one.next or one.waits,
        )  # fmt: skip
        lines.append("| " + " | ".join(str(cell).replace("|", "·") for cell in cells) + " |")
    faults = [f"- run {one.lap_id}: {text}" for one in rows for text in one.faults]
    return "\n".join(lines + (["", *faults[:MAX_ROWS]] if faults else []))
