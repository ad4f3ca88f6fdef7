"""The queue: whenever a run completes, the first entry never launched is, so that N runs are active (LAP-34)."""

from lap_assets.model.decisions import DEFINE, QUEUE_MODE, Snapshot, Step


def launch_entries(snapshot: Snapshot) -> list[Step]:
    """Entries of the queue to define now, in the order of the file; none while draining."""
    free = 0 if snapshot.draining else max(snapshot.max_active - snapshot.n_active, 0)
    return [
        Step(0, DEFINE, value=str(entry.line), reason=f"{entry.cell} {entry.band}", mode=QUEUE_MODE)
        for entry in snapshot.queue[:free]
    ]
