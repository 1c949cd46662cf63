from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from probekit.data.decoding import as_rgb, decode
from probekit.errors import ImageUnreadable

ORIENTATION = 0x0112


def saved(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def opened(data: bytes) -> Image.Image:
    return as_rgb(decode(io.BytesIO(data), "here"), "here")


def noise(mode: str, size=(5, 3), seed=0) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.frombytes(mode, size, values.tobytes())


def over_white(rgba: np.ndarray) -> np.ndarray:
    # out = alpha · colour + (1 − alpha) · 255
    alpha = rgba[..., 3:].astype(float) / 255
    return alpha * rgba[..., :3] + (1 - alpha) * 255


def test_rgb_is_left_alone():
    image = noise("RGB")
    assert np.array_equal(opened(saved(image, "PNG")), image)


def test_alpha_lies_over_white():
    image = noise("RGBA")
    wanted = over_white(np.asarray(image))
    assert np.abs(np.asarray(opened(saved(image, "PNG"))) - wanted).max() <= 1


def test_grey_with_alpha_lies_over_white():
    image = noise("LA")
    wanted = over_white(np.asarray(image)[..., [0, 0, 0, 1]])
    assert np.abs(np.asarray(opened(saved(image, "PNG"))) - wanted).max() <= 1


def test_transparent_palette_entry_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    assert np.asarray(opened(saved(image, "PNG"))).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert np.asarray(opened(saved(image, "PNG", transparency=0))).tolist() == [
        [[255, 255, 255], [40, 50, 60]]
    ]


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (7, 7, 7))])
def test_colour_key_is_white(mode, key):
    image = Image.new(mode, (2, 1), key)
    image.putpixel((1, 0), 8 if mode == "L" else (7, 7, 8))
    pixels = np.asarray(opened(saved(image, "PNG", transparency=key)))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[0, 1].tolist() == ([8, 8, 8] if mode == "L" else [7, 7, 8])


def test_one_bit_becomes_black_and_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert np.asarray(opened(saved(image, "PNG"))).tolist() == [[[0] * 3, [255] * 3]]


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_sixteen_bits_are_divided_by_257(form):
    values = np.array([[0, 257, 128 * 257, 65535, 128, 129]], np.uint16)
    pixels = np.asarray(opened(saved(Image.fromarray(values), form)))
    assert pixels[..., 0].tolist() == [[0, 1, 128, 255, 0, 1]]
    assert (pixels == pixels[..., :1]).all()


def test_thirty_two_bit_grey_counts_as_sixteen_while_it_fits():
    fits = Image.fromarray(np.array([[0, 65535]], np.int32))
    assert np.asarray(as_rgb(fits, "x"))[..., 0].tolist() == [[0, 255]]
    with pytest.raises(ImageUnreadable, match="32-bit"):
        as_rgb(Image.fromarray(np.array([[0, 65536]], np.int32)), "x")


def test_float_grey_has_no_range():
    with pytest.raises(ImageUnreadable, match=r"here.*float"):
        as_rgb(Image.fromarray(np.zeros((2, 2), np.float32)), "here")


def test_cmyk_goes_through_pillow():
    image = noise("CMYK")
    assert np.array_equal(opened(saved(image, "TIFF")), image.convert("RGB"))


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert opened(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation):
    image = noise("RGB", (4, 3))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = saved(image, "PNG", exif=exif)
    wanted = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(opened(data), wanted)
    assert opened(data).size == ((4, 3) if orientation < 5 else (3, 4))


def test_arrays_count_as_images():
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert np.array_equal(np.asarray(as_rgb(grey, "x"))[..., 1], grey)
    colour = np.dstack([grey, grey + 1, grey + 2])
    assert np.array_equal(as_rgb(colour, "x"), colour)
    assert as_rgb(np.dstack([colour, np.zeros_like(grey)]), "x").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("share", [0.6, 1.5])
def test_bombs_are_unreadable_and_no_warning_leaks(monkeypatch, share):
    # At half of Pillow's limit it warns, at the whole it raises.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", int(100 * 100 / (2 * share)))
    data = saved(Image.new("L", (100, 100)), "PNG")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(ImageUnreadable, match="pixels"):
            opened(data)
    assert not caught


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ImageUnreadable, match="none.png"):
        decode(tmp_path / "none.png", str(tmp_path / "none.png"))


FORMS = {
    "PNG": saved(noise("RGBA", (12, 9)), "PNG"),
    "JPEG": saved(noise("RGB", (12, 9)), "JPEG"),
    "GIF": saved(noise("L", (12, 9)), "GIF"),
    "BMP": saved(noise("RGB", (12, 9)), "BMP"),
    "TIFF": saved(noise("RGB", (12, 9)), "TIFF", compression="tiff_lzw"),
    "WEBP": saved(noise("RGB", (12, 9)), "WEBP"),
    "PPM": saved(noise("RGB", (12, 9)), "PPM"),
}


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=40)
@given(cut=st.floats(0, 0.95))
def test_truncated_files_are_named(form, cut):
    data = FORMS[form]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow tells more about broken metadata than anyone asks
        with pytest.raises(ImageUnreadable, match="here"):
            opened(data[: int(len(data) * cut)])


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=50)
@given(place=st.floats(0, 0.999), byte=st.integers(0, 255), count=st.integers(1, 4))
def test_altered_files_open_or_are_named(form, place, byte, count):
    data = bytearray(FORMS[form])
    start = int(len(data) * place)
    data[start : start + count] = bytes([byte]) * len(data[start : start + count])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = opened(bytes(data))
        except ImageUnreadable:
            return
    assert image.mode == "RGB"
