"""What people ask of a repository in a terminal: list, show, fetch, cut out, report, check. Text and files out."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from astropy.io import fits

from lap_assets.errors import BadInput, NotFound
from lap_assets.model.camera import CAMERAS_DIR, load_camera
from lap_assets.model.cells import ProjectionCell
from lap_assets.model.ids import JOIN, DataId
from lap_assets.model.image import MaskedImage
from lap_assets.model.products import CELL_BANDS, CELLS, EXPOSURE_CELLS, EXPOSURES, PRODUCTS, get_product
from lap_assets.model.sphere import separation_deg, unit_vectors
from lap_assets.model.states import ENDED
from lap_assets.model.survey import PartitionRef, Run, Survey
from lap_assets.operations.report import compare_with_truth, describe_comparison, summarize_states
from lap_assets.operations.workspace import Workspace
from lap_assets.pipeline.compute import count_slots, count_workers, find_memory_gib, find_needs
from lap_assets.pipeline.stages import STAGES
from lap_assets.qa.pictures import colour_picture
from lap_assets.settings import ComputeSettings, Settings
from lap_assets.store.verify import fsck, sweep

TAGS = ("lap_id", "label", "dist_group")  # of runs, handed to all that is made for them


def summarize_products(space: Workspace, collection: str | None = None) -> pd.DataFrame:
    """One row per product: partitions there are and done, units, bytes; of one collection, or of all that are open."""
    table = space.repo.query(collection=collection)
    rows = []
    for name, product in PRODUCTS.items():
        mine = table[table["product"] == name] if len(table) else table
        done = mine[mine["state"] == "done"] if len(mine) else mine
        rows.append(
            {
                "product": name,
                "partitions": mine["partition"].nunique() if len(mine) else 0,
                "units": len(mine),
                "done": len(done),
                "MB": round(float(done["bytes"].sum()) / 1e6, 1) if len(done) else 0.0,
                "what": product.title,
            }
        )
    return pd.DataFrame(rows)


def list_units(space: Workspace, product: str | None, where: str | None, collection: str | None = None) -> pd.DataFrame:
    """Units of a product that match an expression: data id, state, bytes, tags of their runs, reason."""
    table = space.repo.query(product, where, collection, make_tags(space))
    columns = ("data_id", "state", "bytes", *TAGS, "reason")
    return table[
        [column for column in columns if column in table.columns and (column not in TAGS or table[column].any())]
    ]


def make_tags(space: Workspace) -> Callable[[DataId], dict[str, str]]:
    """How a unit finds the tags of the runs it was made for (LAP-06); several are joined by `+`."""
    found: dict[str, dict[PartitionRef, dict[str, str]]] = {}

    def tags(data_id: DataId) -> dict[str, str]:
        if data_id.collection not in found:
            found[data_id.collection] = tag_partitions(space.ledger.survey(data_id.collection, lean=True))
        return found[data_id.collection].get((get_product(data_id.product).partitions, data_id.partition), {})

    return tags


def tag_partitions(survey: Survey) -> dict[PartitionRef, dict[str, str]]:
    """Run number, label and distribution group by (partition set, partition)."""
    runs: dict[PartitionRef, list[Run]] = {}
    for run in survey.runs:
        mine = [(CELL_BANDS, f"{run.cell}{JOIN}{run.band}"), (CELLS, run.cell)]
        mine += [ref for e in run.everyone for ref in ((EXPOSURES, e), (EXPOSURE_CELLS, f"{e}{JOIN}{run.cell}"))]
        for ref in mine:
            runs.setdefault(ref, []).append(run)
    return {
        ref: {
            name: "+".join(dict.fromkeys(str(value) for run in some if (value := getattr(run, name)) not in ("", None)))
            for name in TAGS
        }
        for ref, some in runs.items()
    }


def describe_thing(thing: Any) -> str:
    """A few lines about a fetched product."""
    if isinstance(thing, MaskedImage):
        good = thing.usable
        middle = (
            f"median {np.median(thing.sci[good]):.4g}, noise {np.sqrt(np.median(thing.var[good])):.4g}"
            if good.any()
            else "no usable pixel"
        )
        unit = thing.header.get("BUNIT", "")
        return f"image of {thing.shape[1]} x {thing.shape[0]} pixels, {100 * good.mean():.1f} % usable, {middle} {unit}"
    if isinstance(thing, pd.DataFrame):
        return f"table of {len(thing)} rows\n{thing.head(10).to_string()}"
    if isinstance(thing, bytes):
        return f"{len(thing)} bytes"
    if isinstance(thing, dict) and all(isinstance(value, tuple) for value in thing.values()):
        return "\n".join(f"{name}: {array.shape} {array.dtype}" for name, (array, _) in thing.items())
    return json.dumps(thing, indent=1)


def save_thing(thing: Any, out: Path) -> None:
    """Write a fetched product to a file; the suffix says how. Raises `BadInput` where it cannot be."""
    suffix = out.suffix.lower()
    if isinstance(thing, MaskedImage) and suffix == ".fits":
        image_hdus(thing).writeto(out, overwrite=True)
    elif isinstance(thing, MaskedImage) and suffix == ".png":
        out.write_bytes(colour_picture(thing.sci, thing.sci, thing.sci))
    elif isinstance(thing, pd.DataFrame) and suffix == ".parquet":
        thing.to_parquet(out)
    elif isinstance(thing, pd.DataFrame) and suffix == ".csv":
        thing.to_csv(out, index=False)
    elif isinstance(thing, bytes):
        out.write_bytes(thing)
    elif isinstance(thing, dict) and suffix == ".fits":
        planes = [fits.ImageHDU(array, header, name=name) for name, (array, header) in thing.items()]
        fits.HDUList([fits.PrimaryHDU(), *planes]).writeto(out, overwrite=True)
    elif isinstance(thing, dict) and suffix == ".json":
        out.write_text(json.dumps(thing, indent=1) + "\n")
    else:
        raise BadInput(
            f"cannot write this product as {suffix or 'a file without a suffix'}: "
            "use .fits or .png for images, .parquet or .csv for tables, .json"
        )


def image_hdus(image: MaskedImage) -> fits.HDUList:
    """An image as HDUs: SCI, MASK, VAR and its further planes."""
    planes = {"SCI": image.sci, "MASK": image.mask, "VAR": image.var} | image.planes
    hdus = [
        fits.ImageHDU(array, image.header if name == "SCI" else image.wcs.to_header(relax=True), name=name)
        for name, array in planes.items()
    ]
    return fits.HDUList([fits.PrimaryHDU(), *hdus])


def show_settings(settings: Settings) -> str:
    """All settings with their values, as YAML; passwords are left out."""
    values = settings.model_dump(mode="json")
    values["ledger_url"] = re.sub(r"(://[^:/@]*:)[^@]*@", r"\1***@", values["ledger_url"])
    return yaml.safe_dump(values, sort_keys=False).rstrip()


def show_compute(compute: ComputeSettings) -> str:
    """How work would be spread: what does it, and of each product what a unit takes and how many are made at once."""
    if compute.executor == "dask":
        job = compute.cluster
        where = f"up to {job.jobs} jobs of {job.kind}, {job.cores} cores and {job.memory_gib:g} GiB each" if job else ""
        lines = [f"dask on {where or compute.scheduler_address}"]
    else:
        workers = 1 if compute.executor == "serial" else count_workers(compute)
        lines = [f"{compute.executor}, {workers} at once, {find_memory_gib(compute):.1f} GiB together"]
    lines.append(f"{'product':16} {'GiB':>5} {'cores':>5}  at once")
    for name in STAGES:
        needs, slots = find_needs(compute, name), count_slots(compute, name)
        lines.append(f"{name:16} {needs.memory_gib:5.1f} {needs.cores:5d}  {slots or 'as the cluster has room'}")
    return "\n".join(lines)


def show_cameras() -> str:
    """The cameras that come with the package."""
    cameras = [load_camera(path.stem) for path in sorted(CAMERAS_DIR.glob("*.yaml"))]
    return "\n".join(f"{c.name:10} {len(c.chips):3} chips  {c.pixel_scale_arcsec} arcsec  {c.title}" for c in cameras)


def show_products() -> str:
    """The product table."""
    return "\n".join(f"{p.name:16} {' x '.join(p.keys):24} {p.title}" for p in PRODUCTS.values())


def show_unit(space: Workspace, product: str, keys: dict[str, str], out: Path | None) -> str:
    """What units of a product are made of: state, inputs, numbers, members; writes the preview to `out`."""
    found = space.repo.find(product, **keys)
    if not found:
        raise NotFound(f"no {product} with {keys or 'any key'}; `lap ls {product}` shows what there is")
    lines = []
    for data_id in found[:20]:
        lines += describe_unit(space, data_id)
    if len(found) > 20:
        lines.append(f"… and {len(found) - 20} more; name more keys")
    if out is not None:
        out.write_bytes(space.repo.read_bytes(found[0], "preview.png"))
        lines.append(f"wrote {out}")
    return "\n".join(lines)


def describe_unit(space: Workspace, data_id: DataId) -> list[str]:
    """Lines about one unit, from its manifest."""
    manifest = space.repo.manifest(data_id)
    if manifest is None:
        return [f"{data_id}: not made"]
    lines = [f"{data_id}: {manifest.state} {manifest.reason}".rstrip()]
    lines += [f"  {name} = {value}" for name, value in sorted(manifest.metrics.items())]
    lines += [
        f"  {record.name}: {record.bytes} bytes, parts_sha256 {record.parts_sha256[:12]}"
        for record in manifest.members.values()
    ]
    inputs = Counter(pin.data_id.product for pin in manifest.inputs)
    lines += [f"  made from {count} {name}" for name, count in inputs.items()]
    lines.append(
        f"  run {manifest.run_id or '-'}, {manifest.seconds:.2f} s, environment {manifest.fingerprint.get('id', '-')}"
    )
    return lines


def write_cutout(
    space: Workspace, collection: str | None, ra: float, dec: float, size_arcsec: float, bands: list[str], out: Path
) -> str:
    """Cut a square out of the final stacks that cover a point; a colour PNG of three bands or a FITS of one."""
    from lap_assets.operations.pictures import cut_stack

    if not (0 <= ra <= 360 and -90 <= dec <= 90 and 0 < size_arcsec < np.inf):
        raise BadInput(
            f"cutout needs 0 <= RA <= 360, -90 <= DEC <= 90 and a positive size; got {ra} {dec} {size_arcsec}"
        )
    survey = space.survey(collection)
    cell = next((c for c in survey.bands_of if covers(survey.cells[c], ra, dec)), None)
    if cell is None:
        raise NotFound(
            f"no projection cell with a run covers RA {ra} Dec {dec}; cells: {', '.join(survey.bands_of) or 'none'}"
        )
    widest = max(survey.cells[cell].nx, survey.cells[cell].ny) * survey.cells[cell].pixel_scale_arcsec
    if size_arcsec > widest:
        raise BadInput(
            f"a cutout of {size_arcsec:g} arcsec is larger than its projection cell {cell} ({widest:.0f} arcsec)"
        )
    there = survey.bands_of[cell]
    unknown = [band for band in bands if band not in there]
    if unknown:
        raise BadInput(f"no stack in band {unknown[0]!r} there; bands: {', '.join(there)}")
    if out.suffix.lower() == ".fits":
        image = cut_stack(
            space.repo, survey.collection, survey.cells[cell], (bands or list(there))[0], ra, dec, size_arcsec
        )
        save_thing(image, out)
        return f"wrote {out}: {image.shape[1]} x {image.shape[0]} pixels of {cell}"
    chosen = bands or sorted(there, key="ugrizy".find, reverse=True)[:3]
    chosen = (chosen + [chosen[-1]] * 3)[:3]
    images = [
        cut_stack(space.repo, survey.collection, survey.cells[cell], band, ra, dec, size_arcsec) for band in chosen
    ]
    out.write_bytes(colour_picture(*(image.sci for image in reversed(images))))
    return f"wrote {out}: {'/'.join(chosen)} of {cell} as red/green/blue"


def covers(cell: ProjectionCell, ra_deg: float, dec_deg: float) -> bool:
    """Whether a point lies on the pixels of a projection cell."""
    if separation_deg(unit_vectors(ra_deg, dec_deg), unit_vectors(cell.ra_deg, cell.dec_deg)) > 89.0:
        return False
    x, y = cell.sky_to_pixel(ra_deg, dec_deg)
    return bool(0 <= x < cell.nx and 0 <= y < cell.ny)


def make_report(space: Workspace, collection: str | None, truth: Path | None) -> dict[str, Any]:
    """Counts by product and state, and with a truth folder the comparison."""
    survey = space.survey(collection)
    report = summarize_states(space, survey)
    return report | compare_with_truth(space, survey, truth) if truth else report


def describe_report(report: dict[str, Any]) -> str:
    """A report as text."""
    lines = [
        f"units: {report['units_done']} done, {report['units_other']} without data, {report['units_failed']} failed"
    ]
    for product, counts in report["products"].items():
        lines.append(f"  {product:16} " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    lines += [f"  {name}: {reason}" for name, reason in report["not_done"].items()]
    return "\n".join(lines + describe_comparison(report))


def check_store(space: Workspace, full: bool) -> tuple[list[str], int]:
    """Check every unit; broken ones are quarantined and taken off the ledger, versions replaced long ago are removed.

    A unit the ledger knows as done, but that has no manifest any more, is broken too: its bytes are kept.

    Returns lines for a terminal and the number of things found broken.
    """
    outcome = fsck(space.repo, full=full)
    known = {unit.data_id for unit in space.ledger.units() if unit.state in ENDED}
    lost = sorted(d for d in known - set(outcome.broken) if space.repo.manifest(d) is None)
    for data_id in [*outcome.broken, *lost]:
        space.ledger.forget_unit(data_id)
    held = {lease.key for lease in space.ledger.leases()}
    units = space.repo.all_units()
    busy = {d for d in units if f"{d.collection}/{d.product}/{d.partition}" in held}
    removed = sweep(space.repo, leased=frozenset(busy.union(lost)))
    lines = [f"{data_id}: its manifest is gone; `lap run` makes it again" for data_id in lost]
    lines += [*outcome.lines, f"{len(removed)} versions replaced more than an hour ago removed"]
    return lines, len(outcome.broken) + len(outcome.damaged) + len(lost)
