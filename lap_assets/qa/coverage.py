"""The coverage of nights by master calibrations, as a picture (LV-10).

Numbers in, PNG bytes out, as in `plots.py`; what is covered is found in `operations/calibrations.py`.
"""

from collections.abc import Mapping, Sequence
from datetime import date
from io import BytesIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = {"certified": "tab:green", "virtual": "tab:blue", "built": "tab:orange", "": "tab:red"}
NAMES = {"certified": "certified", "virtual": "to be built", "built": "made, not certified", "": "none"}


def plot_coverage(rows: Sequence[tuple[str, Mapping[str, str]]]) -> bytes:
    """A line for each use of masters, with a mark for each night with exposures, coloured by the state of its master.

    Parameters
    ----------
    rows : sequence of (label, mapping of ISO date to state)
        `state` is empty where there is no master.
    """
    figure = Figure(figsize=(9.0, 1.4 + 0.32 * len(rows)), dpi=110)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for state, colour in COLOURS.items():
        places = [
            (date.fromisoformat(night), place)
            for place, (_, nights) in enumerate(rows)
            for night, found in nights.items()
            if found == state
        ]
        if places:
            days, heights = zip(*places, strict=True)
            axes.scatter(days, heights, marker="s", s=30, color=colour, label=NAMES[state])
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_title("masters of nights with exposures")
    figure.autofmt_xdate()
    if axes.collections:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    stream = BytesIO()
    figure.savefig(stream, format="png", bbox_inches="tight", metadata={"Software": None})
    return stream.getvalue()
