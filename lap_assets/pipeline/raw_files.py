"""Reading one HDU of a file that was ingested from outside (raw or calibrated); nothing else opens such paths here.

Products of the platform are read through `Repo`; verifying files on their way in is `pipeline/ingest.py`'s.
"""

import warnings
from pathlib import Path

import numpy as np
from astropy.io import fits
from astropy.utils.exceptions import AstropyUserWarning

from lap_assets.errors import UnprocessableData


def read_frame(path: str, hdu: str) -> tuple[np.ndarray, fits.Header]:
    """Pixels (ny, nx) in the machine's byte order and header of the HDU called (or numbered) `hdu`.

    Raises
    ------
    OSError
        The file is not there or cannot be read: a later try may cure it.
    UnprocessableData
        It is no FITS file, is cut short, or lacks the HDU.
    """
    key: str | int = int(hdu) if str(hdu).isdigit() else str(hdu)
    with Path(path).open("rb") as stream, warnings.catch_warnings():
        # what is cut short raises below, with a reason
        warnings.filterwarnings("ignore", message="File may have been truncated", category=AstropyUserWarning)
        try:
            with fits.open(stream, memmap=False) as hdus:
                data, header = hdus[key].data, hdus[key].header.copy()
        except (KeyError, IndexError):
            raise UnprocessableData(f"{path} has no HDU {hdu!r}; ingest the exposure again from its source") from None
        except (OSError, TypeError, ValueError) as error:
            text = " ".join(str(error).split())
            raise UnprocessableData(f"{path}[{hdu}] is damaged ({text}); fetch the file again and ingest it") from None
    if data is None or data.ndim != 2:
        raise UnprocessableData(f"{path}[{hdu}] holds no image; fetch the file again and ingest it")
    return np.ascontiguousarray(data, dtype=data.dtype.newbyteorder("=")), header
