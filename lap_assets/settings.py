"""The settings of a repository: frozen pydantic models, read from YAML (safe loader) and the environment.

One class per stage; its values are hashed into the recipe of the products of that stage, so that a changed number
re-makes what depends on it and nothing else. Nothing happens at import. Field names carry their units.
"""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ComputeSettings(Section):
    """How work is spread (never part of a recipe: bytes do not depend on it)."""

    executor: str = "processes"
    workers: int = 0  # 0: as many as there are cores


class Settings(Section):
    """All settings of one repository."""

    compute: ComputeSettings = ComputeSettings()
