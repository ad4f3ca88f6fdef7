"""Small products with known content for the tests of the store."""

import numpy as np
import pandas as pd
from astropy.io import fits

from lap_assets.model.ids import DataId
from lap_assets.model.image import MaskedImage
from lap_assets.model.products import get_product
from lap_assets.store.manifest import Manifest
from lap_assets.store.repo import Repo

WARP = DataId("main", "warps", "sim-1|demo.0", "03")
STACK = DataId("main", "stacks", "demo.0|r", "03")
TWIN = DataId("twin", "stacks", "demo.0|r", "03")
FINAL = DataId("main", "final_stacks", "demo.0|r", "03")


def make_header(x0: int = 0, y0: int = 0) -> fits.Header:
    """TAN header of an image whose pixel (0, 0) is pixel (x0, y0) of its cell."""
    header = fits.Header()
    header["CTYPE1"], header["CTYPE2"] = "RA---TAN", "DEC--TAN"
    header["CRVAL1"], header["CRVAL2"] = 150.0, 2.25
    header["CRPIX1"], header["CRPIX2"] = 50.5 - x0, 40.5 - y0
    header["CD1_1"], header["CD1_2"], header["CD2_1"], header["CD2_2"] = -1e-4, 0.0, 0.0, 1e-4
    header["BUNIT"] = "nJy"
    return header


def make_image(value: float = 1.0, shape: tuple[int, int] = (12, 10), x0: int = 0, y0: int = 0) -> MaskedImage:
    """An image whose planes and header all say `value`, so that a mixture of two shows."""
    header = make_header(x0, y0)
    header["VALUE"] = float(value)
    return MaskedImage(
        np.full(shape, value, np.float32),
        np.full(shape, int(value) % 30000, np.int16),
        np.full(shape, value + 1.0, np.float32),
        header,
    )


def make_stack(value: float = 1.0, **keywords) -> dict:
    """Members of a stack that all say `value`."""
    image = make_image(value, **keywords)
    image.planes["NINPUT"] = np.full(image.shape, int(value) % 30000, np.int16)
    table = pd.DataFrame({"exposure": ["sim-1", "sim-2"], "weight": [value, value], "fwhm_arcsec": [0.9, 1.1]})
    table.attrs["units"] = {"fwhm_arcsec": "arcsec"}
    return {"image.fits": image, "inputs.parquet": table}


def check_stack(repo: Repo, data_id: DataId, values: set[float]) -> float:
    """Read a stack whole and assert that it is entirely one of `values`; returns which.

    Compressed ones may differ by a 32nd of the noise and a thousandth of the variance.
    """
    image = repo.read_image(data_id, full=True)
    value = image.header["VALUE"]
    assert value in values
    expected = make_stack(value)["image.fits"]
    lossy = get_product(data_id.product).compressed
    np.testing.assert_array_equal(image.mask, expected.mask)
    np.testing.assert_allclose(image.sci, expected.sci, rtol=0, atol=lossy * (value + 1.0) ** 0.5 / 31.9)
    np.testing.assert_allclose(image.var, expected.var, rtol=lossy * 1e-3, atol=0)
    np.testing.assert_array_equal(image.planes["NINPUT"], expected.planes["NINPUT"])
    return value


def publish(repo: Repo, data_id: DataId, members: dict, **keywords) -> Manifest:
    """Publish with the facts that do not matter filled in."""
    facts = {"inputs": (), "recipe": "r", "config_sha256": "c", "code": 1, "metrics": {}} | keywords
    return repo.publish(data_id, members, **facts)
