"""Cleaning one unit: its files go, its manifest stays and says what they were.

The order is the promise: the manifest is replaced atomically by one of state `cleaned`, then the content directory is
renamed away and unlinked. Killed anywhere, the unit is full or cleaned; what is left over is removed by cleaning it
again, or by `verify.py`. Whether a unit may be cleaned is not decided here.
"""

from dataclasses import replace

from lap_assets.model.states import CLEANED, DONE
from lap_assets.store.layout import DIGITS, Layout
from lap_assets.store.manifest import Manifest
from lap_assets.store.publish import check_inside, replace_manifest
from lap_assets.store.versions import read_current, remove_version


def clean_unit(layout: Layout, manifest: Manifest, reason: str, fence: int | None = None) -> int:
    """Remove the files of a unit and keep all that is needed to make them again.

    Parameters
    ----------
    manifest : Manifest
        As it is on disk; results without members are left as they are.
    reason : str
        Why, kept in the manifest.
    fence : int, optional
        Fencing number of the lease under which it is done; None: that of the manifest is kept.

    Returns
    -------
    int
        Bytes that are free now; files that another unit shares (hard links) free none.

    Raises
    ------
    Conflict
        A manifest with a higher fence is on disk already.
    """
    data_id, folder = manifest.data_id, layout.unit_dir(manifest.data_id)
    check_inside(folder)
    if manifest.state == DONE:
        kept = manifest.fence if fence is None else fence
        replace_manifest(folder, replace(manifest, state=CLEANED, directory="", reason=reason, fence=kept))
    elif manifest.state != CLEANED:
        return 0
    versions = [one for one in layout.find_versions(data_id) if one.name.startswith(manifest.content_sha256[:DIGITS])]
    return sum(remove_version(one, lambda: read_current(layout, data_id)) or 0 for one in versions)
