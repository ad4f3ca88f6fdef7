"""How good exposures and masters are: the QC1 table of the ledger, and the focal plane of one exposure as a picture.

Reading and arranging only; the numbers are measured in `science/` and written with the record of a partition.
"""

from fnmatch import fnmatchcase

import numpy as np
import pandas as pd

from lap_assets.errors import BadInput, NotFound
from lap_assets.ledger.quality import JUDGED
from lap_assets.model.ids import DataId
from lap_assets.model.products import home_of
from lap_assets.operations.workspace import Workspace
from lap_assets.qa.plots import plot_focal_plane

# what a person looks at first; the rest follows with --all
FIRST = {
    "solutions": (
        "chips_good", "chips_failed", "chips_incomplete", "fwhm_moffat_arcsec", "ellipticity", "n_stars", "n_matched",
        "sky", "limit_mag_5sigma", "t_eff", "zero_point_mag", "zero_point_rms_mmag", "astrometry_rms_ra_mas",
        "astrometry_rms_dec_mas", "association_score",
    ),
}  # fmt: skip
COLOURS = ("fwhm_arcsec", "ellipticity", "sky", "n_stars", "n_matched", "limit_mag_5sigma")


def list_quality(
    space: Workspace, collection: str, product: str = "solutions", pattern: str = "*", everything: bool = False
) -> pd.DataFrame:
    """QC1 parameters, one row per partition (and unit) whose key matches a pattern, one column per parameter.

    Raises `BadInput` for a product of which none are kept, `NotFound` where there is none yet.
    """
    if product not in JUDGED:
        raise BadInput(f"no QC1 parameters are kept of {product!r}; there are those of: {', '.join(sorted(JUDGED))}")
    rows = [row for row in space.ledger.quality(collection, product) if fnmatchcase(row.partition, pattern)]
    if not rows:
        raise NotFound(f"no QC1 parameters of {product} match {pattern!r}; `lap ls {product}` shows what is made")
    wide: dict[tuple[str, str], dict[str, object]] = {}
    for row in rows:
        mine = wide.setdefault((row.partition, row.unit), {"partition": row.partition, "unit": row.unit})
        mine[row.name] = row.text or row.value
    table = pd.DataFrame([wide[key] for key in sorted(wide)])
    first = [name for name in FIRST.get(product, ()) if name in table]
    rest = sorted(set(table.columns) - {"partition", "unit", *first}) if everything or not first else []
    keys = ["partition", "unit"] if table.unit.any() else ["partition"]
    return table[[*keys, *first, *rest]]


def draw_exposure(space: Workspace, collection: str, exposure: str, colour: str = "fwhm_arcsec") -> bytes:
    """The focal plane of an exposure as PNG, chips coloured by a parameter, those that failed in red (LV-12).

    Raises `BadInput` for another parameter, `NotFound` where the exposure has no solution.
    """
    if colour not in COLOURS:
        raise BadInput(f"chips are coloured by one of {', '.join(COLOURS)}, not {colour!r}")
    data_id = DataId(home_of(collection, "solutions"), "solutions", exposure)
    pin = space.repo.pin(data_id)
    if pin is None:
        manifest = space.repo.manifest(data_id)
        raise NotFound(f"{exposure} has no solution{f': {manifest.reason}' if manifest and manifest.reason else ''}")
    document = space.repo.read_json(pin, "solution.json")
    chips = document["chips"]
    known = space.ledger.exposures([exposure])[exposure].chips
    footprints = {one.chip: one.footprint for one in known if one.footprint}
    values = {name: float(chip.get(colour) or np.nan) for name, chip in chips.items() if chip["state"] == "good"}
    counts = document["chip_counts"]
    label = f"{exposure} {document['band']}, {counts['good']} of {counts['all']} chips good\n{colour}"
    return plot_focal_plane(footprints, values, label, sorted(set(footprints) - set(values)))
