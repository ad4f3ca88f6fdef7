"""Combination of warps to one stack: weights, rejection of artefacts, streaming in bands of rows, and the arithmetic
that takes inputs out again.

Here: what the numbers mean and in which order the rows go through the compiled loops (`stack_kernels`,
`stack_rejection`). Not here: which warps enter (`pipeline/stacks`, `pipeline/final_stacks`), levels and positions that
do not agree (`stack_levels`, `stack_alignment`), the PSF of the result (`stack_psf`), resampling (`warp`), streak masks
(`streaks`).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lap_assets.model.image import NO_WEIGHT, MaskedImage
from lap_assets.science.psf_grid import PsfGrid
from lap_assets.science.psf_matching import choose_target, matching_kernels, measure_width
from lap_assets.science.stack_kernels import merge_rows, sorting_network, take_plane_off
from lap_assets.science.stack_rejection import GROWN, grow_rows, judge_rows, mark_rows, settle_rows

_HARD = int(NO_WEIGHT)
INPUTS_PER_PLANE = 31  # bits of an int32 that are used
_EDGE_SIGMA = 1.0  # deviation at which the direct neighbours of all that is rejected go too
_GROW_ROUNDS = 3
_MANY_NODES = 6
_RING_PX = 4  # of `stack_rejection`: how far around a pixel a deviation is compared with that of its surroundings

# (input, first row, last row + 1, sci, mask, var): fills the three (rows, nx) arrays
ReadRows = Callable[[int, int, int, np.ndarray, np.ndarray, np.ndarray], None]


@dataclass(frozen=True)
class ClipLimits:
    """When an input pixel is rejected.

    Attributes
    ----------
    sigma : float
        Deviation from the reference, in its own standard deviations, that is always allowed.
    amplitude : float
        Deviation allowed on top where PSFs differ, as a fraction of the local amplitude (0.3 clips star cores in seeing
        of 0.85–1.2″, 1.0 does not: measured). Grows with the spread of the seeing, see `amplitude_tolerances`.
    matched : float
        The same between inputs brought to one PSF: what is wrong with PSF models, positions and zero points.
    grow_sigma : float
        Neighbours of a rejected pixel go at this smaller deviation, edges of cosmic rays and trails among them.
    epochs, low_fraction, high_fraction : float
        Deviations in at most min(epochs + high_fraction·n, low_fraction·n) of n inputs (and one of two or more) are an
        artefact; in more, the sky or a variable.
    """

    sigma: float = 5.0
    amplitude: float = 1.0
    matched: float = 0.1
    grow_sigma: float = 2.5
    epochs: int = 2
    low_fraction: float = 0.5
    high_fraction: float = 0.03

    def count_epochs(self, n: int) -> np.ndarray:
        """(n + 1,) int64: largest number of deviating inputs that is an artefact, by the number of inputs."""
        inputs = np.arange(n + 1)
        low, high = np.floor(self.low_fraction * inputs + 1e-9), np.floor(self.epochs + self.high_fraction * inputs)
        return np.where(inputs > 1, np.maximum(np.minimum(low, high), 1), 0).astype(np.int64)


@dataclass(frozen=True)
class MatchingKernels:
    """Kernels that bring each input to the common PSF, at nodes.

    Attributes
    ----------
    kernels : (n, ky, kx, s, s) float32
        Sum 1.
    first, step : (x, y)
        Of the nodes, px.
    """

    kernels: np.ndarray
    first: tuple[float, float]
    step: tuple[float, float]

    @property
    def radius(self) -> int:
        return self.kernels.shape[-1] // 2

    @cached_property
    def mirrored(self) -> np.ndarray:
        """The kernels as weights of the pixels they lie on."""
        return np.ascontiguousarray(self.kernels[..., ::-1, ::-1])


@dataclass
class StackResult:
    """What `combine_rows` makes.

    Attributes
    ----------
    image : MaskedImage
        Variance Σw²v/(Σw)²; mask: OR of the flags of the inputs used, CLIPPED where one was rejected, NO_DATA (with
        zero sci and var) where none is left; plane NINPUT (int16).
    used : (p, ny, nx) uint8, int16 or int32
        Bit k of plane p: input 31·p + k entered.
    rejected : (n,) int64
        Pixels each input lost.
    """

    image: MaskedImage
    used: np.ndarray
    rejected: np.ndarray


@dataclass(frozen=True)
class Combination:
    """How to combine n inputs.

    Attributes
    ----------
    weights : (n,) float
        From `choose_weights`; inputs of weight 0 are not read.
    limits : ClipLimits or None
        None: no rejection (only masked pixels are left out).
    fwhm : (n,) float
        Seeing of the inputs, px; NaN where not known.
    levels : (n, 3) float
        Planes taken off the inputs (`stack_levels`).
    matching : MatchingKernels or None
        Of the inputs of weight > 0, in their order; None: PSFs are not known.
    """

    weights: np.ndarray
    limits: ClipLimits | None = None
    fwhm: np.ndarray | None = None
    levels: np.ndarray | None = None
    matching: MatchingKernels | None = None
    band_memory_mib: float = 128.0


def choose_weights(
    variances: Sequence[float], fwhm: Sequence[float] | None = None, noise_covariances: Sequence[float] | None = None
) -> np.ndarray:
    """(n,) inverse-variance weights with sum 1; inputs without a finite positive variance get 0.

    One number per input, not per pixel: the PSF of the stack is then one weighted mean of the inputs' PSFs, and the
    moiré that resampling prints into VAR does not print through.

    Parameters
    ----------
    variances : (n,) float
        Typical variance of a pixel.
    fwhm : (n,) float or None
        Given: weights 1/(variance · FWHM²), the best for point sources; an unknown FWHM counts as the median.
    noise_covariances : (n,) float or None
        Variance of large sums over that of VAR, by which the variance is multiplied.
    """
    variance = np.array(variances, float)
    if noise_covariances is not None:
        variance = variance * np.asarray(noise_covariances, float)
    if fwhm is not None:
        width = np.asarray(fwhm, float)
        known = np.isfinite(width) & (width > 0)
        if known.any():
            variance = variance * np.where(known, width, np.median(width[known])) ** 2
    good = np.isfinite(variance) & (variance > 0)
    weight = np.zeros(variance.size)
    if good.any():
        # relative to the smallest: no inverse of a denormal number can overflow
        weight[good] = variance[good].min() / variance[good]
    total = weight.sum()
    return weight / total if total > 0 else weight


def amplitude_tolerances(fwhm: Sequence[float], limits: ClipLimits) -> np.ndarray:
    """(n,) allowed deviation of each input as a fraction of the local amplitude.

    The peak of a star goes with 1/FWHM², so an input may exceed the reference by (FWHM_max / FWHM)² − 1 in cores, and
    one with broad wings likewise by (FWHM / FWHM_min)² − 1; with a quarter more for the profile's shape.
    """
    width = np.asarray(fwhm, float)
    known = np.isfinite(width) & (width > 0)
    if not known.any():
        return np.full(width.size, limits.amplitude)
    width = np.where(known, width, np.median(width[known]))
    ratio = np.maximum(width.max() / width, width / width.min())
    return limits.amplitude * np.maximum(1.0, 1.25 * (ratio**2 - 1.0))


def reach_of_seeing(fwhm: Sequence[float]) -> int:
    """How far (px) the broadest PSF carries light beyond the sharpest: 1.5 sigma of the Gaussian between, 1 to 12."""
    width = np.asarray(fwhm, float)
    known = width[np.isfinite(width) & (width > 0)]
    if not known.size:
        return 1
    return int(np.clip(np.ceil(1.5 / 2.3548 * np.sqrt(known.max() ** 2 - known.min() ** 2)), 1, 12))


def typical_variance(image: MaskedImage) -> float:
    """Median variance of the pixels that carry weight; NaN where there is none."""
    sample = np.s_[::4, ::4] if image.sci.size > 100_000 else np.s_[:, :]
    variance = image.var[sample]
    good = ((image.mask[sample] & _HARD) == 0) & (variance > 0) & np.isfinite(variance)
    return float(np.median(variance[good])) if good.any() else float("nan")


def combine_covariance(factors: Sequence[float], weights: np.ndarray, variances: Sequence[float]) -> float:
    """NOISECOV of a weighted mean: Σ w² c v / Σ w² v over the inputs of weight > 0."""
    w, c, v = (np.asarray(x, float) for x in (weights, factors, variances))
    used = w > 0
    return float(np.sum(w[used] ** 2 * c[used] * v[used]) / np.sum(w[used] ** 2 * v[used]))


def plan_matching(psfs: Sequence[PsfGrid | None], max_radius: int = 24) -> MatchingKernels:
    """Kernels that bring all inputs to one PSF, a little broader than the broadest.

    Parameters
    ----------
    psfs : sequence of PsfGrid or None
        On the same nodes, each known somewhere; None, of which there may not be all: not known, its kernels are zero.
    max_radius : int
        Of the kernels, px; less where the PSFs are alike.
    """
    known = [psf for psf in psfs if psf is not None]
    target = choose_target(known)
    # what of a kernel lies beyond is missing in the wings of bright stars
    radius = int(np.clip(np.ceil(1.75 * measure_width(target)), 5, max_radius))
    # a PSF changes little from node to node: every second one will do where there are many
    node_x, node_y = (nodes[:: 2 if nodes.size > _MANY_NODES else 1] for nodes in (known[0].x, known[0].y))
    x, y = (grid.ravel() for grid in np.meshgrid(node_x, node_y))
    kernels = np.zeros((len(psfs), node_y.size, node_x.size, 2 * radius + 1, 2 * radius + 1), np.float32)
    for kernel, psf in zip(kernels, psfs, strict=True):
        if psf is not None:
            kernel[:] = matching_kernels(psf.evaluate_many(x, y), target, radius).reshape(kernel.shape)
    step = (float(np.diff(node_x).mean()), float(np.diff(node_y).mean()))
    return MatchingKernels(kernels, (float(node_x[0]), float(node_y[0])), step)


def combine_rows(read_rows: ReadRows, shape: tuple[int, int], combination: Combination) -> StackResult:
    """Weighted mean of inputs with rejection of artefacts, in bands of rows, the next of which is read meanwhile.

    Rejection, after CompareWarp (Bosch et al. 2018, PASJ 70, S5, section 3.3): what deviates from the static sky in
    few inputs is an artefact, what deviates in many is sky or a variable and stays. The reference of a pixel is the
    median of the inputs (the lower one of the middle two, as artefacts are mostly light added); σ² is the input's
    variance and that of the median; A the largest reference among the 3×3 neighbours, A' that within
    `reach_of_seeing`. Of a deviation, what the surroundings deviate by too is no part (wings of bright stars). With a
    from `amplitude_tolerances`, an input deviates

    * blatantly, by more than `sigma`·σ + a·A': no PSF does that;
    * else, by more than `sigma`·σ + `matched`·A and still so after all inputs, less their blatant pixels, have been
      brought to the PSF of the broadest (evaluated at such pixels only; where PSFs are not known, it does not).

    Then neighbours in the same input go that deviate by more than `grow_sigma`·σ + `matched`·A, two rounds, and theirs
    by more than 1 σ. A single input cannot be judged. Saturated pixels are judged by their blatancy alone, and not
    where many inputs are.

    Parameters
    ----------
    read_rows : callable
        Fills rows of one input: sci in nJy, mask bits of `Mask`, var in nJy². Called from another thread.
    shape : (ny, nx)
    combination : Combination
        `band_memory_mib`: of the buffers, for any number of inputs and any ny (but never less than a band of a few rows
        needs); the result does not depend on it.
    """
    stream = _Stream(read_rows, shape, combination)
    for _ in stream.pass_bands():
        stream.settle_band()
    return stream.finish()


@dataclass
class _Buffers:
    """Rows of the image from `top` on, `filled` of them, of all inputs."""

    sci: np.ndarray
    mask: np.ndarray
    var: np.ndarray
    top: int = 0
    filled: int = 0

    def keep_tail(self, other: "_Buffers", tail: int) -> None:
        """Begin with the last `tail` rows of `other`; what was rejected as a neighbour there is found anew."""
        end = other.filled
        self.sci[:, :tail] = other.sci[:, end - tail : end]
        np.bitwise_and(other.mask[:, end - tail : end], ~np.int16(GROWN), out=self.mask[:, :tail])
        self.var[:, :tail] = other.var[:, end - tail : end]
        self.top = other.top + end - tail


@dataclass
class _Stream:
    """The bands of one combination on their way through the kernels."""

    read_rows: ReadRows
    shape: tuple[int, int]
    combination: Combination
    done: int = 0  # rows of the image that are settled
    # of rows whose surroundings are yet to come: candidates, those that PSFs may explain, and items of what is rejected
    found: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    doubtful: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    guilty: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        chosen, (ny, nx) = self.combination, self.shape
        weights = np.asarray(chosen.weights, float)
        self.place = np.flatnonzero(weights > 0)
        self.weight = weights[self.place]
        n = self.place.size
        levels = np.zeros((weights.size, 3)) if chosen.levels is None else np.asarray(chosen.levels, float)
        self.level = np.ascontiguousarray(levels[self.place])
        self.fwhm = np.ones(n) if chosen.fwhm is None else np.asarray(chosen.fwhm, float)[self.place]
        self.reach = reach_of_seeing(self.fwhm)
        self.near, self.radius = max(self.reach, _RING_PX), chosen.matching.radius if chosen.matching else 0
        # rows of a band that the next one needs again
        around = max(self.near, self.radius, 2 * _GROW_ROUNDS)
        self.tail = self.near + self.radius + around if chosen.limits else 0
        rows = int(chosen.band_memory_mib * 2**20 / (2 * max(n, 1) * nx * 10.0))
        rows = min(max(rows, 2 * self.tail + 8), ny)
        self.present, self.coming = (self._make_buffers(n, rows) for _ in range(2))
        self.middle = np.zeros((rows, nx), np.float32)
        self.image = MaskedImage(
            sci=np.empty(self.shape, np.float32),
            mask=np.empty(self.shape, np.int16),
            var=np.empty(self.shape, np.float32),
            planes={"NINPUT": np.empty(self.shape, np.int16)},
        )
        # the smallest type that holds the bits
        kind = np.uint8 if weights.size <= 8 else np.int16 if weights.size <= 15 else np.int32
        self.used = np.empty((-(-weights.size // INPUTS_PER_PLANE), ny, nx), kind)
        self.rejected = np.zeros(n, np.int64)

    def _make_buffers(self, n: int, rows: int) -> _Buffers:
        shape = (n, rows, self.shape[1])
        return _Buffers(np.empty(shape, np.float32), np.empty(shape, np.int16), np.empty(shape, np.float32))

    def pass_bands(self):
        """Yield when the rows of a band are in `present` and merged; the next are read meanwhile."""
        ny = self.shape[0]
        with ThreadPoolExecutor(1) as reader:
            rows = self.present.sci.shape[1]
            tail, new = 0, min(rows, ny)
            reading = reader.submit(self._fill, self.present, 0, 0, new)
            while True:
                reading.result()
                band, self.present.filled = (tail, tail + new), tail + new
                end = self.present.top + self.present.filled
                tail = min(self.tail, self.present.filled)
                new = min(rows - tail, ny - end)
                if new > 0:
                    reading = reader.submit(self._fill, self.coming, tail, end, end + new)
                self._merge(band)
                yield
                if new <= 0:
                    return
                reading.result()
                self.coming.keep_tail(self.present, tail)
                self.middle[:tail] = self.middle[self.present.filled - tail : self.present.filled].copy()
                self.present, self.coming = self.coming, self.present

    def _fill(self, buffers: _Buffers, row: int, first: int, last: int) -> None:
        rows = np.s_[row : row + last - first]
        for k, index in enumerate(self.place):
            self.read_rows(int(index), first, last, buffers.sci[k, rows], buffers.mask[k, rows], buffers.var[k, rows])

    def _merge(self, rows: tuple[int, int]) -> None:
        one, limits = self.present, self.combination.limits
        limit = limits.sigma**2 if limits else np.inf
        image = self.image
        fresh = merge_rows(
            one.sci, one.mask, one.var, rows, one.top, self.weight, self.place, self.level,
            sorting_network(self.weight.size), limit,
            image.sci, image.var, image.mask, image.planes["NINPUT"], self.used.view(np.uint8), self.middle,
        )  # fmt: skip
        self.found = np.concatenate([self.found, fresh])

    def settle_band(self) -> None:
        """Judge what deviates in the band, and average anew where something is rejected."""
        one, (ny, nx), limits = self.present, self.shape, self.combination.limits
        if limits is None:
            return
        n, end, rows = self.weight.size, one.top + one.filled, (0, one.filled)
        # rows whose surroundings are there: for blatancy, for the kernels, for all neighbours
        seen, judged, last = (
            ny if end == ny else end - self.near - beyond for beyond in (0, self.radius, self.radius + _GROW_ROUNDS)
        )
        core, self.done = (self.done - one.top, last - one.top), last
        self._judge(limits, rows, seen, judged)
        guilty = [self.guilty[self.guilty < judged * nx * n]]
        for sigma in (limits.grow_sigma,) * (_GROW_ROUNDS - 1) + (_EDGE_SIGMA,):
            # at the same sigma only what is new can spread further
            sources = guilty[-1] if sigma == limits.grow_sigma else np.concatenate(guilty)
            fresh = grow_rows(
                one.sci, one.mask, one.var, rows, one.top, self.middle, sources, sigma, np.float32(limits.matched)
            )
            guilty.append(fresh)
        image = self.image
        settle_rows(
            one.sci, one.mask, one.var, core, one.top, self.weight, self.place, np.concatenate(guilty),
            image.sci, image.var, image.mask, image.planes["NINPUT"], self.used.view(np.uint8), self.rejected,
        )  # fmt: skip
        self.guilty = self.guilty[self.guilty >= (last - _GROW_ROUNDS) * nx * n]

    def _judge(self, limits: ClipLimits, rows: tuple[int, int], seen: int, judged: int) -> None:
        """Judge candidates above row `seen` of the image, and above row `judged` those that PSFs may explain."""
        one, n, nx, matching = self.present, self.weight.size, self.shape[1], self.combination.matching
        buffers, epochs = (one.sci, one.mask, one.var, rows, one.top, self.middle), limits.count_epochs(n)
        tolerance = amplitude_tolerances(self.fwhm, limits).astype(np.float32)
        now = self.found < seen * nx
        blatant, doubtful = mark_rows(
            *buffers, self.found[now], tolerance, self.reach, limits.sigma, np.float32(limits.matched), epochs,
            matching is not None,
        )  # fmt: skip
        self.found, doubtful = self.found[~now], np.concatenate([self.doubtful, doubtful])
        now = doubtful < judged * nx
        guilty, self.doubtful = [self.guilty, blatant], doubtful[~now]
        if matching is not None:
            guilty.append(
                judge_rows(
                    *buffers, doubtful[now], limits.sigma, np.float32(limits.matched), epochs,
                    matching.mirrored, matching.first, matching.step,
                )
            )  # fmt: skip
        self.guilty = np.concatenate(guilty)

    def finish(self) -> StackResult:
        rejected = np.zeros(np.asarray(self.combination.weights).size, np.int64)
        rejected[self.place] = self.rejected
        return StackResult(self.image, self.used, rejected)


def subtract_level(image: MaskedImage, coefficients: Sequence[float]) -> MaskedImage:
    """The image less the plane c0 + c1 x + c2 y (nJy/px; coordinates of `matching_kernel.scale_positions`), as
    `combine_rows` takes it off; mask and variance are shared.
    """
    sci = image.sci.astype(np.float32)
    take_plane_off(sci, np.asarray(coefficients, float))
    return MaskedImage(sci, image.mask, image.var, image.header, dict(image.planes))
