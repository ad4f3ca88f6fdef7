"""What a worker needs in memory; imported once by the fork server so that a new worker starts in milliseconds.

Holds imports only: libraries, and the modules of all stages.
"""

from importlib import import_module

import astropy.io.fits
import astropy.wcs
import galsim
import matplotlib.figure
import numba
import pandas
import pyarrow.parquet
import scipy.fft
import scipy.ndimage
import scipy.optimize
import scipy.spatial
import sep

from lap_assets.pipeline.stages import STAGES

for _module in sorted({stage.module for stage in STAGES.values()}):
    import_module(f"lap_assets.pipeline.{_module}")

__all__ = ["astropy", "galsim", "matplotlib", "numba", "pandas", "pyarrow", "scipy", "sep"]
