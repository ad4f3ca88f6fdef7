"""Weak lensing: shapes, aperture-mass maps and the fit of a cluster."""

import dagster as dg

from lap_assets.defs.assets.stage import Stages


def build(stages: Stages) -> list[dg.AssetsDefinition]:
    """The assets of this part of the chain."""

    @stages.asset
    def shear_catalogs(context):
        """PSF-corrected shapes of background galaxies."""
        yield from context.resources.lap.make(context)

    @stages.asset
    def mass_maps(context):
        """Aperture-mass maps (E, and B as a null test) with their peaks."""
        yield from context.resources.lap.make(context)

    @stages.asset
    def mass_fits(context):
        """NFW fit of the shear profile around the highest peak."""
        yield from context.resources.lap.make(context)

    return [shear_catalogs, mass_maps, mass_fits]
