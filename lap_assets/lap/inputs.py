"""What a partition is made from, as one hash: by it a decision sees that something upstream has changed.

Pure and quick: it is asked for every partition of every open run at each tick.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping

from lap_assets.model.states import PartitionState
from lap_assets.model.survey import PartitionRef, Survey

_NONE = PartitionState("")


def hash_inputs(survey: Survey, states: Mapping[PartitionRef, PartitionState], ref: PartitionRef) -> str:
    """Hash over what a partition is made from: the upstream partitions by content, and what lies outside the store."""
    return hash_contents(survey, states, ref, survey.upstream(*ref))


def hash_contents(
    survey: Survey,
    states: Mapping[PartitionRef, PartitionState],
    ref: PartitionRef,
    upstream: Iterable[PartitionRef],
) -> str:
    """`hash_inputs` where the upstream partitions are known already."""
    lines = [f"{up[0]} {up[1]} {states.get(up, _NONE).content_sha256}" for up in upstream]
    facts = survey.outside_facts(*ref)
    if facts:
        lines.append(json.dumps(facts, separators=(",", ":")))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def close_upstream(survey: Survey, targets: Iterable[PartitionRef]) -> set[PartitionRef]:
    """The targets and everything they are made from, all the way up."""
    closed: set[PartitionRef] = set()
    open_ = list(targets)
    while open_:
        ref = open_.pop()
        if ref not in closed:
            closed.add(ref)
            open_.extend(survey.upstream(*ref))
    return closed
