import hashlib
import io

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lap_assets.errors import PermanentFailure
from lap_assets.model.image import MaskedImage
from lap_assets.store.fits_format import (
    MalformedFile,
    decode_first_header,
    decode_planes,
    encode_hdus,
    hash_decoded,
    hash_parts,
    hash_written,
    image_of_planes,
    normalise_plane,
    planes_of_image,
    prepare_plane,
)
from lap_assets.store.fits_headers import encode_header, parse_cards, read_structure
from lap_assets_tests.store.samples import make_image

CARDS = {"LAPPROD": "warps"}
dtypes = st.sampled_from(["u1", "i2", "i4", "i8", "f4", "f8"]).map(np.dtype)
arrays = hnp.arrays(dtypes, hnp.array_shapes(min_dims=1, max_dims=3, max_side=7))


def prepare(planes):
    return {name: prepare_plane(name, array, header) for name, (array, header) in planes.items()}


def join_parts(hdus) -> list[bytes]:
    return [b"".join(map(bytes, part)) for part in encode_hdus(hdus, CARDS)]


def hash_planes(hdus) -> tuple[str, str]:
    """Both hashes of a file from what is to be written."""
    return hash_written(hdus, [hashlib.sha256(part).digest() for part in join_parts(hdus)])


def encode(planes) -> bytes:
    return b"".join(join_parts(prepare(planes)))


def image_bytes(value: float = 3.0) -> bytes:
    return encode(planes_of_image(make_image(value)))


@given(arrays)
@settings(deadline=None)
def test_planes_come_back_bit_for_bit(array):
    data = encode({"SCI": (array, fits.Header())})
    back, header = decode_planes(io.BytesIO(data))["SCI"]
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()
    assert header["NAXIS"] == array.ndim


@given(arrays)
@settings(deadline=None)
def test_astropy_reads_the_same_and_agrees_with_both_checksums(array):
    data = encode({"SCI": (array, fits.Header())})
    with fits.open(io.BytesIO(data), checksum=True) as hdus:
        hdus.verify("exception")
        assert hdus["SCI"].data.astype(array.dtype).tobytes() == array.tobytes()
        assert hdus["SCI"].header["DATASUM"] == str(prepare_plane("SCI", array, fits.Header()).datasum)
        assert [hdu.verify_checksum() and hdu.verify_datasum() for hdu in hdus] == [1, 1]


@given(arrays)
@settings(deadline=None)
def test_hashes_of_what_is_written_are_those_of_what_is_read(array):
    planes = {"SCI": (array, make_image().header), "VAR": (array[::-1], make_image().header)}
    stream = io.BytesIO(encode(planes))
    parts, data = hash_parts(stream)
    stream.seek(0)
    assert (parts, hash_decoded(stream, data)[1]) == hash_planes(prepare(planes))
    assert data["SCI"] == hashlib.sha256(array.astype(array.dtype.newbyteorder(">")).tobytes()).digest()


def test_the_hash_of_a_file_sees_every_byte():
    """Also padding, which says nothing, and cards that are no content; and a byte more or less."""
    data = image_bytes()
    known = hash_parts(io.BytesIO(data))[0]
    for position in range(0, len(data), 7):
        bad = bytearray(data)
        bad[position] ^= 1
        assert hash_or_refuse(bytes(bad)) != known
    for changed in (data[:-1], data + b"0", data + bytes(2880), data[:2880]):
        assert hash_or_refuse(changed) != known


def hash_or_refuse(data: bytes) -> str:
    """The hash of a file, or why there is none."""
    try:
        return hash_parts(io.BytesIO(data))[0]
    except MalformedFile as error:
        return str(error)


def test_content_hash_sees_pixels_type_shape_name_and_header():
    base = np.arange(6, dtype=np.float32).reshape(2, 3)
    header = make_image().header
    other_header = header.copy()
    other_header["CRVAL1"] = 151.0
    changed = base.copy()
    changed[1, 1] = np.nextafter(changed[1, 1], np.float32(9))
    variants = [
        {"SCI": (base, header)},
        {"SCI": (changed, header)},
        {"SCI": (base.astype("f8"), header)},
        {"SCI": (base.reshape(3, 2), header)},
        {"VAR": (base, header)},
        {"SCI": (base, other_header)},
    ]
    assert len({hash_planes(prepare(planes))[1] for planes in variants}) == len(variants)


def test_bytes_carry_no_clock_path_or_history():
    image = make_image()
    image.header["DATE"] = "2024-01-01T00:00:00"
    image.header["HISTORY"] = "made in /home/someone"
    image.header["COMMENT"] = "by host abc"
    image.header["DATE-OBS"] = "2019-03-04"
    data = encode(planes_of_image(image))
    assert b"/home" not in data and b"abc" not in data and b"2024" not in data
    assert b"2019-03-04" in data  # when the sky was observed is no clock
    assert data == encode(planes_of_image(image))


def test_image_round_trip_keeps_header_and_gives_every_plane_the_wcs():
    image = make_image(7.0)
    image.planes["NINPUT"] = np.ones(image.shape, np.int16)
    planes = decode_planes(io.BytesIO(encode(planes_of_image(image))))
    back = image_of_planes(planes)
    assert {key: back.header[key] for key in image.header} == dict(image.header)
    assert back.planes.keys() == {"NINPUT"}
    np.testing.assert_allclose(back.wcs.pixel_to_world_values(3, 4), image.wcs.pixel_to_world_values(3, 4), rtol=1e-14)
    for name in ("MASK", "VAR", "NINPUT"):
        assert planes[name][1]["CRPIX1"] == image.header["CRPIX1"]
    assert planes["MASK"][1]["MB03"] == "COSMIC_RAY"
    assert planes["VAR"][1]["BUNIT"] == "(nJy)2"


def test_some_planes_are_read_without_the_others():
    back = image_of_planes(decode_planes(io.BytesIO(image_bytes()), ("SCI", "VAR")))
    assert back.mask is None and back.sci.shape == back.var.shape == (12, 10)
    assert decode_first_header(io.BytesIO(image_bytes()))["VALUE"] == 3.0


@pytest.mark.parametrize("array", [np.zeros(3, complex), np.zeros(3, "u2"), np.zeros((0, 2)), np.float32(1)])
def test_what_fits_has_no_type_for_is_refused(array):
    with pytest.raises(PermanentFailure, match="plane SCI"):
        normalise_plane("SCI", array)


def test_header_values_that_are_no_ascii_are_refused():
    header = fits.Header()
    header["OBJECT"] = "M31"
    header.cards["OBJECT"]._value = "Größe"
    with pytest.raises(PermanentFailure, match="header card"):
        encode({"SCI": (np.ones((2, 2)), header)})


def test_cards_are_read_and_written_as_astropy_does():
    """Text with a quote or too long for a card, HIERARCH, comments, numbers: content cards come back as they were."""
    header = make_image().header
    header["OBJECT"], header["LONG"], header["HIERARCH lap key"] = ("it's", "a comment / with a slash"), "x" * 150, 3
    header["EXPTIME"], header["GOOD"], header["NONE"] = (12.25, "s"), True, None
    data = encode({"SCI": (np.ones((2, 3), np.float32), header)})
    with fits.open(io.BytesIO(data), checksum=True) as hdus:
        hdus.verify("exception")
        theirs = dict(hdus["SCI"].header)
    ours = decode_planes(io.BytesIO(data))["SCI"][1]
    assert {key: ours[key] for key in header} == dict(header) == {key: theirs[key] for key in header}
    assert ours.comments["OBJECT"] == "a comment / with a slash"


def test_values_that_describe_data_are_read_from_any_spelling():
    text = "".join(
        card.ljust(80)
        for card in (
            "XTENSION= 'IMAGE'              / one's own",
            "BITPIX  = -32/bits",
            "NAXIS   =                    2",
            "NAXIS1  =                 +7 ",
            "NAXIS2  =                   3.0",
            "EXTNAME = 'IT''S  '",
            "EXTNAME = 'SECOND'",
            "ZIMAGE  =                    F",
            "CRVAL1  = nonsense that is no concern of the store",
        )
    )
    cards = parse_cards(text)
    assert cards == {
        "XTENSION": "IMAGE", "BITPIX": -32, "NAXIS": 2, "NAXIS1": 7, "NAXIS2": 3.0, "EXTNAME": "IT'S", "ZIMAGE": False,
    }  # fmt: skip
    assert read_structure(cards, primary=False) == ("IT'S", np.dtype("f4"), (3, 7))
    with pytest.raises(MalformedFile, match="'seven' is no value"):
        parse_cards("NAXIS1  = seven".ljust(80))


def test_every_cut_is_noticed():
    data = image_bytes()
    for end in range(0, len(data), 720):
        with pytest.raises(MalformedFile):
            decode_planes(io.BytesIO(data[:end]), ("SCI", "MASK", "VAR"))


def test_every_flipped_bit_is_noticed():
    data = image_bytes()
    rng = np.random.default_rng(5)
    for position in rng.choice(len(data), 2000, replace=False):
        bad = bytearray(data)
        bad[position] ^= 1 << int(rng.integers(8))
        with pytest.raises(MalformedFile):
            decode_planes(io.BytesIO(bytes(bad)), ("SCI", "MASK", "VAR"))


def test_a_header_that_asks_for_more_than_the_file_holds_costs_no_memory():
    cards = [("XTENSION", "IMAGE"), ("BITPIX", -32), ("NAXIS", 1), ("NAXIS1", 10**13), ("EXTNAME", "SCI")]
    (primary,) = join_parts({})
    with pytest.raises(MalformedFile, match="ends within HDU SCI"):
        decode_planes(io.BytesIO(primary + encode_header(fits.Header(cards), 0) + bytes(2880)))


def test_files_of_others_are_refused_where_they_differ():
    compressed, table, twice = io.BytesIO(), io.BytesIO(), io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(np.ones((4, 4)))]).writeto(compressed)
    column = fits.Column("a", "E", array=np.ones(3))
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns([column])]).writeto(table)
    fits.HDUList([fits.PrimaryHDU(), *(fits.ImageHDU(np.ones((2, 2)), name="SCI") for _ in "ab")]).writeto(twice)
    for stream in (compressed, table, twice, io.BytesIO(b""), io.BytesIO(b"\x00" * 5760)):
        with pytest.raises(MalformedFile):
            stream.seek(0)
            decode_planes(stream)


def test_a_long_text_of_the_coordinate_system_is_whole_in_all_planes():
    """It takes two cards, the second of which is called CONTINUE."""
    long = "a name of a hundred characters " * 3
    header = fits.Header({"CTYPE1": "RA---TAN", "WCSNAME": long.strip(), "BUNIT": "e"})
    pixels = np.ones((4, 4), np.float32)
    image = MaskedImage(pixels, np.zeros((4, 4), np.int16), pixels, header=header)
    back = decode_planes(io.BytesIO(encode(planes_of_image(image))))
    assert [one["WCSNAME"] for _, one in back.values()] == [long.strip()] * 3
