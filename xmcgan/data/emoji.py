"""The embedded data set `emoji`: Noto emoji with captions, stored as one file in `assets/`."""

import hashlib
from pathlib import Path

from xmcgan.data.folder import Folder, FolderData, read_folder
from xmcgan.errors import DataError

ARCHIVE = Path(__file__).resolve().parents[2] / "assets" / "emoji_64.zip"
# Scores are comparable only if everyone trains on the same images, captions and splits.
SHA256 = "d8951ef17e4711202ad42e6d038165a62283cda34410e43791ea275e05cb27c0"


class Emoji(Folder):
    """Emoji of 64 x 64 pixels on white; the captions are made of their names and keywords.

    Captions speak of left and right, and flags have a left and a right: train with `flip` off.
    """


def read_emoji() -> FolderData:
    """Read the list of images and the captions.

    Raises:
        DataError: the archive is missing or its bytes are not the expected ones.
    """
    restore = f"restore it with `git checkout -- assets/{ARCHIVE.name}`"
    try:
        digest = hashlib.sha256(ARCHIVE.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {ARCHIVE}: {error.strerror}; {restore}") from error
    if digest != SHA256:
        raise DataError(
            f"{ARCHIVE} is damaged or from another version: its sha256 begins with "
            f"{digest[:12]}, not with {SHA256[:12]}; {restore}"
        )
    return read_folder(ARCHIVE)
