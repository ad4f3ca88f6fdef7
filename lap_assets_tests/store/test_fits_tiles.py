"""Compressed planes: astropy reads the same values, all checks see what they saw, damage is named."""

import hashlib
import io

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lap_assets.model.image import MaskedImage
from lap_assets.store.fits_format import (
    MalformedFile,
    compress_hdus,
    decode_first_header,
    decode_planes,
    encode_hdus,
    hash_decoded,
    hash_parts,
    hash_written,
    planes_of_image,
    prepare_plane,
)
from lap_assets.store.fits_headers import BLOCK, encode_header, parse_cards, write_content
from lap_assets.store.fits_tiles import choose_seed
from lap_assets_tests.store.samples import make_header

SHAPE = (90, 123)


def make_stack_image() -> MaskedImage:
    """Sky noise of 10 or, where more inputs are, 4 nJy, a star, a corner without data."""
    rng = np.random.default_rng(8)
    deviation = np.where(np.arange(SHAPE[1]) < 70, 10.0, 4.0)
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    star = 1e6 * np.exp(-((x - 40) ** 2 + (y - 50) ** 2) / 18.0)
    var = (deviation**2 * (1 + 0.03 * rng.random(SHAPE)) + star / 50).astype(np.float32)
    sci = (star + rng.normal(size=SHAPE) * np.sqrt(var)).astype(np.float32)
    mask = np.where(rng.random(SHAPE) < 0.02, 8, 0).astype(np.int16)
    corner = x + y < 60
    sci[corner], var[corner], mask[corner] = 0.0, 0.0, 32
    count = np.where(corner, 0, 6).astype(np.int16)
    return MaskedImage(sci, mask, var, make_header(), {"NINPUT": count})


def prepare(planes):
    return {name: prepare_plane(name, array, header) for name, (array, header) in planes.items()}


def join_parts(hdus) -> list[bytes]:
    return [b"".join(map(bytes, part)) for part in encode_hdus(hdus, {"LAPPROD": "final_stacks"})]


def encode(hdus) -> bytes:
    return b"".join(join_parts(hdus))


def hash_planes(hdus) -> tuple[str, str]:
    """Both hashes of a file from what is to be written."""
    return hash_written(hdus, [hashlib.sha256(part).digest() for part in join_parts(hdus)])


def compress(image, variance=None):
    return compress_hdus(prepare(planes_of_image(image)), variance)


def test_planes_come_back_within_the_noise_and_masks_to_the_bit():
    image = make_stack_image()
    back = decode_planes(io.BytesIO(encode(compress(image))))
    change = np.abs(back["SCI"][0] - image.sci)
    known = image.var > 0
    assert (change[known] <= np.sqrt(image.var[known]) / 32 + np.spacing(image.sci[known])).all()
    assert (np.abs(back["VAR"][0] - image.var)[known] <= 1e-3 * image.var[known]).all()
    assert (back["SCI"][0][~known] == 0).all() and (back["VAR"][0][~known] == 0).all()
    np.testing.assert_array_equal(back["MASK"][0], image.mask)
    np.testing.assert_array_equal(back["NINPUT"][0], image.planes["NINPUT"])
    plain = decode_planes(io.BytesIO(encode(prepare(planes_of_image(image)))))
    for name, (array, header) in plain.items():
        assert header.tostring() == back[name][1].tostring()
        assert back[name][0].dtype == array.dtype and back[name][0].shape == array.shape


def test_astropy_reads_the_same_values_and_agrees_with_the_checksums():
    """Compared to one unit in the last place: where a compiler fuses operations the last bit may differ."""
    data = encode(compress(make_stack_image()))
    back = decode_planes(io.BytesIO(data))
    with fits.open(io.BytesIO(data)) as hdus:
        hdus.verify("exception")
        assert [hdu.name for hdu in hdus[1:]] == ["SCI", "MASK", "VAR", "NINPUT"]
        for name, (array, header) in back.items():
            assert isinstance(hdus[name], fits.CompImageHDU) and hdus[name].data.dtype.kind == array.dtype.kind
            np.testing.assert_array_max_ulp(hdus[name].data.astype(array.dtype), array, 1)
            assert hdus[name].header.get("CRVAL1") == header["CRVAL1"]
    with fits.open(io.BytesIO(data), disable_image_compression=True) as hdus:
        assert [hdu.verify_checksum() and hdu.verify_datasum() for hdu in hdus] == [1] * 5


planes = st.sampled_from([np.uint8, np.int16, np.int32]).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40))
)


@given(planes)
@settings(deadline=None, max_examples=50)
def test_integers_come_back_from_here_and_from_astropy(array):
    data = encode(compress_hdus(prepare({"USED0": (array, make_header())}), None))
    assert b"RICE_1" in data
    assert np.array_equal(decode_planes(io.BytesIO(data))["USED0"][0], array)
    assert np.array_equal(fits.getdata(io.BytesIO(data), "USED0"), array)


floats = hnp.arrays(np.float32, (5, 37), elements=st.floats(-(2.0**20), 2.0**20, width=32))


@given(floats)
@settings(deadline=None, max_examples=50)
def test_any_image_comes_back_within_a_32nd_of_its_noise(sci):
    image = MaskedImage(sci, np.zeros(sci.shape, np.int16), np.full(sci.shape, 4.0, np.float32), make_header())
    data = encode(compress(image))
    back = decode_planes(io.BytesIO(data))["SCI"][0]
    assert (np.abs(back.astype(float) - sci) <= 2.0 / 32 * (1 + 1e-5) + np.spacing(np.abs(sci))).all()
    np.testing.assert_array_max_ulp(fits.getdata(io.BytesIO(data), "SCI").astype(np.float32), back, 1)
    assert (back[sci == 0] == 0).all()


def test_content_hash_is_that_of_the_decoded_planes():
    hdus = compress(make_stack_image())
    parts, data = hash_parts(io.BytesIO(encode(hdus)))
    arrays, content = hash_decoded(io.BytesIO(encode(hdus)), data)
    assert (parts, content) == hash_planes(hdus)
    # and that of the same planes written plainly
    headers = {name: header for name, (_, header) in decode_planes(io.BytesIO(encode(hdus))).items()}
    plain = hash_planes(prepare({name: (array, headers[name]) for name, array in arrays.items()}))
    assert plain[1] == content and plain[0] != parts


def test_the_same_planes_give_the_same_bytes_and_other_planes_and_places_another_dither():
    image = make_stack_image()
    assert encode(compress(image)) == encode(compress(make_stack_image()))
    seeds = {parse_cards(hdu.cards)["ZDITHER0"] for name, hdu in compress(image).items() if name in ("SCI", "VAR")}
    seeds |= {choose_seed("SCI", write_content(make_header(x0=x))) for x in range(20)}
    assert len(seeds) > 20 and all(1 <= seed <= 10_000 for seed in seeds)


def test_an_image_without_variance_takes_that_of_another_or_stays_as_it_is():
    image = make_stack_image()
    alone = {"SCI": (image.sci, image.header)}
    with_noise = compress_hdus(prepare(alone), image.var)["SCI"]
    back = decode_planes(io.BytesIO(encode({"SCI": with_noise})))["SCI"][0]
    known = image.var > 0
    assert (np.abs(back - image.sci)[known] <= np.sqrt(image.var[known]) / 32 + np.spacing(image.sci[known])).all()
    for variance in (None, image.var[:50], np.zeros_like(image.var)):
        data = encode(compress_hdus(prepare(alone), variance))
        assert np.array_equal(decode_planes(io.BytesIO(data))["SCI"][0], image.sci)


def test_other_planes_and_values_too_far_apart_stay_to_the_bit():
    image = make_stack_image()
    image.sci[3, 100] = 1e30
    others = {"PSF": np.random.default_rng(1).random((2, 3, 9, 9)), "LEVEL": np.ones((4, 5), np.float32)}
    hdus = compress(image) | compress_hdus(prepare({k: (v, make_header()) for k, v in others.items()}), image.var)
    back = decode_planes(io.BytesIO(encode(hdus)))
    for name, array in ({"SCI": image.sci} | others).items():
        assert np.array_equal(back[name][0], array), name


def test_a_stack_is_a_third_of_its_size():
    rng, shape = np.random.default_rng(2), (256, 2000)
    var = (100 * (1 + 0.02 * rng.random(shape))).astype(np.float32)
    image = MaskedImage(rng.normal(0, 10, shape).astype(np.float32), np.zeros(shape, np.int16), var, make_header())
    plain = encode(prepare(planes_of_image(image)))
    assert len(encode(compress(image))) < len(plain) / 3


def test_some_planes_are_read_without_the_others():
    data = encode(compress(make_stack_image()))
    assert list(decode_planes(io.BytesIO(data), ("MASK",))) == ["MASK"]
    assert decode_first_header(io.BytesIO(data))["NAXIS1"] == SHAPE[1]


def test_every_cut_is_noticed():
    data = encode(compress(make_stack_image()))
    for end in range(0, len(data), 720):
        with pytest.raises(MalformedFile):
            decode_planes(io.BytesIO(data[:end]), ("SCI", "MASK", "VAR", "NINPUT"))


def test_every_flipped_bit_is_noticed():
    data = encode(compress(make_stack_image()))
    rng = np.random.default_rng(5)
    for position in rng.choice(len(data), 1000, replace=False):
        bad = bytearray(data)
        bad[position] ^= 1 << int(rng.integers(8))
        with pytest.raises(MalformedFile):
            decode_planes(io.BytesIO(bytes(bad)), ("SCI", "MASK", "VAR", "NINPUT"))


def forge(change, hdu=None):
    """A file whose checksums are right but whose compressed plane is changed: (header, data)."""
    made = hdu or compress(make_stack_image())["MASK"]
    header, data = fits.Header.fromstring(made.cards), made.data.copy()
    change(header, data)
    pad = bytes(-data.size % 4)
    total = int(np.frombuffer(data.tobytes() + pad, ">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    (primary,) = join_parts({})
    return primary + encode_header(header, total) + data.tobytes() + bytes(-data.size % BLOCK)


def set_card(key, value):
    return lambda header, data: header.set(key, value)


def set_row(offset, value):
    def change(header, data):
        data[offset : offset + 4] = np.frombuffer(np.array(value, ">i4").tobytes(), np.uint8)

    return change


FORGED = {
    r"ZCMPTYPE = 'GZIP_1'": set_card("ZCMPTYPE", "GZIP_1"),
    "ZTILE2 = 10": set_card("ZTILE2", 10),
    "ZVAL2 = 4": set_card("ZVAL2", 4),
    "lacks what describes its compressed data": lambda header, data: header.remove("ZBITPIX"),
    "NAXIS2 = 90": set_card("ZNAXIS2", 91),
    "the file ends within HDU MASK": set_card("PCOUNT", 10**12),
    "cannot hold": lambda header, data: header.update({"ZNAXIS1": 10**9, "ZTILE1": 10**9}),
    "outside the data": set_row(4, 10**9),
    "lies outside": set_row(0, -5),
    "cut short": set_row(0, 4),
}


@pytest.mark.parametrize("message", FORGED)
def test_compressed_planes_of_another_kind_are_refused_in_one_line(message):
    with pytest.raises(MalformedFile, match=message) as caught:
        decode_planes(io.BytesIO(forge(FORGED[message])))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_planes_compressed_by_others_are_refused():
    stream = io.BytesIO()
    hdu = fits.CompImageHDU(make_stack_image().sci, name="SCI", compression_type="GZIP_1")
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(stream, checksum=True)
    with pytest.raises(MalformedFile):
        decode_planes(io.BytesIO(stream.getvalue()))
