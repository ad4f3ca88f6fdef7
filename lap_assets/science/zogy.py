"""Difference by the optimal statistic for two images with known PSFs (Zackay, Ofek & Gal-Yam 2016, ApJ 830, 27: ZOGY).

Neither image is brought to the other's PSF: both are filtered so that noise stays white and a new source has the best
contrast possible. PSFs and noise of the two images are those of cells of some 400 px. Here: the difference D (eq. 13),
its PSF (14), the score S (12) and S_corr with photon and astrometric noise (25–30). Not here: the stars that both
images show (`star_comparison`), masks and sky, which both methods share.
"""

from itertools import product

import numpy as np
from numba import njit
from scipy import fft

from lap_assets.model.image import NO_WEIGHT, UNUSABLE, Mask, MaskedImage
from lap_assets.science.block_transform import BlockGrid, lay_blocks, transfer_functions
from lap_assets.science.convolved_variance import halve_variance, smooth_halved
from lap_assets.science.decorrelation import (
    NoiseMix,
    mean_over_frequencies,
    measure_mix,
    warp_correlation,
    warp_power,
)
from lap_assets.science.difference import Difference, DiffLimits, Psf
from lap_assets.science.difference_masks import fill_masked, find_bad, join_flags, merge_masks
from lap_assets.science.difference_sky import THIN, choose_sky, fit_sky, measure_chi, order_of, terms_along_row
from lap_assets.science.psf_grid import PsfGrid, lay_nodes
from lap_assets.science.psf_wings import smooth_wings
from lap_assets.science.star_comparison import compare_stars, judge_stars

_HARD = int(NO_WEIGHT)
_UNUSABLE = int(UNUSABLE)
_NO_DATA = int(Mask.NO_DATA)
_MISSING = int(Mask.NO_DATA | Mask.EDGE)
_ABOUT = 160  # px of a block: what is done to it stays in the processor's cache
_CELL_PX = 400  # about: blocks that share one pair of PSFs
_FEW = 8  # rows and columns from one pixel to the next of those that tell the noise of a cell
_GRID = 72  # px of the transform on which gains are summed and filters looked at
_KERNEL_RADIUS = 12  # px of what is followed of a filter for masks and variance
_TOLERANCE = 1.5  # of holes, over that for kernels: a filter of S is as wide as a source
# a delta function of this flux is mixed into both PSFs: frequencies that neither passes are subtracted as they are
_FLOOR = 1e-4


def subtract_zogy(
    science: MaskedImage, template: MaskedImage, psf_science: Psf, psf_template: Psf, limits: DiffLimits,
    noisecov: tuple[float, float],
) -> Difference:  # fmt: skip
    """ZOGY's difference, brought to nJy of the science image, with its PSF and S_corr.

    The template is multiplied by the flux ratio of matched stars and moved by their mean offset first; a polynomial is
    taken off the sky. Parameters and errors as of `diff.subtract_images`.
    """
    psfs = smooth_wings(psf_science), smooth_wings(psf_template)
    bad = [find_bad(one.sci, one.mask, one.var, _HARD) for one in (science, template)]
    # holes of either image are filled in both: what is wrong with the filling is much the same in both, then
    new, old = fill_masked(bad[0] | bad[1], science.sci, template.sci)
    stars = compare_stars(science, template, (new, old), psfs, limits.kernel)
    halo = 2 * int(np.clip(np.ceil(2.0 * max(psf.fwhm_px for psf in psfs)), 8, 20))
    grid = lay_blocks(science.shape, halo, _ABOUT)
    cells = grid.join(max(round(_CELL_PX / grid.inner), 1))
    mix = measure_mix(
        cells, science.var[::_FEW, ::_FEW], template.var[::_FEW, ::_FEW] * np.float32(stars.ratio**2), noisecov, _FEW
    )
    pictures = _central_filters(psfs, grid.shape, mix)
    sharper = int(psf_science.fwhm_px >= psf_template.fwhm_px)
    mask = _flag_pixels((science, template), bad, pictures, sharper, max(psf.fwhm_px for psf in psfs), limits)
    image = MaskedImage(np.empty_like(new), mask, np.empty_like(new))
    halved = [halve_variance(one.var, lost) for one, lost in zip((science, template), bad, strict=True)]
    smooth = [smooth_halved(halved[k % 2], one) for k, one in enumerate(pictures)]
    columns, rows = cells.centres()
    x, y = np.tile(columns, cells.n_rows), np.repeat(rows, cells.n_columns)
    stamps = [psf.evaluate_many(x, y) for psf in psfs]
    gains = _measure_gains(stamps, cells, mix, noisecov)
    score, slopes = _filter_blocks(grid, cells, (new, old), stamps, mix, stars, image.sci)
    # the stars' wings, wider in one image, would pass for sky before the subtraction; the deeper one shows most sources
    deep, other = (science, template) if mix.typical[0] <= mix.typical[1] else (template, science)
    sky = choose_sky(MaskedImage(image.sci, mask, other.var), deep)
    surface = fit_sky(image.sci[THIN], sky, new.shape, limits.kernel.background_order)
    _finish_rows(cells, gains, stars, surface, smooth, slopes, image, score)
    spread = image.var[THIN][sky][::_FEW]
    level = np.median(spread) if spread.size else sum(mix.typical)
    factor = float((mix.typical[0] * noisecov[0] + mix.typical[1] * noisecov[1]) / level)
    used, kept = (
        judge_stars(image, science, stars.x[one], stars.y[one], stars.half) for one in (stars.used, stars.left_out)
    )
    return Difference(
        image=image,
        method="zogy",
        convolved="both",
        psf=_difference_psf(psfs, cells, mix),
        decorrelated=True,
        kernel=pictures[sharper],
        kernel_sum=stars.ratio,
        n_matched=int(stars.x.size),
        n_stamps=int(stars.used.sum()),
        n_rejected=int((~stars.used & ~stars.left_out).sum()),
        stamp_chi2=used,
        left_out_chi2=kept,
        sky_chi=measure_chi(image, sky),
        correlation=warp_correlation(11, factor),
        noisecov=factor,
        astrometric_offset_px=stars.offset_px,
        score=score,
    )


def _flag_pixels(images, bad, pictures, sharper: int, fwhm_px: float, limits: DiffLimits) -> np.ndarray:
    """Mask of the difference: gaps of either image, and what is wrong with the sharper one, as far as they reach."""
    sharp, broad = images[sharper], images[1 - sharper]
    # the broad image is convolved too: its gaps count, what is filled from beside it does not
    lost = join_flags(bad[sharper], broad.mask, np.int16(_MISSING))
    # what D's filters do at frequencies that no PSF passes no source shows: S's tell how far a hole reaches
    reach = _cut_middle(pictures[2 + sharper], 1.5 * fwhm_px)
    return merge_masks(sharp, broad, lost, pictures[sharper], _TOLERANCE * limits.kernel.max_bad_weight, reach)


def _cut_middle(kernel: np.ndarray, radius: float) -> np.ndarray:
    """A kernel as far as `radius` px to each side."""
    edge = max(len(kernel) // 2 - int(np.ceil(radius)), 0)
    return kernel[edge : len(kernel) - edge, edge : len(kernel) - edge]


def _crop(stamps: np.ndarray, side: int) -> np.ndarray:
    """Stamps (n, s, s) no larger than a transform of `side` px."""
    excess = max(0, (stamps.shape[-1] - side + 2) // 2)
    return stamps[:, excess : stamps.shape[-1] - excess, excess : stamps.shape[-1] - excess]


def _transform_psfs(psf: Psf, x: np.ndarray, y: np.ndarray, side: int) -> np.ndarray:
    """(n, side, side // 2 + 1) transforms of PSFs, with the floor mixed in."""
    return _transform_stamps(psf.evaluate_many(x, y), side)


def _transform_stamps(stamps: np.ndarray, side: int) -> np.ndarray:
    stamps = _crop(stamps, side) / (1.0 + _FLOOR)
    stamps[:, stamps.shape[1] // 2, stamps.shape[2] // 2] += _FLOOR / (1.0 + _FLOOR)
    return transfer_functions(stamps, side)


def _central_filters(psfs, shape, mix: NoiseMix) -> tuple[np.ndarray, ...]:
    """Filters of science and template for D, then for S, in the middle of the image, as pictures."""
    at = np.array([0.5 * shape[1]]), np.array([0.5 * shape[0]])
    transfers = [_transform_psfs(psf, *at, _GRID)[0].astype(np.complex128) for psf in psfs]
    spectra = _filter_spectra(*transfers, np.median(mix.broad), np.median(mix.sharp))
    place = np.arange(-_KERNEL_RADIUS, _KERNEL_RADIUS + 1)
    return tuple(fft.irfft2(one, (_GRID, _GRID))[place[:, None], place[None, :]] for one in spectra)


def _filter_spectra(new, old, noise_new, noise_old) -> tuple[np.ndarray, ...]:
    """Filters of science and template: for D of unit flux, and for S as a flux still to be normalised."""
    power_new, power_old = np.abs(new) ** 2, np.abs(old) ** 2
    total = noise_new * power_old + noise_old * power_new
    root = np.sqrt((noise_new + noise_old) / total)
    return old * root, new * root, new.conj() * power_old / total, old.conj() * power_new / total


def _measure_gains(stamps, cells: BlockGrid, mix: NoiseMix, noisecov: tuple[float, float]) -> np.ndarray:
    """(n_rows, n_columns, 5) of cells: gains of variance of the two images in D, the same in S, and what S makes of a
    flat sky.
    """
    new, old = (_transform_stamps(one, _GRID).astype(np.complex128) for one in stamps)
    spectra = _filter_spectra(new, old, *(one.reshape(-1, 1, 1) for one in (mix.broad, mix.sharp)))
    shapes = [warp_power(_GRID, factor) for factor in noisecov] * 2
    gains = [mean_over_frequencies(np.abs(one) ** 2 * shape, _GRID) for one, shape in zip(spectra, shapes, strict=True)]
    gains.append(spectra[2][:, 0, 0].real / spectra[0][:, 0, 0].real)
    return np.stack(gains, axis=1).reshape(cells.n_rows, cells.n_columns, 5)


def _filter_blocks(grid: BlockGrid, cells: BlockGrid, planes, stamps, mix: NoiseMix, stars, sci: np.ndarray):
    """Fill `sci` with D; S, and the square of the slope of the template's share of it (of 2×2 pixels)."""
    score = np.empty(grid.shape, np.float32)
    # a star's slope in S is that of an image filtered twice: half as many pixels hold it
    coarse = BlockGrid(((grid.shape[0] + 1) // 2, (grid.shape[1] + 1) // 2), grid.side // 2, grid.halo // 2)
    slopes = np.empty(coarse.shape, np.float32)
    down, across = _shift_phases(grid.side, stars.offset_px)
    filters = np.empty((4, grid.side, grid.side // 2 + 1), np.complex64)
    block = np.empty((2, grid.side, grid.side), np.float32)
    times = cells.inner // grid.inner
    for row, column in np.ndindex(cells.n_rows, cells.n_columns):
        if column == 0:
            here = slice(row * cells.n_columns, (row + 1) * cells.n_columns)
            transfers = [_transform_stamps(one[here], grid.side) for one in stamps]
        noise = np.float32(mix.broad[row, column]), np.float32(mix.sharp[row, column])
        new, old = (one[column] for one in transfers)
        _make_filters(new, old, *noise, down * np.float32(stars.ratio), across, filters)
        below, right = min(times * (row + 1), grid.n_rows), min(times * (column + 1), grid.n_columns)
        # one block at a time: spectra and filters stay in the cache
        for one, two in product(range(times * row, below), range(times * column, right)):
            grid.cut(planes, one, two, block)
            spectra = fft.rfft2(block, workers=1)
            gradient = _combine(spectra.view(np.float32), filters.view(np.float32), coarse.side).view(np.complex64)
            grid.paste(_invert(spectra, grid.side), (sci, score), one, two)
            _paste_slopes(_invert(gradient, coarse.side), slopes, one, two, coarse.inner, coarse.halo)
    return score, slopes


def _finish_rows(cells: BlockGrid, gains, stars, surface, smooth, slopes, image, score) -> None:
    """Take the sky off D and S, in place; variance of D; S becomes S_corr."""
    across = terms_along_row(cells.shape, order_of(surface))
    # the template's variance is still that before its flux was scaled
    gains[:, :, [1, 3]] *= stars.ratio**2
    for row in range(cells.n_rows):
        band = slice(*cells.bounds(row))
        _normalise(
            slopes, *smooth, gains[row].astype(np.float32), cells.inner, band.start, cells.shape[0],
            np.float32(stars.scatter_px**2), surface, across, image.mask[band], image.sci[band], image.var[band],
            score[band],
        )  # fmt: skip


def _invert(spectra: np.ndarray, side: int) -> np.ndarray:
    return fft.irfft2(spectra, (side, side), overwrite_x=True, workers=1)


def _shift_phases(side: int, offset: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Factors along v and u that move a block by (dx, dy) px."""
    v, u = np.fft.fftfreq(side), np.fft.rfftfreq(side)
    return np.exp(-2j * np.pi * v * offset[1]).astype(np.complex64), np.exp(-2j * np.pi * u * offset[0]).astype(
        np.complex64
    )


def _difference_psf(psfs, grid: BlockGrid, mix: NoiseMix) -> PsfGrid:
    """PSF of D at nodes (eq. 14), with the noise of the block that each lies in."""
    nodes_x, nodes_y = lay_nodes(grid.shape)
    x, y = (plane.ravel() for plane in np.meshgrid(nodes_x, nodes_y))
    width = max(psf.fwhm_px for psf in psfs)
    size = max(25, 2 * int(np.ceil(3.5 * width)) + 1)
    side = fft.next_fast_len(2 * size, real=True)
    new, old = (_transform_psfs(psf, x, y, side).astype(np.complex128) for psf in psfs)
    row = np.minimum((y / grid.inner).astype(int), grid.n_rows - 1)
    column = np.minimum((x / grid.inner).astype(int), grid.n_columns - 1)
    spectra = _filter_spectra(new, old, *(one[row, column][:, None, None] for one in (mix.broad, mix.sharp)))
    place = np.arange(-(size // 2), size // 2 + 1)
    stamps = fft.irfft2(spectra[0] * new, (side, side), workers=1)[:, place[:, None], place[None, :]]
    return PsfGrid(nodes_x, nodes_y, stamps.reshape(len(nodes_y), len(nodes_x), size, size).astype(np.float32))


@njit(cache=True, nogil=True)
def _make_filters(psf_new, psf_old, noise_new, noise_old, down, across, filters):
    """Filters of the science image and the template for D, then for S; the template's move it by (down, across)."""
    level = noise_new + noise_old
    for v in range(psf_new.shape[0]):
        turn = down[v]
        for u in range(psf_new.shape[1]):
            p, q, phase = psf_new[v, u], psf_old[v, u], turn * across[u]
            power_p = p.real * p.real + p.imag * p.imag
            power_q = q.real * q.real + q.imag * q.imag
            inverse = np.float32(1) / (noise_new * power_q + noise_old * power_p)
            root = np.sqrt(level * inverse)
            filters[0, v, u] = q * root
            filters[1, v, u] = p * phase * root
            filters[2, v, u] = p.conjugate() * (power_q * inverse)
            filters[3, v, u] = q.conjugate() * phase * (power_p * inverse)


@njit(cache=True, nogil=True)
def _mix_lines(new, old, one, two, three, four, share):
    """A row of two spectra and of four filters, real and imaginary parts in turn: numba's complex numbers run in no
    vector registers.
    """
    for k in range(new.size // 2):
        a, b = 2 * k, 2 * k + 1
        n, m, t, s = new[a], new[b], old[a], old[b]
        share[a], share[b] = four[a] * t - four[b] * s, four[a] * s + four[b] * t
        new[a] = one[a] * n - one[b] * m - (two[a] * t - two[b] * s)
        new[b] = one[a] * m + one[b] * n - (two[a] * s + two[b] * t)
        old[a] = three[a] * n - three[b] * m - share[a]
        old[b] = three[a] * m + three[b] * n - share[b]


@njit(cache=True, nogil=True)
def _combine(spectra, filters, tall):
    """Spectra (2, side, 2 · half) of a block in place: that of the science image becomes D, that of the template S.

    Returns those (2, tall, 2 · (tall // 2 + 1)) of the slopes of the template's share of S along x and y, on half as
    many pixels. All of real and imaginary parts in turn.
    """
    side = spectra.shape[1]
    half = tall // 2 + 1
    slopes = np.empty((2, tall, 2 * half), np.float32)
    share = np.empty(spectra.shape[2], np.float32)
    unit = np.float32(0.25 * 2.0 * np.pi / side)
    for v in range(side):
        _mix_lines(spectra[0, v], spectra[1, v], filters[0, v], filters[1, v], filters[2, v], filters[3, v], share)
        # row of the spectrum of half as many pixels
        if v < (tall + 1) // 2:
            row, rate = v, unit * np.float32(v)
        elif v >= side - tall // 2:
            row, rate = v - (side - tall), unit * np.float32(v - side)
        else:
            continue
        along, up = slopes[0, row], slopes[1, row]
        for u in range(half):
            step = unit * np.float32(u)
            along[2 * u], along[2 * u + 1] = -share[2 * u + 1] * step, share[2 * u] * step
            up[2 * u], up[2 * u + 1] = -share[2 * u + 1] * rate, share[2 * u] * rate
    return slopes


@njit(cache=True, nogil=True)
def _paste_slopes(steep, slopes, row, column, inner, halo):
    """Squares of the slopes (2, side, side) of a block, into their plane."""
    ny, nx = slopes.shape
    left = column * inner
    for y in range(row * inner, min((row + 1) * inner, ny)):
        along, up, line = steep[0, y - row * inner + halo], steep[1, y - row * inner + halo], slopes[y]
        for x in range(left, min(left + inner, nx)):
            one, two = along[x - left + halo], up[x - left + halo]
            line[x] = one * one + two * two


@njit(cache=True, nogil=True)
def _normalise(
    slopes, diff_new, diff_old, score_new, score_old, gains, inner, first, ny, far, surface, across, mask, sci,
    variance, score,
):  # fmt: skip
    """Sky off D and S; variance of D; S over its noise: photons, and slopes of stars times their astrometric scatter.

    Rows from `first` on; smoothed variances and slopes are of 2×2 pixels. Zero where there is no data.
    """
    rows, nx = variance.shape
    columns = diff_new.shape[1]
    zero, big = np.float32(0), np.float32(np.inf)
    spread, scale = np.zeros(2 * columns, np.float32), np.zeros(2 * columns, np.float32)
    sky, share = np.empty(nx, np.float32), np.empty(2 * columns, np.float32)
    for y in range(rows):
        at = (first + y) // 2
        if y % 2 == 0:
            one, two, three, four, steep = diff_new[at], diff_old[at], score_new[at], score_old[at], slopes[at]
            for block in range(gains.shape[0]):
                a, b, c, d, flat = gains[block]
                for x in range(block * inner // 2, min((block + 1) * inner // 2, columns)):
                    wide, noise = a * one[x] + b * two[x], c * three[x] + d * four[x] + far * steep[x]
                    known = (wide > zero) & (wide < big) & (noise > zero)
                    spread[2 * x] = spread[2 * x + 1] = wide if known else zero
                    scale[2 * x] = scale[2 * x + 1] = np.float32(1) / np.sqrt(noise) if known else zero
                    share[2 * x] = share[2 * x + 1] = flat
        v = (first + y - 0.5 * (ny - 1)) / (0.5 * ny)
        sky[:] = 0
        term, total = 0, 0
        while term < surface.size:
            for j in range(total + 1):
                factor, line = np.float32(surface[term] * v**j), across[term]
                for x in range(nx):
                    sky[x] += factor * line[x]
                term += 1
            total += 1
        flags, value, width, snr = mask[y], sci[y], variance[y], score[y]
        for x in range(nx):
            known = (flags[x] & _NO_DATA == 0) & (spread[x] > zero) & (abs(value[x]) < big)
            value[x] = value[x] - sky[x] if known else zero
            width[x] = spread[x] if known else zero
            fine = known & (flags[x] & _UNUSABLE == 0)
            snr[x] = (snr[x] - share[x] * sky[x]) * scale[x] if fine else zero
            flags[x] |= np.int16(0) if known else np.int16(_NO_DATA)
