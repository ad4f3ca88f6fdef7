"""One chip and its amplifiers (LV-27): sections and numbers fixed in the file or found in the header, and mistakes."""

import pytest
from astropy.io import fits
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lap_assets.errors import UnprocessableData
from lap_assets.model.chip import Amplifier, Chip, parse_section

CD_DEG = ((-1e-4, 0.0), (0.0, 1e-4))
KEYED = {
    "data_key": "DATASEC{}", "overscan_key": "BIASSEC{}", "gain_key": "GAIN{}", "read_noise_key": "RDNOISE{}",
    "saturation_key": "SATURAT{}",
}  # fmt: skip
CARDS = {
    "NAXIS1": 24, "NAXIS2": 14, "DATASECA": "[13:20,3:14]", "DATASECB": "[5:12,3:14]", "BIASSECA": "[21:24,*]",
    "BIASSECB": "[1:4,3:14]", "GAINA": 4.5, "GAINB": 4.4, "RDNOISEA": 7.1, "RDNOISEB": 7.0, "SATURATA": 43266.0,
    "SATURATB": 44935.0,
}  # fmt: skip


def keyed_chip(**values):
    """A chip all of whose amplifiers are told by its header: B on the left, A on the right."""
    amps = [{"name": letter, **{key: text.format(letter) for key, text in KEYED.items()}} for letter in "AB"]
    return Chip(**({"name": "S1", "hdu": "S1", "nx": 16, "ny": 12, "crpix": (0, 0), "cd_deg": CD_DEG,
                    "amplifiers": amps} | values))  # fmt: skip


def header(**cards):
    """The header of a raw frame; a card of None is left out."""
    return fits.Header({key: value for key, value in (CARDS | cards).items() if value is not None})


def test_sections_and_numbers_come_from_the_header():
    """LV-27, LV-11: FITS sections, 1-based and inclusive, `*` for all rows; the trimmed chip as the sections lie."""
    chip = keyed_chip().resolve(header())
    a, b = chip.amplifiers
    assert (a.data, a.overscan, a.target) == ((12, 20, 2, 14), (20, 24, 2, 14), (8, 16, 0, 12))
    assert (b.data, b.overscan, b.target) == ((4, 12, 2, 14), (0, 4, 2, 14), (0, 8, 0, 12))
    assert (a.gain, a.read_noise_e, a.saturation_adu, b.gain) == (4.5, 7.1, 43266.0, 4.4)
    assert chip.is_resolved and chip.resolve(header(GAINA=-1.0)) is chip
    assert not keyed_chip().is_resolved


def test_a_chip_without_keys_is_itself():
    amp = {"name": "A", "data": (4, 12, 0, 12), "target": (0, 8, 0, 12)}
    chip = keyed_chip(nx=8, amplifiers=[amp])
    assert chip.resolve(fits.Header()) is chip


def test_targets_may_be_told_by_the_header_too():
    """Data sections with the overscans between them do not lie as on the chip: CCDSEC says where they go."""
    amps = [
        {"name": "A", "data_key": "DATASECA", "target_key": "CCDSECA"},
        {"name": "B", "data_key": "DATASECB", "target_key": "CCDSECB"},
    ]
    cards = header(DATASECA="[1:8,1:12]", DATASECB="[17:24,1:12]", CCDSECA="[1:8,1:12]", CCDSECB="[9:16,1:12]")
    a, b = keyed_chip(amplifiers=amps).resolve(cards).amplifiers
    assert (a.data, a.target, a.overscan) == ((0, 8, 0, 12), (0, 8, 0, 12), None)
    assert (b.data, b.target) == ((16, 24, 0, 12), (8, 16, 0, 12))
    with pytest.raises(UnprocessableData, match=r"chip S1: .*target of amplifier B lies outside.*CCDSECB"):
        keyed_chip(amplifiers=amps).resolve(header(**{**dict(cards), "CCDSECB": "[17:24,1:12]"}))


def test_a_number_the_header_lacks_is_that_of_the_camera_file_if_there_is_one():
    amps = [dict(amp) | {"gain": 4.0} for amp in keyed_chip().model_dump(exclude_unset=True)["amplifiers"]]
    assert keyed_chip(amplifiers=amps).resolve(header(GAINA=None)).amplifiers[0].gain == 4.0
    with pytest.raises(UnprocessableData, match=r"chip S1: header key GAINA.*is missing"):
        keyed_chip().resolve(header(GAINA=None))


@pytest.mark.parametrize(
    ("cards", "said"),
    [
        ({"DATASECA": None}, "header key DATASECA, .* is missing"),
        ({"BIASSECB": None}, "header key BIASSECB, .* is missing"),
        ({"BIASSECB": ""}, "header key BIASSECB, .* is missing"),
        ({"DATASECA": "13:20,3:14"}, "DATASECA = '13:20,3:14' is no section"),
        ({"DATASECA": "[13:20,3:15]"}, r"DATASECA .* lies outside the frame of 24 x 14"),
        ({"BIASSECA": "[21:25,3:14]"}, r"BIASSECA .* lies outside the frame of 24 x 14"),
        ({"BIASSECA": "[24:21,3:14]"}, "BIASSECA .* is empty or reversed"),
        ({"DATASECA": "[0:20,3:14]"}, "DATASECA .* begins before the first pixel"),
        ({"BIASSECA": "[21:24,3:13]"}, "BIASSECA covers rows 3 to 13, the data of amplifier A rows 3 to 14"),
        ({"DATASECB": "[6:13,3:14]"}, "data of amplifiers A and B .* cover the same pixels"),
        ({"BIASSECA": "[19:24,3:14]"}, "overscan of amplifier A .* lies on exposed pixels"),
        ({"DATASECA": "[13:19,3:14]"}, "must cover it exactly once"),
        ({"GAINA": 0.0}, "GAINA = 0.0 is no gain > 0"),
        ({"GAINB": -4.4}, "GAINB = -4.4 is no gain > 0"),
        ({"GAINB": "high"}, "GAINB = 'high' is no gain > 0"),
        ({"RDNOISEA": -1.0}, "RDNOISEA = -1.0 is no read_noise_e > 0"),
        ({"SATURATA": 0}, "SATURATA = 0 is no saturation_adu > 0"),
    ],
)
def test_what_the_header_cannot_say_is_one_line_with_chip_and_key(cards, said):
    """LV-27: no overscan where one is promised, sections outside the frame, gain 0, amplifiers over one another."""
    with pytest.raises(UnprocessableData, match=said) as caught:
        keyed_chip().resolve(header(**cards))
    assert "chip S1" in str(caught.value) and "\n" not in str(caught.value)


def test_without_naxis_the_frame_is_as_large_as_the_camera_says():
    cards = header(NAXIS1=None, NAXIS2=None)
    assert keyed_chip(raw_nx=24, raw_ny=14).resolve(cards).amplifiers[0].data == (12, 20, 2, 14)
    with pytest.raises(UnprocessableData, match="NAXIS1"):
        keyed_chip().resolve(cards)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "needs data or data_key"),
        ({"data": (0, 8, 0, 12)}, "needs target"),
        ({"data": (0, 8, 0, 12), "target": (0, 8, 0, 12), "gain": 0.0}, "gain of amplifier A must be > 0"),
        ({"data": (0, 8, 0, 12), "target": (0, 8, 0, 12), "gain": float("nan")}, "finite number"),
        ({"data": (0, 8, 0, 12), "target": (0, 8, 0, 12), "linearity_max_adu": 0.0}, "must be > 0"),
        ({"data_key": "D", "readout": ("left", "up")}, "readout"),
    ],
)
def test_mistakes_of_an_amplifier(values, said):
    with pytest.raises(ValidationError, match=said):
        Amplifier(name="A", **values)


@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 500), st.integers(0, 500))
def test_a_section_is_its_own_inverse(x0, y0, width, height):
    """What `[x0:x1,y0:y1]` covers has (x1 - x0 + 1) columns and begins at pixel x0 - 1, counted from 0."""
    box = parse_section(f"[{x0}:{x0 + width},{y0}:{y0 + height}]", (1000, 1000))
    assert box == (x0 - 1, x0 + width, y0 - 1, y0 + height)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 9)), min_size=1, max_size=4), st.integers(1, 30),
    st.integers(0, 7), st.integers(0, 7),
)  # fmt: skip
def test_any_row_of_amplifiers_is_laid_out_without_gap_or_overlap(widths, ny, prescan, skipped_rows):
    """Amplifiers beside one another, their overscans after them all: the trimmed chip is covered exactly once."""
    amps, cards, x, n = [], {}, prescan + 1, len(widths)
    rows = f"{skipped_rows + 1}:{skipped_rows + ny}"
    for k, (width, _) in enumerate(widths):
        cards[f"DATA{k}"] = f"[{x}:{x + width - 1},{rows}]"
        x += width
    for k, (_, strip) in enumerate(widths):
        cards[f"BIAS{k}"] = f"[{x}:{x + strip - 1},*]"
        x += strip
        amps.append({"name": f"a{k}", "data_key": f"DATA{k}", "overscan_key": f"BIAS{k}"})
    nx = sum(width for width, _ in widths)
    cards |= {"NAXIS1": x - 1, "NAXIS2": skipped_rows + ny}
    chip = keyed_chip(nx=nx, ny=ny, amplifiers=amps).resolve(cards)
    covered = [[0] * nx for _ in range(ny)]
    for amp in chip.amplifiers:
        x0, x1, y0, y1 = amp.target
        for row in covered[y0:y1]:
            row[x0:x1] = [one + 1 for one in row[x0:x1]]
        assert amp.data[0] - amp.target[0] == prescan and amp.data[2] - amp.target[2] == skipped_rows
        assert amp.overscan[2:] == amp.data[2:] and amp.overscan[0] >= prescan + nx
    assert len(chip.amplifiers) == n and {one for row in covered for one in row} == {1}
