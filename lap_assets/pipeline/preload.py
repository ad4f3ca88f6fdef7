"""What a worker needs in memory; imported once by the fork server so that a new worker starts in milliseconds.

Holds imports only: libraries, and the modules of all stages. What they leave is never garbage: none is looked for
meanwhile (a sixth of the time), nor later among it, which would copy the memory that workers share.
"""

import gc
from importlib import import_module

from lap_assets.pipeline.stages import STAGES

LIBRARIES = (
    "astropy.io.fits",
    "astropy.wcs",
    "galsim",
    "matplotlib.figure",
    "numba",
    "pandas",
    "pyarrow.parquet",
    "scipy.fft",
    "scipy.ndimage",
    "scipy.optimize",
    "scipy.spatial",
    "sep",
)

gc.disable()
for _module in (*LIBRARIES, *sorted({f"lap_assets.pipeline.{stage.module}" for stage in STAGES.values()})):
    import_module(_module)
gc.freeze()
gc.enable()
