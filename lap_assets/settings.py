"""The settings of a repository: frozen pydantic models, read from YAML (safe loader) and the environment.

One class per stage; its values are hashed into the recipe of the products of that stage, so that a changed number
re-makes what depends on it and nothing else. Nothing happens at import. Field names carry their units.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lap_assets.compute_settings import ClusterSettings as ClusterSettings
from lap_assets.compute_settings import ComputeSettings
from lap_assets.compute_settings import TlsSettings as TlsSettings
from lap_assets.errors import BadInput

SETTINGS_FILE = "lap.yaml"
REPOSITORY_VARIABLE = "LAP_REPO"
LEDGER_VARIABLE = "LAP_LEDGER_URL"
POSTGRES_VARIABLE = "LAP_POSTGRES_URL"
POSTGRES_PREFIX = "postgresql+psycopg2://"
LEDGER_SCHEMA = "lap"  # of the ledger in a database it shares with Dagster: both keep a table `alembic_version`


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    judging: ClassVar[frozenset[str]] = frozenset()  # fields that no bytes depend on
    places: ClassVar[frozenset[str]] = frozenset()  # of these, where inputs are: which they are, planning tells

    def dump_recipe(self) -> dict[str, Any]:
        """The values that bytes depend on."""
        return self.model_dump(mode="json", exclude=set(self.judging))

    def dump_places(self) -> dict[str, Any]:
        """Where inputs are that lie elsewhere, as far as it is said."""
        return {name: place for name, place in self.model_dump(mode="json", include=set(self.places)).items() if place}


class CalibrationSettings(Section):
    """How master biases, darks, flats, sky frames and fringe patterns are built."""

    min_frames: int = Field(3, ge=2)
    clip_sigma: float = Field(5.0, gt=0)
    overscan_mode: Literal["row", "median", "spline"] = "row"
    overscan_smooth_rows: int = Field(15, ge=1)  # of mode row
    overscan_knot_rows: int = Field(256, ge=8)  # of mode spline
    hot_pixel_sigma: float = 12.0
    dead_pixel_tolerance: float = 0.2  # relative to the response around
    dead_pixel_sigma: float = 10.0
    max_saturated_fraction: float = 0.05  # of a frame's sampled pixels; flats above it are left out
    # of object frames, for sky frames and fringe patterns
    source_sigma: float = Field(3.0, gt=0)
    source_grow_px: float = Field(12.0, ge=0)
    reference_frames: int = Field(3, ge=1)  # that tell how bright the sky of the chips is relative to each other
    sky_mesh_px: int = Field(256, ge=0)  # illumination varies on scales above this; 0: nothing is smoothed
    fringe_mesh_px: int = Field(512, ge=64)  # the sky is smooth on scales above this
    fringe_min_correlation: float = 0.3  # of the patterns of two halves of the frames
    # who says that a master may be used (PHX-02), and what may change from one to the next before somebody has to look
    certify: Literal["rule", "hand"] = "rule"
    max_fraction_beyond: float = 0.01  # of the pixels beyond 6 sigma
    max_new_defects: float = 0.002  # of the pixels
    # relative (flat, sky), ADU (bias), electrons per second (dark), amplitudes (fringe); a kind left out: no limit
    stability: dict[str, float] = {"bias": 0.5, "dark": 0.01, "flat": 0.005, "sky": 0.01, "fringe": 0.3}  # of a pixel
    max_level_change: dict[str, float] = {"bias": 5.0, "dark": 0.02, "flat": 0.05, "sky": 0.05, "fringe": 0.3}

    judging: ClassVar[frozenset[str]] = frozenset(
        {"certify", "max_fraction_beyond", "max_new_defects", "stability", "max_level_change"}
    )


class ChipSettings(Section):
    """From raw frame to calibrated chip."""

    skip_steps: tuple[str, ...] = ()  # steps of the camera to leave out
    overscan_mode: Literal["row", "median", "spline"] = "row"
    overscan_smooth_rows: int = Field(15, ge=1)  # of mode row
    overscan_knot_rows: int = Field(256, ge=8)  # of mode spline
    saturation_trail_ratio: float = 1.5
    saturation_grow_px: int = Field(1, ge=0)
    match_amplifiers: bool = False  # remove what is left of the step in the sky between the amplifiers of a chip
    brighter_fatter_tolerance_e: float = Field(0.5, gt=0)
    brighter_fatter_iterations: int = Field(10, ge=1)  # at most
    fringe_min_snr: float = 3.0  # of the fitted amplitude, else nothing is subtracted
    cosmic_ray_sigma: float = 4.5
    cosmic_ray_fraction: float = 0.15  # of cosmic_ray_sigma, for pixels beside a hit
    cosmic_ray_contrast: float = 3.0
    cosmic_ray_iterations: int = 4
    cosmic_ray_min_snr: float = 6.0  # of the charge of a whole hit
    trail_snr: float = 10.0
    trail_min_length_px: float = 300.0
    trail_min_evenness: float = Field(0.3, gt=0, le=1)  # parts of a trail are as bright as their median, to this factor
    trail_bin_px: int = Field(4, ge=1)
    trail_margin_px: float = 3.0  # added on both sides of a trail when it is masked
    min_good_fraction: float = 0.05  # of the pixels, else the chip is unprocessable


class SolutionSettings(Section):
    """Background, sources, PSF, astrometry and zero point of an exposure."""

    background_mesh_px: int = 128
    detection_sigma: float = 4.0  # per pixel of the matched-filtered image
    detection_min_px: int = 5
    aperture_fwhm: float = 1.5  # radius of the star aperture in FWHM
    total_aperture_fwhm: float = 4.0  # radius to which it is corrected
    psf_stamp_px: int = 25
    psf_degree: int = 2
    psf_max_stars: int = 250
    pointing_radius_arcsec: float = 120.0
    pointing_rotation_deg: float = 2.0  # of the focal plane against the headers
    match_radius_arcsec: float = 1.0
    distortion_order: int = Field(7, ge=1)  # at most: stars held out choose, and few stars lower it
    reference_mag_min: float = 14.0
    zero_point_min_stars: int = 3
    max_trail_ellipticity: float = 0.4  # that the bright sources of a chip may share; above it the exposure is trailed
    focal_plane_sky_order: int = Field(3, ge=0)  # of the sky that leaves haloes as wide as a chip alone


class QualitySettings(Section):
    """What is good enough: cuts on chips, the reference conditions of t_eff, and the choice among a run's exposures.

    The largest FWHM and ellipticity are those LoVoCCS uses; of the band in which it measures shapes it asks 1.15 arcsec
    and 0.13 (`max_fwhm_arcsec_by_band: {r: 1.15}`). None: no cut.
    """

    max_fwhm_arcsec: float | None = 1.68
    max_ellipticity: float | None = 0.33
    max_fwhm_arcsec_by_band: dict[str, float] = {}
    max_ellipticity_by_band: dict[str, float] = {}
    # rms of stars less PSF model in their cores over the peak: few or undersampled stars leave 0.03, galaxies 0.06
    max_psf_residual: float | None = Field(0.05, gt=0)
    max_astrometry_rms_mas: float | None = None
    reference_fwhm_arcsec: float = 0.9
    reference_sky_e_s: dict[str, float] = {}  # by band, per pixel: without it t_eff is not known
    reference_zero_point_mag: dict[str, float] = {}  # by band: magnitude of 1 electron per second under a clear sky
    # among the exposures of a run, by reference stars matched (see science/quality.py)
    max_distance_deg: float | None = None  # of a chip's middle from that of the cell
    visit_sigma: float = 2.0
    visit_fraction: float = 0.7
    chip_sigma: float = 3.0
    chip_fraction: float = 0.5
    min_good_chips: int = Field(1, ge=1)


class JointSolutionSettings(Section):
    """Relative zero points of the exposures of a run, and what they share over the focal plane."""

    match_radius_arcsec: float = 0.7
    min_snr: float = 30.0
    min_stars: int = 5
    clip_sigma: float = 4.0
    # (order of each exposure's own polynomial, of the shared one), tried in turn; stars held out choose
    focal_plane_orders: tuple[tuple[int, int], ...] = ((0, 0), (1, 0), (1, 3), (2, 4))
    colour_term: bool = False  # fit one for all exposures, against the reference catalogue
    reference_err_mag: float = 0.02  # scatter of reference magnitudes
    astrometry: bool = True  # one geometry for all exposures; False: each keeps its own solution
    distortion_order: int = Field(5, ge=1)


class WarpSettings(Section):
    """Chips resampled to skycells."""

    kernel: Literal["lanczos3", "spline", "bilinear", "nearest"] = "lanczos3"
    grid_step_px: int = Field(32, ge=2)
    grid_tolerance_px: float = Field(5e-4, gt=0)
    max_bad_weight: float = Field(0.1, ge=0, le=1)  # kernel weight of masked pixels; above it a pixel is masked
    footprint_margin_arcsec: float = Field(60.0, ge=0)  # planning trusts footprints this far; the solved WCS decides
    # which sky is taken off: each chip's own mesh, or the surface over the focal plane, which keeps large haloes
    sky: Literal["mesh", "focal_plane"] = "mesh"
    psf_step_px: float = Field(512.0, gt=0)  # between the nodes at which the PSF is told
    star_min_snr: float = Field(20.0, gt=0)  # of the stars that are listed with a warp


class StackSettings(Section):
    """Combination of warps with artefacts rejected, also for templates and final stacks."""

    min_inputs: int = Field(6, ge=1)  # of the first pass
    weight: Literal["variance", "seeing"] = "variance"  # 1/variance, or 1/(variance FWHM^2): best for point sources
    level_order: int = Field(1, ge=-1, le=1)  # of the background matched between the inputs; -1: none
    clip_sigma: float = Field(5.0, gt=0)
    # fraction of the local amplitude allowed where PSFs differ; 0.3 clips star cores
    clip_amplitude: float = Field(1.0, ge=0)
    clip_matched: float = Field(0.1, ge=0)  # the same between inputs brought to one PSF
    clip_grow_sigma: float = Field(2.5, gt=0)
    # deviations in at most min(epochs + high n, low n) of n inputs are artefacts, in more they are sky or a variable
    clip_epochs: int = Field(2, ge=1)
    clip_low_fraction: float = Field(0.5, gt=0, le=1)
    clip_high_fraction: float = Field(0.03, ge=0, le=1)
    max_offset_arcsec: float = Field(0.3, gt=0)  # of an input's stars from those of the others, else it is left out
    sky_corrected: bool = True  # final stacks: also the flavour that keeps large haloes
    psf_matched: bool = False  # also the flavour of inputs brought to one PSF
    band_memory_mib: float = Field(128.0, gt=0)  # of the buffers of rows, whatever the number of inputs

    judging: ClassVar[frozenset[str]] = frozenset({"band_memory_mib"})


class DiffSettings(Section):
    """Difference images and their sources."""

    # what an exposure with a companion is subtracted from: a template of the other nights (finds what lasts for days),
    # or its companion's warp (LAP's pairwise difference: what moves or flickers within the night)
    against: Literal["nights", "pair"] = "nights"
    # what all others are subtracted from: the run's first-pass stack less the exposure's night, or where there is none
    # the other nights' warps combined, which `warps` always does, `matched` with their PSFs made alike; or the warp of
    # another exposure: exposure=NAME
    template: str = "stack"
    # stacks (warps, with exposure=NAME) of another collection, or of another repository, are taken where one is named
    template_repository: str = ""
    template_collection: str = ""
    min_template_inputs: int = Field(2, ge=1)
    method: Literal["alard_lupton", "zogy"] = "alard_lupton"
    decorrelate: bool = True  # noise of the difference as white as a warp's
    convolve: Literal["auto", "template", "science"] = "auto"  # auto: the sharper one (alard_lupton)
    # what a subtraction must be to be believed, else nothing is taken from it
    min_matched: int = Field(5, ge=0)  # stars in both images
    max_stamp_chi2: float = Field(4.0, gt=0)  # median reduced chi2 of matched stars
    max_kernel_sum_error: float = Field(0.2, gt=0)  # of two calibrated images
    max_offset_px: float = Field(1.0, gt=0)  # between matched stars
    max_sky_chi: float = Field(1.25, gt=1)  # scatter of the sky over what VAR says, or the inverse
    max_residual_stars: float = Field(0.2, gt=0, le=1)  # of the bright stars, that leave an unflagged source
    min_template_coverage: float = Field(0.2, ge=0, le=1)  # of the science image's usable pixels
    kernel_order: int = Field(1, ge=0)
    background_order: int = Field(1, ge=0)
    max_stamps: int = Field(100, ge=1)
    min_stamp_snr: float = Field(20.0, gt=0)
    source_snr: float = Field(5.0, gt=0)
    bright_fraction: float = Field(0.1, ge=0)  # of the template's flux below which a residual is not believed
    bright_star_snr: float = Field(300.0, gt=0)  # of the stars whose distance from each source is told

    judging: ClassVar[frozenset[str]] = frozenset({"template_repository"})  # what is taken from it is pinned by content
    places: ClassVar[frozenset[str]] = judging

    @field_validator("template")
    @classmethod
    def _check_template(cls, value: str) -> str:
        if not re.fullmatch(r"stack|warps|matched|exposure=[A-Za-z0-9_.\-]+", value):
            raise ValueError("a template is stack, warps, matched or exposure=NAME")
        return value

    @property
    def template_exposure(self) -> str:
        """The exposure whose warp is the template; empty where it is a stack."""
        return self.template.partition("=")[2]


class StreakMaskSettings(Section):
    """Trails on the differences."""

    snr: float = Field(10.0, gt=0)
    min_length_px: float = Field(80.0, gt=0)
    margin_px: float = Field(2.0, ge=0)  # added on both sides of a trail when it is masked


class TransientSettings(Section):
    """Association of the sources of all differences of a cell."""

    match_radius_arcsec: float = Field(1.0, gt=0)
    min_detections: int = Field(2, ge=1)  # in different exposures
    min_snr: float = Field(5.0, gt=0)
    min_snr_max: float = Field(6.0, gt=0)  # of the best detection
    positive_only: bool = True  # light that appeared; False: also light that went


class ObjectCatalogSettings(Section):
    """Objects of a skycell on all its bands, and their photometry."""

    background_mesh_px: int = 128  # residual background; 0: none is taken off
    detection_sigma: float = 1.5  # per pixel, on the smoothed sum of all bands
    min_area_px: int = 5
    deblend_contrast: float = 0.005
    aperture_diameters_arcsec: tuple[float, ...] = (2.0, 4.0)  # corrected to total for point sources
    gauss_fwhm_arcsec: float = 2.0  # PSF-matched flux; widened where the seeing asks for it
    kron_factor: float = 2.5
    kron_min_radius_arcsec: float = 1.4
    psf_star_min_snr: float = 50.0


class ShearCatalogSettings(Section):
    """Shapes of the galaxies behind the lens."""

    band: str = "r"  # where it is missing: the deepest there is
    background_mesh_px: int = 128
    stamp_px: int = 41
    psf_star_min_snr: float = 50.0
    min_psf_stars: int = 10
    min_snr: float = 10.0
    min_resolution: float = 0.3
    max_ellipticity: float = 2.0  # of the corrected distortion, which noise carries beyond 1
    max_ellipticity_err: float = 0.6
    max_filled: float = 0.2  # part of the inner stamp replaced by its mirror image
    shape_noise: float = 0.4  # distortion per component, in the weights
    # multiplicative bias of the estimator, from simulations; see lap_assets_tests/science/test_shear.py
    calibration_m: float = 0.02
    bright_mag: float = 20.0  # brighter galaxies are in front
    faint_mag: float = 27.0
    colour_bands: tuple[str, str] = ("g", "r")  # of the red sequence
    red_sequence_mags: tuple[float, float] = (16.0, 20.0)  # of the redder band; bright, where members stand out
    red_sequence_width: float = 3.0  # galaxies within so many of its widths, and 0.1 mag at least, are left out


class MassMapSettings(Section):
    """Aperture-mass maps."""

    filter: Literal["schirmer", "gaussian", "polynomial"] = "schirmer"
    radii_arcmin: tuple[float, ...] = (3.0, 4.0, 6.0, 8.0)
    map_radius_arcmin: float = 8.0  # the one shown, and whose highest peak is fitted
    step_arcmin: float = 0.1
    min_coverage: float = 0.3  # part of the aperture that must hold galaxies
    peak_snr: float = 3.5
    peak_separation_arcmin: float = 1.5


class MassFitSettings(Section):
    """The NFW halo at the highest peak."""

    lens_redshift: float = 0.2
    source_redshift: float = 0.8  # effective: that of the mean D_ls / D_s of the sources
    h0_km_s_mpc: float = 70.0
    omega_m: float = 0.3
    min_radius_mpc: float = 0.2
    max_radius_mpc: float = 2.5
    n_rings: int = 8
    concentration: float | Literal["relation", "free"] = "relation"


class LapSettings(Section):
    """Scheduling of runs and cleanup (never part of a recipe)."""

    max_active: int = Field(4, ge=1)  # runs that the queue keeps active
    queue_file: str = "queue.txt"  # of `-definerun` commands, in the repository folder
    drop_folder: str = "incoming"  # new raw files that a sensor ingests, in the repository folder
    drop_camera: str = ""  # their camera; empty: nothing is ingested by itself
    keep_hours: float = Field(0.0, ge=0.0)  # intermediates stay so long after nothing needs them
    max_bytes: int = Field(0, ge=0)  # disk budget of the store: above it `keep_hours` is over at once; 0: none
    partitions_per_run: int = Field(50, ge=1)  # at most so many in one Dagster run


class Settings(Section):
    """All settings of one repository."""

    lap: LapSettings = LapSettings()
    compute: ComputeSettings = ComputeSettings()
    calibrations: CalibrationSettings = CalibrationSettings()
    chips: ChipSettings = ChipSettings()
    solutions: SolutionSettings = SolutionSettings()
    quality: QualitySettings = QualitySettings()
    joint_solutions: JointSolutionSettings = JointSolutionSettings()
    warps: WarpSettings = WarpSettings()
    stacks: StackSettings = StackSettings()
    diffs: DiffSettings = DiffSettings()
    streak_masks: StreakMaskSettings = StreakMaskSettings()
    transients: TransientSettings = TransientSettings()
    object_catalogs: ObjectCatalogSettings = ObjectCatalogSettings()
    shear_catalogs: ShearCatalogSettings = ShearCatalogSettings()
    mass_maps: MassMapSettings = MassMapSettings()
    mass_fits: MassFitSettings = MassFitSettings()

    ledger_url: str = ""  # empty: SQLite in the repository folder
    collections: tuple[str, ...] = ("main",)  # open collections, shown in the UI


def find_repository(given: Path | str | None = None) -> Path:
    """The repository folder: as given, else `LAP_REPO`, else the nearest folder upwards that holds `lap.yaml`.

    Raises
    ------
    BadInput
        If there is none.
    """
    chosen = given or os.environ.get(REPOSITORY_VARIABLE)
    if chosen:
        root = Path(chosen).expanduser().resolve()
        if not (root / SETTINGS_FILE).is_file():
            raise BadInput(f"{root} is no repository (no {SETTINGS_FILE} in it); make one with: lap init {root}")
        return root
    here = Path.cwd()
    for root in (here, *here.parents):
        if (root / SETTINGS_FILE).is_file():
            return root
    raise BadInput(
        f"no repository here: no {SETTINGS_FILE} in {here} or above; "
        "go to one, use --repo DIR, or make one with: lap init DIR"
    )


def load_settings(root: Path, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read `lap.yaml` of a repository, with `section.key` overrides on top.

    Raises
    ------
    BadInput
        One line that names the file, the key and what is wrong with it.
    """
    path = root / SETTINGS_FILE
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not plain YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise BadInput(f"{path} must hold sections of settings, not a {type(values).__name__}")
    values = add_environment(values)
    for key, value in (overrides or {}).items():
        section, _, name = key.rpartition(".")
        target = values.setdefault(section, {}) if section else values
        if not isinstance(target, dict):
            raise BadInput(f"{path}: {section!r} must be a section")
        target[name] = value
    return parse_settings(values, f"{path} and -c" if overrides else str(path))


def parse_value(text: str, key: str) -> Any:
    """Value of a setting given as text (plain YAML: numbers, words, lists); raises `BadInput` that names the `key`."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadInput(f"setting {key!r}: {text!r} is not plain YAML; write for example 3, 0.5, r or [g, r]") from error


def add_environment(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of the environment on top: `LAP_LEDGER_URL`, else a place in the database of Dagster."""
    url = os.environ.get(LEDGER_VARIABLE) or place_ledger(read_postgres_url())
    return dict(values) | ({"ledger_url": url} if url else {})


def read_postgres_url() -> str:
    """`LAP_POSTGRES_URL`, the database of ledger and Dagster, or an empty text; raises `BadInput` for another dialect.

    SQLAlchemy 2.1 makes a bare `postgresql://` look for psycopg 3, and Dagster reads the variable by itself.
    """
    url = os.environ.get(POSTGRES_VARIABLE, "")
    if url and not url.startswith(POSTGRES_PREFIX):
        kind = url.partition("://")[0][:40]  # what follows may hold a password
        raise BadInput(f"{POSTGRES_VARIABLE} begins with {kind!r}: write {POSTGRES_PREFIX}USER:PASSWORD@HOST/DATABASE")
    return url


def place_ledger(postgres_url: str) -> str:
    """URL of the ledger in a database it shares with Dagster: in a schema of its own; empty for an empty URL."""
    if not postgres_url:
        return ""
    _, _, query = postgres_url.partition("?")
    if "options=" in query:
        raise BadInput(
            f"{POSTGRES_VARIABLE} has options of its own, and the ledger goes into the schema {LEDGER_SCHEMA!r} by "
            f"them: leave them out, or say with {LEDGER_VARIABLE} where the ledger is"
        )
    return f"{postgres_url}{'&' if query else '?'}options=-csearch_path%3D{LEDGER_SCHEMA}"


def parse_settings(values: Mapping[str, Any], where: str) -> Settings:
    """Validate settings; raises `BadInput` with one line naming the first wrong key and `where` it stands."""
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise BadInput(f"{where}: unknown setting {key!r}; `lap show settings` lists them all") from error
        wrong = first["msg"].removeprefix("Value error, ")
        got = (
            "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
        )  # of a section: all of its values
        raise BadInput(f"{where}: setting {key!r}: {wrong}{got}") from error
