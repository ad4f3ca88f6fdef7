"""Two threads or one: the same bytes, hashes and errors."""

import hashlib
import io
import threading

import numpy as np
import pytest

from lap_assets.errors import PermanentFailure
from lap_assets.model.image import MaskedImage
from lap_assets.model.products import get_product
from lap_assets.store.files import check_members, hash_file, open_member, write_members
from lap_assets.store.fits_format import (
    MalformedFile,
    compress_hdus,
    decode_planes,
    encode_hdus,
    planes_of_image,
    prepare_plane,
)
from lap_assets.store.side_by_side import LARGE, map_planes
from lap_assets_tests.store.samples import STACK, make_header

SHAPE = (1100, 1001)  # odd, and large enough for threads: asserted below


def make_large_image(value: float = 1.0) -> MaskedImage:
    rng = np.random.default_rng(5)
    var = rng.uniform(1.0, 2.0, SHAPE).astype(np.float32)
    sci = (value + rng.normal(size=SHAPE) * np.sqrt(var)).astype(np.float32)
    mask = np.where(rng.random(SHAPE) < 0.01, 8, 0).astype(np.int16)
    return MaskedImage(sci, mask, var, make_header(), {"NINPUT": np.full(SHAPE, 6, np.int16)})


def prepare(image):
    return {name: prepare_plane(name, array, header) for name, (array, header) in planes_of_image(image).items()}


def write(folder, image):
    ready = check_members(get_product(STACK.product), {"image.fits": image}, complete=False)
    return write_members(folder, ready.items(), {"LAPPROD": "stacks"})["image.fits"]


def test_work_is_shared_where_it_is_large_and_comes_back_in_order():
    meeting = threading.Barrier(2, timeout=60)

    def work(item):
        meeting.wait()  # both are at work at once, or this raises
        return item, threading.get_ident()

    made = map_planes(work, ["a", "b"], [LARGE, LARGE])
    assert [item for item, _ in made] == ["a", "b"]
    assert len({thread for _, thread in made} | {threading.get_ident()}) == 3
    for sizes in ([LARGE // 4] * 3, [2 * LARGE, 0, 0]):
        assert set(map_planes(lambda item: threading.get_ident(), "abc", sizes)) == {threading.get_ident()}


def test_the_first_error_in_order_is_raised():
    def work(item):
        raise MalformedFile(item)

    for size in (LARGE, 1):
        with pytest.raises(MalformedFile, match="one"):
            map_planes(work, ["one", "two"], [size, size])


def test_large_planes_are_written_and_read_as_by_one_thread(tmp_path):
    image = make_large_image()
    assert image.mask.nbytes + image.sci.nbytes > LARGE
    record = write(tmp_path, image)
    parts = [b"".join(map(bytes, part)) for part in encode_hdus(prepare(image), {"LAPPROD": "stacks"})]
    data = (tmp_path / "image.fits").read_bytes()
    assert data == b"".join(parts) and record.bytes == len(data)
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    assert record.parts_sha256 == hashlib.sha256(digests).hexdigest()
    with open_member(tmp_path / "image.fits") as stream:
        assert hash_file(stream) == hashlib.sha256(data).hexdigest()
        stream.seek(0)
        on_disk = decode_planes(stream)
    in_memory = decode_planes(io.BytesIO(data))
    for name, (array, _) in planes_of_image(image).items():
        assert on_disk[name][0].tobytes() == in_memory[name][0].tobytes() == array.tobytes()
        assert on_disk[name][1].tostring() == in_memory[name][1].tostring()


def test_large_planes_are_compressed_as_each_by_itself():
    hdus = prepare(make_large_image())
    together = compress_hdus(hdus, None)
    for name, hdu in hdus.items():
        alone = compress_hdus({name: hdu}, hdus["VAR"].array)[name]
        assert alone.cards == together[name].cards and alone.digest == together[name].digest
        assert np.array_equal(alone.data, together[name].data)


@pytest.mark.parametrize("name", ["SCI", "VAR"])
def test_one_pixel_of_a_large_plane_that_is_not_finite_is_found_while_it_is_written(tmp_path, name):
    image = make_large_image()
    (image.sci if name == "SCI" else image.var)[1050, 7] = np.nan
    with pytest.raises(
        PermanentFailure, match=rf"image.fits: plane {name} is not finite in 1 pixels, first \[1050, 7\]"
    ):
        write(tmp_path, image)


def test_a_flipped_bit_in_any_of_the_large_planes_is_named(tmp_path):
    write(tmp_path, make_large_image())
    whole = (tmp_path / "image.fits").read_bytes()
    for k, name in enumerate(("SCI", "MASK", "VAR", "NINPUT")):
        place = whole.index(f"'{name}".encode()) + 20_000 + k
        data = bytearray(whole)
        data[place] ^= 16
        damaged = tmp_path / f"{name}.fits"
        damaged.write_bytes(data)
        with open_member(damaged) as stream, pytest.raises(MalformedFile, match=f"HDU {name}: the data differ"):
            decode_planes(stream)
