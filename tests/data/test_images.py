"""Every kind of image file has a defined result or a named error."""

import io
import os
import struct
import zlib

import jax
import numpy as np
import pytest
from data_samples import encode, photo
from PIL import EpsImagePlugin, Image

from xmcgan.data import images
from xmcgan.data.images import decode_image, resize_image
from xmcgan.errors import DataError

RAMP = np.arange(6 * 4, dtype=np.uint8).reshape(6, 4) * 10


def pixels(data: bytes) -> np.ndarray:
    image = decode_image(data, "x")
    assert image.mode == "RGB"
    return np.asarray(image)


def test_grayscale_has_three_equal_channels():
    np.testing.assert_array_equal(pixels(encode(RAMP)), np.repeat(RAMP[..., None], 3, axis=2))


def test_one_bit_becomes_black_and_white():
    image = Image.fromarray(RAMP).convert("1")
    assert set(pixels(encode(image)).ravel()) <= {0, 255}


def test_cmyk_becomes_rgb():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # magenta and yellow: red
    red = pixels(encode(image, "JPEG", quality=95))
    assert abs(red.astype(int) - (255, 0, 0)).max() < 8


def test_transparency_is_laid_over_white():
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0] = (200, 0, 0, 255)
    rgba[1, 1] = (0, 0, 0, 128)
    result = pixels(encode(rgba))
    assert result[0, 0].tolist() == [200, 0, 0]
    assert result[1, 0].tolist() == [255, 255, 255]
    assert abs(result[1, 1].astype(int) - 127).max() <= 1


def test_gray_with_alpha_is_laid_over_white():
    image = Image.new("LA", (2, 2), (10, 0))
    assert (pixels(encode(image)) == 255).all()


def test_palette_is_looked_up():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 12, 34, 56])
    assert (pixels(encode(image)) == (12, 34, 56)).all()


def test_transparent_palette_entry_is_laid_over_white():
    image = Image.new("P", (2, 2), 1)
    image.putpalette([0, 0, 0, 12, 34, 56])
    assert (pixels(encode(image, transparency=1)) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    image = Image.fromarray(np.repeat(RAMP[..., None], 3, axis=2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {
        1: RAMP, 2: RAMP[:, ::-1], 3: RAMP[::-1, ::-1], 4: RAMP[::-1],
        5: RAMP.T, 6: RAMP[::-1].T, 7: RAMP[::-1, ::-1].T, 8: RAMP.T[::-1],
    }  # fmt: skip
    np.testing.assert_array_equal(pixels(encode(image, exif=exif))[..., 0], turned[orientation])


def test_sixteen_bits_keep_the_high_byte():
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    assert pixels(encode(values))[0, :, 0].tolist() == [0, 0, 1, 255]


def test_float_image_is_refused():
    data = encode(Image.new("F", (2, 2), 0.5), "TIFF")
    with pytest.raises(DataError, match="image x: floating-point"):
        decode_image(data, "x")


def test_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(data) == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", "is empty"),
        (b"not an image", "cannot be decoded"),
        (photo()[:-200], "truncated"),
        (encode(RAMP)[:-30], "cannot be decoded"),
    ],
)
def test_damaged_image_is_named(data, fault):
    with pytest.raises(DataError, match=f"image holiday.jpg .*{fault}"):
        decode_image(data, "holiday.jpg")


def test_a_file_that_is_a_program_is_never_run(tmp_path, monkeypatch):
    """Pillow draws PostScript with Ghostscript, found on PATH; a stand-in says whether it ran."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # look for it again
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    with pytest.raises(DataError, match=r"image a\.jpg cannot be decoded"):
        decode_image(program, "a.jpg")
    assert not (tmp_path / "ran").exists()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size; its pixels are never reached."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + body


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_001, 12_000, 60_000])
def test_decompression_bomb_is_named_before_it_is_unpacked(side):
    with pytest.raises(DataError, match=r"image bomb.png .*(pixels allowed|bomb)"):
        decode_image(png_header(side, side), "bomb.png")


def test_largest_allowed_image_is_decoded(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 24)
    assert pixels(encode(RAMP)).shape == (6, 4, 3)
    monkeypatch.setattr(images, "MAX_PIXELS", 23)
    with pytest.raises(DataError, match="pixels allowed"):
        decode_image(encode(RAMP), "x")


def test_crop_takes_the_central_square():
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200
    result = resize_image(Image.fromarray(wide), 4, "crop")
    assert (result == 200).all()


def test_squash_keeps_both_ends():
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, :4] = 200
    result = resize_image(Image.fromarray(wide), 4, "squash")
    assert result[:, 0].min() > 190
    assert result[:, 3].max() < 10


@pytest.mark.parametrize("mode", ["crop", "squash", "squash_bilinear"])
@pytest.mark.parametrize("size", [(1, 1), (7, 3), (3, 50)])
def test_any_size_gives_a_square(mode, size):
    result = resize_image(Image.new("RGB", size, "red"), 16, mode)
    assert result.shape == (16, 16, 3)
    assert result.dtype == np.uint8
    assert (result == (255, 0, 0)).all()


def test_downscaling_averages_instead_of_skipping():
    checks = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    image = decode_image(encode(checks), "x")
    assert abs(resize_image(image, 8, "squash").astype(int) - 127).max() < 12


def test_result_is_writable_and_owns_its_pixels():
    result = resize_image(Image.open(io.BytesIO(photo())).convert("RGB"), 16, "crop")
    result[:] = 0


@pytest.mark.parametrize("shape", [(48, 64), (31, 9), (8, 8), (5, 3)])
def test_squash_bilinear_interpolates_without_antialiasing(shape):
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    expected = jax.image.resize(pixels.astype(np.float32), (8, 8, 3), "bilinear", antialias=False)
    found = resize_image(Image.fromarray(pixels), 8, "squash_bilinear")
    np.testing.assert_allclose(found, expected, atol=0.502)
