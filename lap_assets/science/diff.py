"""Difference imaging: one entry for the methods that subtract a template from a science image.

Not here: the methods themselves (`alard_lupton`, `zogy`), finding sources on the difference (`diff_sources`), making
the template (`stack`), which images are compared (`pipeline/diffs`).
"""

from lap_assets.errors import BadInput, UnprocessableData
from lap_assets.model.image import MaskedImage
from lap_assets.science.alard_lupton import subtract_alard_lupton
from lap_assets.science.difference import Difference, DiffLimits, Psf, judge_difference
from lap_assets.science.zogy import subtract_zogy

__all__ = ["DiffLimits", "Difference", "Psf", "judge_difference", "subtract_images"]

_METHODS = {"alard_lupton": subtract_alard_lupton, "zogy": subtract_zogy}


def subtract_images(
    science: MaskedImage,
    template: MaskedImage,
    psf_science: Psf,
    psf_template: Psf,
    limits: DiffLimits | None = None,
    noisecov: tuple[float, float] = (1.0, 1.0),
) -> Difference:
    """Science minus template, by the method that `limits` names.

    Parameters
    ----------
    science, template : MaskedImage
        (ny, nx) of one pixel grid, nJy, without sky.
    psf_science, psf_template : Psf
        Of the two. ZOGY rests on them; Alard–Lupton takes their widths, and passes the broader one on.
    limits : DiffLimits
    noisecov : (float, float)
        Covariance factors of science and template (`NOISECOV` of warps and stacks).

    Returns
    -------
    Difference

    Raises
    ------
    UnprocessableData
        If there is no star in a common area, or nothing usable in one of the images.
    BadInput
        If the images differ in shape or the method is unknown.
    """
    limits = limits or DiffLimits()
    if science.shape != template.shape:
        raise BadInput(f"science image of {science.shape} and template of {template.shape} pixels: not of one grid")
    if limits.method not in _METHODS:
        raise BadInput(f"no method {limits.method!r} to subtract images: one of {', '.join(sorted(_METHODS))}")
    for name, width in (("science image", psf_science.fwhm_px), ("template", psf_template.fwhm_px)):
        if not 0 < width < 100:
            raise UnprocessableData(f"the PSF of the {name} has a FWHM of {width} px: measure it again")
    return _METHODS[limits.method](science, template, psf_science, psf_template, limits, noisecov)
