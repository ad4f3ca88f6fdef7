"""The queue file of LAP-34: one `-definerun` command per line, as in an operator's notes.

    # ten cells around the pole, then the rest
    -definerun -seq_id 3pi.v1 -tess_id rings.v3 -projection_cell 1405 -filter g.00000
    laptool -definerun -seq_id 1 -projection_cell rings.v3.1406 -filter r -label pole

Pure: text in, requests and problems out. Names are as they were typed; `operations/define.py` looks them up and finds
those that were launched already.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lap_assets.errors import BadInput
from lap_assets.lap.command_words import (
    Reader,
    parse_words,
    read_band,
    read_dec,
    read_name,
    read_ra,
    read_radius,
    read_whole,
)

COMMAND, NEEDED = "-definerun", ("seq_id", "projection_cell", "filter")
OBS_MODE = "3PI"  # LAP-11
ANY_OBS_MODE = "any"
_CONE = ("ra", "decl", "radius")
DEFINERUN: dict[str, Reader | None] = {
    "seq_id": read_name,
    "projection_cell": read_name,
    "tess_id": read_name,
    "ra": read_ra,
    "decl": read_dec,
    "radius": read_radius,
    "filter": read_band,
    "label": read_name,
    "dist_group": read_name,
    "obs_mode": read_name,
    "priority": read_whole,
}


@dataclass(frozen=True)
class RunRequest:
    """What a `-definerun` command asks for.

    Attributes
    ----------
    sequence, tessellation : str
        Name or number; an empty tessellation is that of the cell's name, or the only one there is.
    cell : str
        With its tessellation (`rings.v3.1405`) or without (`1405`).
    band : str
    region : (ra_deg, dec_deg, radius_deg) or None
        None: all exposures that overlap the cell.
    obs_mode : str or None
        None: any.
    line : int
        In the queue file, from 1; 0: typed.
    """

    sequence: str
    cell: str
    band: str
    tessellation: str = ""
    region: tuple[float, float, float] | None = None
    label: str = ""
    dist_group: str = ""
    obs_mode: str | None = OBS_MODE
    priority: int = 0
    line: int = 0


def parse_definerun(words: Sequence[str]) -> RunRequest:
    """The options after `-definerun`; raises `BadInput`."""
    return make_request(parse_words(words, DEFINERUN, NEEDED))


def make_request(values: Mapping[str, Any]) -> RunRequest:
    """The request that the values of these options make; raises `BadInput`."""
    cone = [name for name in _CONE if name in values]
    if 0 < len(cone) < len(_CONE):
        raise BadInput(f"-{cone[0]} alone is no cone: give -ra, -decl and -radius, or none of them for the whole cell")
    mode = values.get("obs_mode", OBS_MODE)
    return RunRequest(
        sequence=values["seq_id"],
        cell=values["projection_cell"],
        band=values["filter"],
        tessellation=values.get("tess_id", ""),
        region=(values["ra"], values["decl"], values["radius"]) if cone else None,
        label=values.get("label", ""),
        dist_group=values.get("dist_group", ""),
        obs_mode=None if mode == ANY_OBS_MODE else mode,
        priority=values.get("priority", 0),
    )


def format_definerun(request: RunRequest) -> str:
    """The line of a queue file that asks for this."""
    words = [COMMAND, "-seq_id", request.sequence, "-projection_cell", request.cell, "-filter", request.band]
    if request.region is not None:
        for name, value in zip(_CONE, request.region, strict=True):
            words += [f"-{name}", repr(value)]
    texts = {"tess_id": request.tessellation, "label": request.label, "dist_group": request.dist_group}
    for name, text in texts.items():
        words += [f"-{name}", text] if text else []
    if request.obs_mode != OBS_MODE:
        words += ["-obs_mode", request.obs_mode or ANY_OBS_MODE]
    return shlex.join(words + (["-priority", str(request.priority)] if request.priority else []))


def parse_queue(text: str) -> tuple[tuple[RunRequest, ...], tuple[tuple[int, str], ...]]:
    """Requests in the order of the file, and (line, what is wrong with it) of those that cannot be read; never raises.

    Blank lines and what follows a `#` are left out.
    """
    requests, problems = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            words = shlex.split(line, comments=True)
            if words and words[0].rpartition("/")[2] == "laptool":
                words = words[1:] or ["laptool"]
            if not words:
                continue
            if words[0] != COMMAND:
                raise BadInput(f"{words[0]!r} is no {COMMAND}")
            requests.append(replace(parse_definerun(words[1:]), line=number))
        except ValueError as error:  # shlex: a quotation that does not end
            problems.append((number, str(error)))
        except BadInput as error:
            problems.append((number, str(error)))
    return tuple(requests), tuple(problems)
