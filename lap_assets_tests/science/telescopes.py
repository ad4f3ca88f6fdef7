"""A simulated telescope for tests of astrometry: true maps from pixels to the sky, star tables and catalogues.

Written out from the definitions; none of the code under test but the gnomonic projection, which has its own tests.
"""

import numpy as np
import pandas as pd
from astropy.io import fits
from astropy.wcs import WCS

from lap_assets.science.astrometry import ChipStars
from lap_assets.science.tan_sip import deproject_tan, grid_points

N, SCALE = 512, 0.4 / 3600
CRPIX = {"c0": (530.0, 530.0), "c1": (-15.0, 530.0), "c2": (530.0, -15.0), "c3": (-15.0, -15.0)}


def nominal_header(chip, ra0, dec0):
    header = fits.Header({"NAXIS": 2, "NAXIS1": N, "NAXIS2": N, "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"})
    header.update({"CRVAL1": ra0, "CRVAL2": dec0, "CRPIX1": CRPIX[chip][0], "CRPIX2": CRPIX[chip][1]})
    header.update({"CD1_1": -SCALE, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": SCALE})
    return header


class Telescope:
    """The true map of an exposure: chips misplaced and turned, cubic distortion, rotation, pointing error."""

    def __init__(self, rng, ra0, dec0, offset_arcsec=(0.0, 0.0), rotation_deg=0.0, distortion=3e-3, places=None):
        self.ra0, self.dec0, self.offset, self.k = ra0, dec0, np.array(offset_arcsec) / 3600, distortion
        self.angle = np.radians(rotation_deg)
        self.places = places or {chip: (rng.normal(0, 2.0, 2), np.radians(rng.normal(0, 0.03))) for chip in CRPIX}

    def sky(self, chip, x, y):
        (dx, dy), turn = self.places[chip]
        u, v = x - N / 2, y - N / 2
        px = N / 2 + u * np.cos(turn) - v * np.sin(turn) + dx - (CRPIX[chip][0] - 1)
        py = N / 2 + u * np.sin(turn) + v * np.cos(turn) + dy - (CRPIX[chip][1] - 1)
        p, q = -px * SCALE, py * SCALE
        r2 = (p**2 + q**2) / 0.08**2
        p, q = p * (1 + self.k * r2) + 0.02 * self.k * p * q, q * (1 + self.k * r2)
        c, s = np.cos(self.angle), np.sin(self.angle)
        return deproject_tan(c * p - s * q + self.offset[0], s * p + c * q + self.offset[1], self.ra0, self.dec0)


def observe(rng, telescope, per_chip, ref_err_mas=20.0, galaxies=40):
    """Star tables of the chips and a reference catalogue with 10 % missing, 50 extra rows and scattered positions."""
    chips, rows = {}, []
    for chip in CRPIX:
        x, y = rng.uniform(4, N - 5, (2, per_chip))
        err = 10 ** rng.uniform(-2.3, -1.2, per_chip)
        sky = np.array(telescope.sky(chip, x, y))
        rows.append(sky[:, rng.random(per_chip) < 0.9])
        fake = rng.uniform(4, N - 5, (2, galaxies))
        chips[chip] = ChipStars(
            np.concatenate([x + rng.normal(0, err), fake[0]]),
            np.concatenate([y + rng.normal(0, err), fake[1]]),
            np.concatenate([err, np.full(galaxies, 0.05)]),
            np.concatenate([1.0 / err, rng.uniform(5, 50, galaxies)]),
            nominal_header(chip, telescope.ra0, telescope.dec0),
            (N, N),
        )
    ra, dec = np.concatenate(rows, axis=1)
    extra = rng.uniform(-0.08, 0.08, (2, 50))
    ra = np.concatenate([ra, telescope.ra0 + extra[0] / np.cos(np.radians(telescope.dec0))])
    dec = np.concatenate([dec, telescope.dec0 + extra[1]])
    err = ref_err_mas / 3.6e6
    catalog = pd.DataFrame(
        {
            "ra": (ra + rng.normal(0, err, len(ra)) / np.cos(np.radians(dec))) % 360,
            "dec": dec + rng.normal(0, err, len(ra)), "pmra": 0.0, "pmdec": np.nan, "ref_epoch_yr": 2016.0,
            "ra_err_mas": ref_err_mas, "dec_err_mas": ref_err_mas,
        }
    )  # fmt: skip
    return chips, catalog


def errors_mas(telescope, solutions):
    """Rms per axis of solution minus truth over all chips, corners included."""
    x, y = grid_points((N, N), 15)
    pieces = []
    for chip, one in solutions.items():
        ra, dec = WCS(one.header).all_pix2world(x, y, 0)
        true_ra, true_dec = telescope.sky(chip, x, y)
        east = ((ra - true_ra + 180) % 360 - 180) * np.cos(np.radians(true_dec))
        pieces.append(np.stack([east, dec - true_dec], axis=1) * 3.6e6)
    return np.sqrt(np.mean(np.concatenate(pieces) ** 2, axis=0))
