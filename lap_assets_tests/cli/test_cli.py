"""The command line: exit statuses, errors of one line that say what to do, and what the small commands print."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lap_assets.cli.app import app
from lap_assets.model.products import PRODUCTS
from lap_assets.operations.workspace import Workspace
from lap_assets_tests.cli.outcomes import assert_refused
from lap_assets_tests.defs.surveys import create_survey

LAP = Path(sys.executable).with_name("lap")


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    """A repository with exposures and runs in its ledger, and nothing made."""
    return create_survey(tmp_path_factory.mktemp("cli") / "repository").root


def start(*arguments, cwd=None) -> subprocess.CompletedProcess:
    """The installed command in a process of its own."""
    return subprocess.run([LAP, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, timeout=120)


# ---- the real command ------------------------------------------------------------------------------------------------


def test_help_lists_every_command_and_its_options():
    done = start("--help")
    assert done.returncode == 0 and done.stderr == ""
    for command in app.registered_commands:
        assert f" {command.name} " in done.stdout
    for option in ("--repo", "--collection"):
        assert option in done.stdout


def test_help_imports_nothing_heavy():
    """`lap --help` within half a second: neither dagster nor numpy is imported for it."""
    heavy = ("dagster", "numpy", "astropy", "pandas", "yaml")
    code = f"import sys, lap_assets.cli.app; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments", [("ls",), ("run",), ("show", "settings"), ("get", "stacks", "band=r"), ("ui",), ("fsck",)]
)
def test_no_repository_here(lap, elsewhere, arguments):
    assert_refused(lap(*arguments), f"no lap.yaml in {elsewhere}", "--repo DIR", "lap init DIR")


def test_no_repository_here_from_a_shell(elsewhere):
    done = start("ls", cwd=elsewhere)
    assert_refused((done.returncode, done.stdout, done.stderr), "no repository here")


def test_unknown_product_from_a_shell(survey):
    done = start("--repo", survey, "ls", "bananas")
    assert_refused((done.returncode, done.stdout, done.stderr), "unknown product 'bananas'", "final_stacks")


def test_a_closed_pipe_is_no_traceback(survey):
    """`lap ls | head -0`."""
    process = subprocess.Popen([LAP, "--repo", survey, "ls"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    process.wait(timeout=60)


def test_python_tags_in_settings_run_nothing(lap, survey, tmp_path, elsewhere):
    """Settings are plain YAML; a planted tag is an error that names the file."""
    root = create_survey(tmp_path / "planted").root
    (root / "lap.yaml").write_text("compute: !!python/object/apply:os.mkdir [planted]\n")
    done = start("--repo", root, "ls", cwd=elsewhere)
    assert_refused((done.returncode, done.stdout, done.stderr), str(root / "lap.yaml"), "not plain YAML")
    tag = "!!python/object/apply:os.mkdir [planted]"
    assert_refused(lap("--repo", survey, "run", "-c", f"chips.skip_steps={tag}"), "chips.skip_steps")
    assert_refused(lap("init", "other", "--set", f"compute.workers={tag}"), "compute.workers")
    assert not (elsewhere / "planted").exists() and not (elsewhere / "other").exists()


# ---- settings and repositories ---------------------------------------------------------------------------------------


def test_init_makes_a_repository_and_the_second_time_refuses(lap, elsewhere):
    code, out, _ = lap("init", "repo", "--set", "compute.workers=1", "-c", "collections=[main, deep]")
    assert code == 0 and str(elsewhere / "repo") in out
    assert yaml.safe_load((elsewhere / "repo" / "lap.yaml").read_text()) == {
        "compute": {"workers": 1},
        "collections": ["main", "deep"],
    }
    before = {path: path.read_bytes() for path in (elsewhere / "repo").rglob("*") if path.is_file()}
    assert_refused(lap("init", "repo"), "is a repository already", str(elsewhere / "repo"))
    assert {path: path.read_bytes() for path in (elsewhere / "repo").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("setting", "texts"),
    [
        ("compute.bananas=1", ("unknown setting 'compute.bananas'", "lap show settings")),
        ("bananas.workers=1", ("unknown setting 'bananas'",)),
        ("compute.workers=many", ("compute.workers", "integer", "many")),
        ("compute.workers=[1", ("compute.workers", "not plain YAML")),
        ("compute.workers", ("is not section.key=value",)),
        ("=3", ("is not section.key=value",)),
    ],
)
def test_init_refuses_wrong_settings_and_leaves_nothing(lap, elsewhere, setting, texts):
    assert_refused(lap("init", "repo", "--set", setting), *texts)
    assert not (elsewhere / "repo").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bananas: 3\n", "unknown setting 'bananas'"),
        ("chips: {cosmic_ray_sigmas: 3}\n", "unknown setting 'chips.cosmic_ray_sigmas'"),
        ("chips: 3\n", "'chips'"),
        ("- chips\n", "must hold sections"),
        ("chips: {a: [1\n", "not plain YAML"),
        ("\x00", "not plain YAML"),
    ],
)
def test_wrong_settings_file_is_named(lap, tmp_path, text, message):
    root = create_survey(tmp_path / "repository").root
    (root / "lap.yaml").write_text(text)
    assert_refused(lap("--repo", root, "ls"), str(root / "lap.yaml"), message)


def test_settings_file_that_cannot_be_read(lap, tmp_path):
    root = create_survey(tmp_path / "repository").root
    (root / "lap.yaml").write_bytes(b"chips: \xff\xfe\n")
    assert_refused(lap("--repo", root, "ls"), str(root / "lap.yaml"))


def test_unwritable_places_are_one_line(lap, survey):
    """The operating system's refusal: what and where, status 1."""
    assert_refused(lap("init", "/proc/lap"), "/proc/lap", status=1)
    code, _, err = lap("--repo", survey, "report", "--json", "/proc/lap/report.json")
    assert_refused((code, "", err), "/proc/lap/report.json", status=1)


def test_repository_is_found_from_the_environment_and_from_below(lap, survey, monkeypatch):
    monkeypatch.chdir(survey / "dagster")
    assert lap("ls")[0] == 0
    monkeypatch.chdir("/")
    monkeypatch.setenv("LAP_REPO", str(survey))
    assert lap("ls")[0] == 0
    assert_refused(lap("--repo", "/nowhere", "ls"), "/nowhere is no repository")


def test_lost_ledger_says_how_to_get_it_back(lap, tmp_path):
    root = create_survey(tmp_path / "repository").root
    (root / "ledger.db").unlink()
    assert_refused(lap("--repo", root, "run"), str(root / "ledger.db"), "lap ledger rebuild")


# ---- run and select --------------------------------------------------------------------------------------------------


def test_run_with_nothing_ingested(lap, elsewhere):
    assert lap("init", "repo")[0] == 0
    assert_refused(lap("--repo", "repo", "run"), "nothing is ingested", "lap ingest")


@pytest.mark.parametrize(
    ("options", "texts"),
    [
        (("--to", "bananas"), ("unknown product 'bananas'",)),
        (("--select", "colour=red"), ("colour", "exposure", "band")),
        (("--select", "band"), ("'band'",)),
        (("--select", "band=z"), ("nothing matches", "lap ls")),
        (("--select", "band="), ("band=",)),
        (("--select", "band=r;rm"), ("nothing matches",)),
        (("-c", "chips.bananas=1"), ("unknown setting 'chips.bananas'",)),
        (("-c", "compute.executor=bananas"), ("bananas", "serial", "processes")),
        (("-c", "compute.executor=dask"), ("'compute'", "scheduler_address or cluster")),
        (("-c", "compute.workers=-2"), ("compute.workers", "greater than or equal to 0")),
        (("-c", "compute.memory_gib=-1"), ("compute.memory_gib",)),
        (("-c", "warps.kernel=sinc"), ("warps.kernel", "lanczos3", "sinc")),
        (("-c", "warps.grid_step_px=0"), ("warps.grid_step_px",)),
        (("-c", "stacks.clip_sigma=0"), ("stacks.clip_sigma", "greater than 0")),
        (("-c", "stacks.clip_sigma=.nan"), ("stacks.clip_sigma", "greater than 0")),
        (("-c", "quality.max_psf_residual=0"), ("quality.max_psf_residual", "greater than 0")),
        (("-c", "quality.max_psf_residual=.nan"), ("quality.max_psf_residual", "greater than 0")),
        (("-c", "stacks.min_inputs=0"), ("stacks.min_inputs",)),
        (("-c", "diffs.method=hotpants"), ("diffs.method", "alard_lupton", "zogy")),
        (("-c", "diffs.source_snr=-5"), ("diffs.source_snr", "greater than 0")),
        (("-c", "diffs.min_template_inputs=0"), ("diffs.min_template_inputs",)),
        (("-c", "streak_masks.snr=0"), ("streak_masks.snr", "greater than 0")),
        (("-c", "diffs.template_repository=/nowhere"), ("diffs.template_repository: /nowhere is no repository",)),
        (("-c", "diffs.template_collection=wide"), ("diffs.template_collection: no collection 'wide'",)),
    ],
)
def test_run_refuses_what_it_cannot_use(lap, survey, options, texts):
    """Before anything is made: the ledger has no partition afterwards."""
    assert_refused(lap("--repo", survey, "run", *options), *texts)
    assert Workspace.open(survey).ledger.partition_states("main") == {}


@pytest.mark.parametrize("name", ["../x", "a|b", "a,b", "x" * 300, ""])
def test_collection_names_pass_the_allow_list(lap, survey, name):
    assert_refused(lap("--repo", survey, "--collection", name, "ls"), "collection")


# ---- reading ---------------------------------------------------------------------------------------------------------


def test_ls_of_an_empty_store(lap, survey):
    """All products by name, nothing made; as JSON for machines."""
    code, out, _ = lap("--repo", survey, "ls")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(PRODUCTS)
    code, out, _ = lap("--repo", survey, "ls", "--json")
    assert [(row["product"], row["units"]) for row in json.loads(out)] == [(name, 0) for name in PRODUCTS]
    code, out, _ = lap("--repo", survey, "ls", "chips", "--json")
    assert (code, json.loads(out)) == (0, [])


def test_ls_refuses_an_expression_it_cannot_read(lap, survey):
    assert_refused(lap("--repo", survey, "ls", "chips", "--where", "band=="), "band==")
    assert_refused(lap("--repo", survey, "ls", "--where", "__import__('os')"), "__import__")


def test_show_settings_lists_every_setting_with_its_value(lap, survey):
    from lap_assets.settings import Settings, parse_settings

    code, out, _ = lap("--repo", survey, "show", "settings")
    values = yaml.safe_load(out)
    assert code == 0 and values["compute"]["executor"] == "serial"
    assert set(values) == set(Settings.model_fields)
    assert parse_settings(values, "what was printed").model_dump(mode="json") == values


def test_show_cameras_and_products_need_no_repository(lap):
    code, out, _ = lap("show", "cameras")
    assert code == 0 and {"decam", "simcam", "simtiny"} <= {line.split()[0] for line in out.splitlines()}
    code, out, _ = lap("show", "products")
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == list(PRODUCTS)
    assert "final_stacks     cell x band x skycell" in out


def test_show_and_get_name_what_is_missing(lap, survey):
    """Status 1: the command is right, the product is not there; the line says how to make it."""
    assert_refused(lap("--repo", survey, "show", "stacks", "band=r"), "no stacks", "lap ls stacks", status=1)
    assert_refused(lap("--repo", survey, "get", "stacks", "band=r"), "no stacks", "band=r", "lap run", status=1)
    assert_refused(lap("--repo", survey, "show", "bananas"), "unknown product 'bananas'")
    assert_refused(lap("--repo", survey, "get", "stacks", "band"), "is not key=value")
    assert_refused(lap("--repo", survey, "get", "stacks", "bandd=r"), "bandd")


@pytest.mark.parametrize(
    "place", [("400", "0", "10"), ("150", "-95", "10"), ("150", "2", "0"), ("nan", "2", "10"), ("150", "2", "inf")]
)
def test_cutout_out_of_range(lap, survey, place):
    assert_refused(lap("--repo", survey, "cutout", "--", *place), "cutout needs 0 <= RA <= 360")


def test_cutout_where_there_is_no_sky_or_no_stack(lap, survey, elsewhere):
    assert_refused(lap("--repo", survey, "cutout", "10", "2", "30"), "no projection cell", status=1)
    assert_refused(lap("--repo", survey, "cutout", "148", "2", "30", "--bands", "u"), "no stack in band 'u'", "g, r")
    assert_refused(lap("--repo", survey, "cutout", "148", "2", "30"), "no final stack", "lap ls final_stacks", status=1)
    assert_refused(lap("--repo", survey, "cutout", "148", "2", "1e6"), "larger than its projection cell")
    assert not any(elsewhere.iterdir())


def test_log_of_nothing(lap, survey):
    assert_refused(lap("--repo", survey, "log", "chips"), "is no data id", "COLLECTION/PRODUCT/PARTITION")
    unit = "main/chips/simtiny-west-g-0/c0"
    assert_refused(lap("--repo", survey, "log", unit), unit, status=1)
    assert_refused(lap("--repo", survey, "log", "main/chips/../../etc/passwd"), "data id")


# ---- setting up ------------------------------------------------------------------------------------------------------


def test_ingest_refuses_what_is_not_there(lap, survey, elsewhere):
    (elsewhere / "a.fits").write_bytes(b"")
    assert_refused(lap("--repo", survey, "ingest", "a.fits"), "--camera is missing")
    assert_refused(lap("--repo", survey, "ingest", "a.fits", "--camera", "bananas"), "bananas", "simcam")
    assert_refused(lap("--repo", survey, "ingest", "absent", "--camera", "simtiny"), "absent does not exist")
    assert_refused(lap("--repo", survey, "ingest", "a.fits", "--kind", "refcat"), "--name is missing")


def test_tessellation_refuses_nonsense(lap, survey):
    place = ("--ra", "10", "--dec", "5")
    assert_refused(lap("--repo", survey, "tessellation", "a,b", *place, "--size", "3"), "'a,b'")
    assert_refused(lap("--repo", survey, "tessellation", "t", *place, "--size", "-3"), "must be positive")
    beyond = ("--ra", "10", "--dec", "95")
    assert_refused(lap("--repo", survey, "tessellation", "t", *beyond, "--size", "3"), "dec_deg must lie")


def test_simulate_refuses_a_folder_in_use_and_a_wrong_seed(lap, elsewhere):
    (elsewhere / "full").mkdir()
    (elsewhere / "full" / "something").touch()
    assert_refused(lap("simulate", "--out", "full", "--size", "tiny"), "full is not empty")
    assert_refused(lap("simulate", "--out", "fresh", "--size", "tiny", "--seed", "-1"), "seed -1")


def test_ui_refuses_a_port_out_of_range(lap, survey):
    assert_refused(lap("--repo", survey, "ui", "--port", "70000"), "70000")
