"""The stages of the pipeline as data: which functions plan and make each product, and which settings they depend on.

Functions are named, not imported, so that listing the stages costs nothing; `Stage.plan` and `Stage.make` import
their module on first use. The order of `STAGES` is the order of the chain from raw frame to mass map.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from lap_assets.errors import BadInput
from lap_assets.settings import Settings, parse_settings


@dataclass(frozen=True)
class Stage:
    """How one product is made.

    Attributes
    ----------
    product : str
    module : str
        Module of `lap_assets.pipeline` that holds the two functions.
    sections : tuple of str
        Sections of `Settings` that its bytes depend on.
    suffix : str
        Where a module makes more than one product, its functions are called `plan_<suffix>` and `make_<suffix>`.
    memory_gib : float
        Declared peak of one worker: measured, with room, on chips of 2048 x 4096 and skycells of 6000 x 6000 pixels.
    """

    product: str
    module: str
    sections: tuple[str, ...]
    suffix: str = ""
    memory_gib: float = 1.2

    @property
    def plan(self) -> Callable:
        return self._function("plan")

    @property
    def make(self) -> Callable:
        return self._function("make")

    def _function(self, name: str) -> Callable:
        module = import_module(f"lap_assets.pipeline.{self.module}")
        return getattr(module, f"{name}_{self.suffix}" if self.suffix else name)

    def config_document(self, settings: Settings) -> bytes:
        """The settings this stage's bytes depend on, as JSON in canonical form."""
        values = {name: getattr(settings, name).dump_recipe() for name in self.sections}
        return json.dumps(values, sort_keys=True).encode()

    def config_sha256(self, settings: Settings) -> str:
        """Hash of the settings this stage's bytes depend on."""
        return hashlib.sha256(self.config_document(settings)).hexdigest()

    def mark_settings(self, settings: Settings) -> str:
        """A short mark of what a partition is planned by: `config_sha256`, and where inputs lie that lie elsewhere.

        Another place has partitions looked at again; units whose inputs are found to be the same there stay.
        """
        places = {name: found for name in self.sections if (found := getattr(settings, name).dump_places())}
        mark = self.config_sha256(settings)
        if places:
            mark = hashlib.sha256((mark + json.dumps(places, sort_keys=True)).encode()).hexdigest()
        return mark[:24]

    def restore_settings(self, settings: Settings, document: bytes) -> Settings:
        """`settings` with this stage's sections as `config_document` wrote them.

        Raises
        ------
        BadInput
            The document is of a version that has other settings.
        """
        sections = json.loads(document)
        restored = parse_settings(settings.model_dump(mode="json") | sections, f"kept settings of {self.product}")
        if self.config_document(restored) != document:
            raise BadInput(f"the kept settings of {self.product} lack some that there are now")
        return restored


STAGES: dict[str, Stage] = {
    stage.product: stage
    for stage in (
        Stage("master_biases", "calibrations", ("calibrations",), suffix="biases"),
        Stage("master_darks", "calibrations", ("calibrations",), suffix="darks"),
        Stage("master_flats", "calibrations", ("calibrations",), suffix="flats"),
        Stage("master_skies", "calibrations", ("calibrations",), suffix="skies"),
        Stage("master_fringes", "calibrations", ("calibrations",), suffix="fringes"),
        Stage("chips", "chips", ("chips",)),
        Stage("solutions", "solutions", ("solutions", "quality")),
        Stage("joint_solutions", "joint_solutions", ("joint_solutions", "quality")),
        Stage("warps", "warps", ("warps",), memory_gib=1.2),
        Stage("stacks", "stacks", ("stacks",), memory_gib=1.3),
        Stage("diffs", "diffs", ("diffs", "stacks"), memory_gib=2.3),
        Stage("streak_masks", "streak_masks", ("streak_masks",), memory_gib=2.3),
        Stage("final_stacks", "final_stacks", ("stacks", "streak_masks"), memory_gib=1.3),
        Stage("object_catalogs", "object_catalogs", ("object_catalogs",), memory_gib=1.4),
        Stage("shear_catalogs", "shear_catalogs", ("shear_catalogs",)),
        Stage("mass_maps", "mass_maps", ("mass_maps",)),
        Stage("mass_fits", "mass_fits", ("mass_fits",)),
        Stage("transients", "transients", ("transients", "streak_masks")),
    )
}
