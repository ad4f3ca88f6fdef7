"""Defining what is to be processed: sequences, runs, large areas, and the queue file; names and numbers looked up.

Every command that defines something ends here, whatever its spelling. Which exposures a run gets is the ledger's
matter, when an entry of the queue is launched is `lap/`'s.
"""

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lap_assets.errors import BadInput, NotFound
from lap_assets.lap.command_words import check_radius
from lap_assets.lap.queue_file import OBS_MODE, RunRequest, format_definerun, parse_queue
from lap_assets.ledger.ledger import Ledger
from lap_assets.ledger.records import RunRow, SequenceRow
from lap_assets.model.decisions import QueueEntry
from lap_assets.model.regions import Box, Cone, Polygon, Region
from lap_assets.model.tessellation import Tessellation
from lap_assets.operations.webserver import reload_definitions
from lap_assets.operations.workspace import Workspace

RINGS = "rings.v3"  # known everywhere, whether or not a ledger has it yet
RINGS_V3 = {"kind": "rings", "name": RINGS}
RunKey = tuple[str, str, str, str]  # sequence, tessellation, cell, band
_AHEAD = 16  # so many entries at the head of the queue are looked at closely


@dataclass(frozen=True)
class Names:
    """The sequences and tessellations there are, by number; both may be typed as number or name (LAP-10)."""

    sequences: tuple[tuple[int, str], ...] = ()
    tessellations: tuple[str, ...] = ()

    def find_sequence(self, text: str) -> str:
        """Name of a sequence; raises `BadInput`."""
        for number, name in sorted(self.sequences, key=lambda one: one[1] != text):
            if text in (name, str(number)):
                return name
        there = ", ".join(f"{number} {name}" for number, name in self.sequences) or "none"
        raise BadInput(f"unknown sequence {text!r}; defined are: {there}; define one with -definesequence")

    def find_cell(self, cell: str, tessellation: str = "") -> tuple[str, str]:
        """(name of the tessellation, name of the cell): `1405` of `rings.v3` is `rings.v3.1405`."""
        known = self.tessellations if RINGS in self.tessellations else (*self.tessellations, RINGS)
        named = sorted((one for one in known if cell.lower().startswith(f"{one.lower()}.")), key=len)
        if tessellation:
            sky = self._find_tessellation(tessellation, known)
        elif named:
            sky = named[-1]
        elif len(self.tessellations) <= 1:
            sky = known[0]
        else:
            raise BadInput(f"-tess_id is missing: {cell!r} may be a cell of any of {', '.join(self.tessellations)}")
        prefix = f"{sky}."
        return sky, prefix + (cell[len(prefix) :] if cell.lower().startswith(prefix.lower()) else cell)

    def _find_tessellation(self, text: str, known: tuple[str, ...]) -> str:
        for one in known:
            if one.lower() == text.lower():
                return one
        if text.isascii() and text.isdigit() and 0 < int(text) <= len(self.tessellations):
            return self.tessellations[int(text) - 1]
        raise BadInput(f"unknown tessellation {text!r}; defined are: {', '.join(known)}")


def read_names(space: Workspace) -> Names:
    """The names a command may use. Tessellations are numbered from 1 in order of their definition."""
    sequences = tuple((row.seq_id, row.name) for row in space.ledger.sequences())
    return Names(sequences, tuple(space.ledger.tessellations()))


def choose_tessellation(space: Workspace, name: str | None) -> str:
    """The tessellation named, or the only one defined, or the whole sky's RINGS.V3, which is defined on the way."""
    name = pick_tessellation(space, name)
    if name not in space.ledger.tessellations():
        space.ledger.add_tessellation(RINGS_V3)
    return name


def pick_tessellation(space: Workspace, name: str | None) -> str:
    """As `choose_tessellation`, but nothing is defined."""
    defined = space.ledger.tessellations()
    if name is None:
        name = defined[0] if len(defined) == 1 else RINGS
        if len(defined) > 1:
            raise BadInput(f"several tessellations are defined ({', '.join(defined)}): choose with --tessellation")
    if name not in (*defined, RINGS):
        raise BadInput(
            f"unknown tessellation {name!r}; defined are: {', '.join(defined) or 'none'}; see `lap tessellation --help`"
        )
    return name


# ---- sequences and runs


def define_sequence(space: Workspace, name: str, description: str = "") -> SequenceRow:
    """A new sequence (LAP-01, LAP-09); raises `BadInput` where the name is used already."""
    if name in dict(read_names(space).sequences).values():
        raise BadInput(f"sequence {name!r} is defined already; choose another name")
    space.ledger.define_sequence(name, description, exist_ok=False)
    return next(row for row in space.ledger.sequences() if row.name == name)


def define_run(space: Workspace, request: RunRequest) -> RunRow:
    """One new run with its members (LAP-10 to LAP-13); queues nothing. Raises `BadInput`, `Conflict`."""
    row = launch_entry(space, resolve_request(read_names(space), request))
    reload_definitions(space.root)
    return row


def resolve_request(names: Names, request: RunRequest) -> QueueEntry:
    """A request with the names looked up; raises `BadInput`."""
    sky, cell = names.find_cell(request.cell, request.tessellation)
    return QueueEntry(
        line=request.line,
        sequence=names.find_sequence(request.sequence),
        tessellation=sky,
        cell=cell,
        band=request.band,
        region=request.region,
        label=request.label,
        dist_group=request.dist_group,
        obs_mode=request.obs_mode,
        priority=request.priority,
    )


def launch_entry(space: Workspace, entry: QueueEntry) -> RunRow:
    """Define the run of an entry; raises `BadInput` where it can have no exposure, `Conflict` where it exists."""
    sky = choose_tessellation(space, entry.tessellation)
    try:
        return space.ledger.define_run(
            entry.sequence,
            sky,
            entry.cell,
            entry.band,
            region=Cone(*entry.region) if entry.region else None,
            obs_mode=entry.obs_mode,
            label=entry.label,
            dist_group=entry.dist_group,
            priority=entry.priority,
        )
    except NotFound as error:
        raise BadInput(str(error)) from error


def define_area(
    space: Workspace,
    sequence: str,
    region: Region,
    tessellation: str = "",
    bands: Collection[str] | None = None,
    obs_mode: str | None = OBS_MODE,
    label: str = "",
    dist_group: str = "",
    priority: int = 0,
) -> list[RunRow]:
    """Every run of a circle, box or polygon: all overlapping cells by all bands (LAP-16).

    Runs that are there already are completed by exposures they lack. Returns those that are new or grew.
    """
    names = read_names(space)
    sky = names.find_cell("0", tessellation)[0] if tessellation else None
    rows = space.ledger.define_runs(
        names.find_sequence(sequence),
        choose_tessellation(space, sky),
        bands=bands,
        obs_mode=obs_mode,
        region=region,
        label=label,
        dist_group=dist_group,
    )
    if priority:
        for row in rows:
            space.ledger.set_priority(row.lap_id, priority)
    if rows:
        reload_definitions(space.root)
    return rows


def plan_area(
    space: Workspace,
    sequence: str,
    region: Region,
    tessellation: str = "",
    bands: Collection[str] | None = None,
    obs_mode: str | None = OBS_MODE,
    **marks: Any,
) -> list[RunRequest]:
    """What `define_area` would define, as requests for the queue file; `marks` are label, dist_group, priority.

    A queue file knows cones: of a box or polygon, each run takes all exposures that overlap its cell.
    """
    names = read_names(space)
    sky = choose_tessellation(space, names.find_cell("0", tessellation)[0] if tessellation else None)
    cone = (region.ra_deg, region.dec_deg, region.radius_deg) if isinstance(region, Cone) else None
    return [
        RunRequest(names.find_sequence(sequence), cell, band, sky, cone, obs_mode=obs_mode, **marks)
        for cell, band in space.ledger.overlaps(sky, bands, obs_mode, region)
    ]


def make_region(
    circle: tuple[float, float, float] | None = None,
    box: tuple[float, float, float, float] | None = None,
    polygon: Sequence[tuple[float, float]] | None = None,
) -> Region:
    """The one region that is given: (ra, dec, radius), (ra0, ra1, dec0, dec1) or corners, all in degrees.

    A box whose second right ascension is the smaller one goes across 0. Raises `BadInput`.
    """
    if sum(one is not None for one in (circle, box, polygon)) != 1:
        raise BadInput("give one region: a circle, a box or a polygon")
    if circle is not None:
        return Cone(circle[0], circle[1], check_radius(circle[2], "radius"))
    return Box(*box) if box is not None else Polygon(tuple(polygon or ()))


# ---- the queue file


def find_queue(space: Workspace) -> Path:
    """Where the queue file lies; it need not be there."""
    return space.root / space.settings.lap.queue_file


def read_queue(space: Workspace) -> tuple[tuple[QueueEntry, ...], list[str]]:
    """Entries never launched, in the order of the file, and what is wrong with the others, one line each (LAP-34).

    An entry was launched if there is a run of its sequence, tessellation, cell and band, however it ended. Cheap
    enough for every tick of a sensor: the text is parsed when it changed.
    """
    path = find_queue(space)
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return (), []
    except OSError as error:
        return (), [f"{path}: cannot be read: {error.strerror}"]
    asked, broken = resolve_queue(text, read_names(space))
    problems, launched = list(broken), space.ledger.defined()
    entries: list[QueueEntry] = []
    for key, entry in asked.items():
        if key in launched:
            continue
        try:
            if len(entries) < _AHEAD:
                check_cell(space, entry)
            entries.append(entry)
        except NotFound as error:
            problems.append((entry.line, str(error)))
    return tuple(entries), [f"{path} line {number}: {why}" for number, why in sorted(problems)]


@lru_cache(maxsize=8)  # a sensor reads the same text again every few seconds
def resolve_queue(text: str, names: Names) -> tuple[dict[RunKey, QueueEntry], tuple[tuple[int, str], ...]]:
    """Entries of a queue file, launched or not, and (line, what is wrong) of the others."""
    requests, broken = parse_queue(text)
    problems = list(broken)
    entries: dict[RunKey, QueueEntry] = {}
    for request in requests:
        try:
            entry = resolve_request(names, request)
        except BadInput as error:
            problems.append((request.line, str(error)))
            continue
        key = (entry.sequence, entry.tessellation, entry.cell, entry.band)
        if entries.setdefault(key, entry) is not entry:
            problems.append((entry.line, f"asks for the same run as line {entries[key].line}"))
    return entries, tuple(problems)


def check_cell(space: Workspace, entry: QueueEntry) -> None:
    """Refuse an entry whose cell does not exist; raises `NotFound`."""
    if entry.tessellation in space.ledger.tessellations():
        load_sky(space.ledger, entry.tessellation).cell(entry.cell)


@lru_cache(maxsize=4)  # of a ledger object; a tessellation never changes
def load_sky(ledger: Ledger, name: str) -> Tessellation:
    """A tessellation of a ledger, built once."""
    return ledger.tessellation(name)


def append_queue(space: Workspace, requests: Iterable[RunRequest]) -> Path:
    """Write requests to the end of the queue file instead of defining them; names are looked up first."""
    names = read_names(space)
    asked = list(requests)
    for request in asked:
        check_cell(space, resolve_request(names, request))
    path = find_queue(space)
    text = "".join(f"{format_definerun(one)}\n" for one in asked)
    with path.open("a+b") as stream:
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(size - 1)
            text = text if stream.read(1) == b"\n" else f"\n{text}"
        stream.write(text.encode())
        stream.flush()
        os.fsync(stream.fileno())
    return path
