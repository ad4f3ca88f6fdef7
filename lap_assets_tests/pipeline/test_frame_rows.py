"""Rows of FITS images: the same as astropy reads, whatever the file's format; damaged files say what to do."""

import numpy as np
import pytest
from astropy.io import fits

from lap_assets.errors import UnprocessableData
from lap_assets.pipeline.frame_rows import open_rows

IMAGE = np.random.default_rng(1).normal(2000, 30, (60, 70))


def write(path, hdu, **cards):
    primary = fits.PrimaryHDU()
    primary.header["EXPNUM"] = 7
    hdu.header.update(cards)
    fits.HDUList([primary, hdu]).writeto(path)
    return str(path)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("make", [fits.ImageHDU, fits.CompImageHDU])
def test_rows_are_those_that_astropy_reads(tmp_path, dtype, make):
    image = (IMAGE / (10 if dtype == "u1" else 1)).astype(dtype)
    more = (
        {"quantize_level": 0.0, "compression_type": "GZIP_2"} if make is fits.CompImageHDU and dtype[0] == "f" else {}
    )
    path = write(tmp_path / "a.fits", make(image, name="C1", **more), GAINA=1.5)
    frame = open_rows(path, "C1")
    assert frame.shape == image.shape and frame.value("GAINA") == 1.5 and frame.value("EXPNUM") == 7
    assert frame.value("NONE") is None and frame.value("") is None
    rows = frame.read(13, 41)
    assert np.array_equal(rows, image[13:41]) and rows.dtype.isnative
    assert np.array_equal(open_rows(path, "1").read(0, 60), image)


def test_header_of_a_compressed_image_is_that_of_the_image(tmp_path):
    image = IMAGE.astype(np.uint16)
    path = write(tmp_path / "a.fits", fits.CompImageHDU(image, name="C1"), DATASEC="[1:70,1:60]", TEMPER=-90.0)
    header = open_rows(path, "C1").header
    assert (header["NAXIS1"], header["NAXIS2"], header["BITPIX"]) == (70, 60, 16)
    assert header["DATASEC"] == "[1:70,1:60]" and header["TEMPER"] == -90.0
    assert not [key for key in header if key.startswith(("ZTILE", "TFORM", "ZNAXIS"))]


@pytest.mark.parametrize("tiles", [(35, 20), (70, 7)])
def test_tiles_that_are_not_rows_are_read_too(tmp_path, tiles):
    image = IMAGE.astype(np.int16)
    hdu = fits.CompImageHDU(image, name="C1", compression_type="RICE_1", tile_shape=tiles[::-1])
    assert np.array_equal(open_rows(write(tmp_path / "a.fits", hdu), "C1").read(5, 30), image[5:30])


def test_scaled_values_are_physical_ones(tmp_path):
    hdu = fits.ImageHDU(IMAGE.astype(np.float32), name="C1")
    hdu.scale("int16", bscale=0.5, bzero=2000.0)
    rows = open_rows(write(tmp_path / "a.fits", hdu), "C1").read(0, 60)
    assert np.abs(rows - IMAGE).max() < 0.51 and rows.dtype == np.float32


def test_damaged_files_are_named(tmp_path):
    path = write(tmp_path / "a.fits", fits.ImageHDU(IMAGE.astype(np.uint16), name="C1"))
    with pytest.raises(UnprocessableData, match=r"has no HDU 'C9'; ingest"):
        open_rows(path, "C9")
    with pytest.raises(UnprocessableData, match="holds no image"):
        open_rows(path, "0")
    (tmp_path / "short.fits").write_bytes((tmp_path / "a.fits").read_bytes()[:9000])
    short = open_rows(str(tmp_path / "short.fits"), "C1")
    with pytest.raises(UnprocessableData, match=r"short.fits\[C1\] is cut short; fetch"):
        short.read(0, 60)
    (tmp_path / "text.fits").write_text("no FITS file\n" * 300)
    with pytest.raises(UnprocessableData, match="is damaged"):
        open_rows(str(tmp_path / "text.fits"), "C1")
    with pytest.raises(FileNotFoundError):
        open_rows(str(tmp_path / "gone.fits"), "C1")
    with pytest.raises(ValueError, match="rows 50:70"):
        open_rows(path, "C1").read(50, 70)


def test_a_compressed_file_cut_short_or_with_broken_rows_is_refused(tmp_path):
    path = write(tmp_path / "a.fits", fits.CompImageHDU(IMAGE.astype(np.uint16), name="C1"))
    content = (tmp_path / "a.fits").read_bytes()
    frame = open_rows(path, "C1")
    (tmp_path / "a.fits").write_bytes(content[: len(content) - 2880 * 2])
    with pytest.raises(UnprocessableData, match="cut short"):
        frame.read(0, 60)
