"""Pictures of images as PNG bytes: small grey thumbnails for manifests and colour pictures of three bands.

Arrays in, bytes out, numpy and pillow only; the bytes depend on the pixels alone (no clock, no software name in the
file). North is up and east to the left, as skycells lie (row 0 of an image is the bottom row of its picture). Plots
with axes are `plots.py`'s.
"""

from io import BytesIO

import numpy as np
from PIL import Image

from lap_assets.model.image import Mask

MAX_THUMBNAIL_BYTES = 10_000
_SAMPLED_PX = 800  # pixels along the shorter side from which a thumbnail is made
_PICTURE_LEVELS = (64, 32, 16, 8, 4)  # grey levels tried until a thumbnail is small enough


def thumbnail(sci: np.ndarray, mask: np.ndarray | None = None, size_px: int = 160) -> bytes:
    """A grey picture of an image, asinh stretch, as a PNG of at most 10 kB.

    Parameters
    ----------
    sci : (ny, nx) array
        Any unit; not finite values are shown black.
    mask : (ny, nx) int16 or bool array, optional
        Pixels with `Mask.NO_DATA` (or True) are shown black.
    size_px : int
        Longest side of the picture; images are never enlarged.
    """
    # every pixel of a large image would cost more than it shows
    stride = max(1, min(sci.shape) // _SAMPLED_PX)
    seen, blank = sci[::stride, ::stride], None if mask is None else mask[::stride, ::stride]
    valid = np.isfinite(seen) & ~_blank_pixels(blank, seen.shape)
    small, filled = shrink_image(seen, valid, size_px)
    grey = stretch_asinh(small, filled)[::-1]
    for levels in _PICTURE_LEVELS:
        data = _encode_grey(grey, levels)
        if len(data) <= MAX_THUMBNAIL_BYTES:
            return data
    # noise that cannot be packed: a smaller picture always can
    return thumbnail(sci, mask, max(size_px // 2, 16))


def shrink_image(sci: np.ndarray, valid: np.ndarray, size_px: int) -> tuple[np.ndarray, np.ndarray]:
    """Average blocks of pixels until the longest side is at most `size_px`.

    Returns the (my, mx) float64 means of the valid pixels of each block (0 where none) and a bool array of blocks at
    least half of whose pixels are valid. Rows and columns that fill no complete block are left out.
    """
    ny, nx = sci.shape
    step = max(1, -(-max(ny, nx) // size_px))
    my, mx = max(1, ny // step), max(1, nx // step)
    sy, sx = min(step, ny), min(step, nx)
    blocks = (my, sy, mx, sx)
    good = valid[: my * sy, : mx * sx].reshape(blocks)
    values = np.where(good, sci[: my * sy, : mx * sx].reshape(blocks), 0.0)
    count = good.sum(axis=(1, 3))
    mean = values.sum(axis=(1, 3), dtype=np.float64) / np.maximum(count, 1)
    return mean, 2 * count >= sy * sx


def stretch_asinh(image: np.ndarray, valid: np.ndarray, softening: float = 3.0) -> np.ndarray:
    """Map an image to [0, 1]: linear within `softening` sigma of the sky, logarithmic above; 0 where not valid.

    Black is 2 sigma below the median and white the 99.7 percentile (at least 20 sigma above), so that a blank field
    stays grey.
    """
    if not valid.any():
        return np.zeros(image.shape)
    values = image[valid]
    middle = float(np.median(values))
    sigma = 1.4826 * float(np.median(np.abs(values - middle)))
    if sigma <= 0:
        sigma = float(values.std()) or 1.0
    top = max((float(np.percentile(values, 99.7)) - middle) / sigma, 20.0)
    scaled = np.arcsinh((image - middle) / (softening * sigma))
    low, high = np.arcsinh(-2.0 / softening), np.arcsinh(top / softening)
    return np.where(valid, np.clip((scaled - low) / (high - low), 0.0, 1.0), 0.0)


def _blank_pixels(mask: np.ndarray | None, shape: tuple[int, int]) -> np.ndarray:
    if mask is None:
        return np.zeros(shape, bool)
    return mask if mask.dtype == bool else (mask & int(Mask.NO_DATA)) != 0


def _encode_grey(grey: np.ndarray, levels: int) -> bytes:
    """PNG bytes of a [0, 1] image in `levels` shades (a palette packs several pixels into a byte)."""
    index = np.minimum((grey * levels).astype(np.uint8), levels - 1)
    picture = Image.fromarray(index).convert("L")
    picture = Image.frombytes("P", index.shape[::-1], index.tobytes())
    shades = np.repeat((np.arange(levels) * 255 // (levels - 1)).astype(np.uint8), 3)
    picture.putpalette(shades.tobytes())
    buffer = BytesIO()
    bits = int(np.ceil(np.log2(levels)))
    picture.save(buffer, format="PNG", compress_level=9, bits=bits if bits in (1, 2, 4) else 8)
    return buffer.getvalue()


def colour_picture(
    blue: np.ndarray,
    green: np.ndarray,
    red: np.ndarray,
    size_px: int | None = None,
    softening: float = 3.0,
    max_bytes: int | None = None,
) -> bytes:
    """A colour picture of three bands of one shape, as PNG; Lupton et al. (2004): one stretch of the mean intensity.

    Parameters
    ----------
    blue, green, red : (ny, nx) arrays
        In one flux unit (nJy); not finite values, and pixels without data (exactly 0) in any band, are black.
    size_px : int, optional
        Longest side; images are shrunk by averaging blocks, never enlarged.
    softening : float
        Intensity, in units of its noise, below which the picture is linear.
    max_bytes : int, optional
        The picture is reduced to a palette of ever fewer colours, then made smaller, until it is no larger.
    """
    bands = [np.asarray(band, dtype=np.float64) for band in (red, green, blue)]
    valid = np.logical_and.reduce([np.isfinite(band) & (band != 0) for band in bands])
    if size_px:
        shrunk = [shrink_image(np.where(valid, band, 0.0), valid, size_px) for band in bands]
        bands, valid = [band for band, _ in shrunk], shrunk[0][1]
    rgb = (compose_lupton(bands, valid, softening) * 255.0 + 0.5).astype(np.uint8)[::-1]
    picture = Image.frombytes("RGB", rgb.shape[1::-1], np.ascontiguousarray(rgb).tobytes())
    return encode_picture(picture, max_bytes)


def compose_lupton(bands: list[np.ndarray], valid: np.ndarray, softening: float = 3.0) -> np.ndarray:
    """(ny, nx, 3) floats 0..1: each band times F(I) / I with F an arcsinh (Lupton et al. 2004, eqs. 1 and 2).

    Where a band would exceed 1 all three are divided by the largest, which keeps the colour of bright cores. White is
    the 99.8 percentile of the intensity, but at least 60 times its noise, so that a blank field stays dark.
    """
    if not valid.any():
        return np.zeros((*valid.shape, 3))
    scaled = balance_bands(bands, valid)
    intensity = sum(scaled) / 3.0
    sigma = 1.4826 * float(np.median(np.abs(intensity[valid]))) or 1.0
    soft = softening * sigma
    top = max(float(np.percentile(intensity[valid], 99.8)), 60.0 * sigma)
    # below the noise F(I) / I is constant
    positive = np.maximum(intensity, 1e-3 * soft)
    factor = np.arcsinh(positive / soft) / (np.arcsinh(top / soft) * positive)
    # the zero of the sky is a dark grey, not black
    rgb = np.stack([np.where(valid, band * factor + 0.08, 0.0) for band in scaled], axis=-1)
    rgb = np.maximum(rgb, 0.0)
    return rgb / np.maximum(rgb.max(axis=-1, keepdims=True), 1.0)


def balance_bands(bands: list[np.ndarray], valid: np.ndarray) -> list[np.ndarray]:
    """Take the sky off each band and scale it so that the bright pixels of the field are white on average."""
    balanced = []
    for band in bands:
        values = band[valid]
        sky = float(np.median(values))
        bright = np.sort(values)[-max(values.size // 50, 1) :]
        level = float(np.median(bright)) - sky
        balanced.append((band - sky) / (level if level > 0 else 1.0))
    return balanced


def encode_picture(picture: Image.Image, max_bytes: int | None = None) -> bytes:
    """PNG bytes of an RGB picture; with `max_bytes`, in fewer colours and then smaller until it fits."""
    if max_bytes is None:
        return _save_png(picture)
    for colours in (128, 64, 48):
        few = picture.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        data = _save_png(few)
        if len(data) <= max_bytes:
            return data
    width, height = (max(side * 4 // 5, 8) for side in picture.size)
    return encode_picture(picture.resize((width, height), Image.Resampling.BOX), max_bytes)


def _save_png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, format="PNG", compress_level=9)
    return buffer.getvalue()
