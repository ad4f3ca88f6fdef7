"""What a worker needs in memory; imported once by the fork server so that a new worker starts in milliseconds.

Holds imports only.
"""

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

__all__ = ["astropy", "galsim", "matplotlib", "numba", "pandas", "pyarrow", "scipy", "sep"]
