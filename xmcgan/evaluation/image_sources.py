"""A set of image files, in a directory or a zip, as batches of pixels."""

import collections
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from xmcgan.data.archives import IMAGE_SUFFIXES, ImageStore
from xmcgan.data.images import Resize, decode_image, resize_image
from xmcgan.errors import DataError, EvaluationError

_MAX_WORKERS = 16


def list_images(
    path: Path, *, image_size: int | None = None, resize: Resize = "crop"
) -> "ImageFolder":
    """Find the images of a directory (all folders in it, and zips at its top) or of a zip.

    Args:
        path: the directory or zip.
        image_size: side in pixels to which images are resized; as they are where None.
        resize: "crop" (central square) or "squash" (both sides scaled).

    Raises:
        EvaluationError: there are no images, a name occurs twice, or the zip is damaged.
    """
    try:
        store = ImageStore(path)
    except DataError as error:
        raise EvaluationError(str(error)) from None
    names = store.images()
    if not names:
        raise EvaluationError(f"{path} holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return ImageFolder(store, names, image_size, resize)


class ImageFolder:
    """Read images in the order of their names.

    Args:
        store: the files.
        names: which of them, sorted.
        image_size: side in pixels to which images are resized; as they are where None.
        resize: "crop" (central square) or "squash" (both sides scaled).
        chosen: how the names were chosen among those of the store; empty for all.

    Attributes:
        names: path of each image inside the directory or zip.
    """

    def __init__(
        self,
        store: ImageStore,
        names: Sequence[str],
        image_size: int | None = None,
        resize: Resize = "crop",
        chosen: str = "",
    ) -> None:
        self._store, self._image_size, self._chosen = store, image_size, chosen
        self._resize: Resize = resize
        self._digests: dict[str, bytes] = {}
        self.names = list(names)

    def __len__(self) -> int:
        return len(self.names)

    def take(self, num: int, seed: int = 0) -> "ImageFolder":
        """Return `num` of the images, drawn at random without replacement, in order of name.

        At random, because the first names are often those of one class.

        Raises:
            EvaluationError: there are fewer.
        """
        if not 1 <= num <= len(self):
            raise EvaluationError(
                f"{num} images were asked for, and {self._store.source} has {len(self)}"
            )
        indices = np.random.default_rng(seed).choice(len(self), num, replace=False)
        names = [self.names[index] for index in sorted(indices)]
        chosen = f"{num} of {len(self)} by numpy.random.default_rng({seed})"
        return ImageFolder(self._store, names, self._image_size, self._resize, chosen)

    def batches(
        self, batch_size: int = 32, workers: int | None = None
    ) -> Iterator[UInt8[np.ndarray, "b h w 3"]]:
        """Yield all images; files are read and decoded by threads, a batch ahead.

        Args:
            batch_size: images of a batch.
            workers: threads; one a core where None, at most 16.

        Raises:
            EvaluationError: an image cannot be read, or has another size than the first.
        """
        pool = ThreadPoolExecutor(workers or min(os.cpu_count() or 1, _MAX_WORKERS))
        names = iter(self.names)
        ahead: collections.deque[Future[np.ndarray]] = collections.deque()
        shape, done = None, 0
        try:
            while True:
                more = itertools.islice(names, 2 * batch_size - len(ahead))
                ahead.extend(pool.submit(self._pixels, name) for name in more)
                if not ahead:
                    return
                images = [ahead.popleft().result() for _ in range(min(batch_size, len(ahead)))]
                shape = shape or images[0].shape
                self._check_shapes(images, shape, done)
                done += len(images)
                yield np.stack(images)
        finally:
            pool.shutdown(cancel_futures=True)

    def recipe(self) -> dict[str, Any]:
        """Return which images these are and how pixels are made of them, as JSON values.

        Raises:
            EvaluationError: a file cannot be read.
        """
        size = self._image_size
        entries: dict[str, Any] = {
            "source": str(self._store.source),
            "num_images": len(self),
            "images_sha256": self.digest(),
            "image_size": list(self._pixels(self.names[0]).shape[:2]),
            "preparation": f"{self._resize} to {size}, bicubic" if size else "as stored",
        }
        return entries | ({"chosen": self._chosen} if self._chosen else {})

    def digest(self) -> str:
        """Return the sha256 over each image's name and the sha256 of its file.

        What `batches` has read is not read again.

        Raises:
            EvaluationError: a file cannot be read.
        """
        sha = hashlib.sha256()
        for name in self.names:
            if name not in self._digests:
                self._read(name)
            sha.update(os.fsencode(name) + b"\0" + self._digests[name])
        return sha.hexdigest()

    def _read(self, name: str) -> bytes:
        try:
            data = self._store.read(name)
        except DataError as error:
            raise EvaluationError(str(error)) from None
        self._digests[name] = hashlib.sha256(data).digest()
        return data

    def _pixels(self, name: str) -> UInt8[np.ndarray, "h w 3"]:
        data = self._read(name)
        try:
            image = decode_image(data, name)
        except DataError as error:
            raise EvaluationError(f"{error} ({self._store.source})") from None
        if self._image_size:
            return resize_image(image, self._image_size, self._resize)
        return np.asarray(image)

    def _check_shapes(self, images: list[np.ndarray], shape: tuple[int, ...], start: int) -> None:
        for index, image in enumerate(images, start=start):
            if image.shape != shape:
                raise EvaluationError(
                    f"{self._store.source} has images of several sizes: {self.names[0]} is "
                    f"{shape[1]} x {shape[0]}, {self.names[index]} is "
                    f"{image.shape[1]} x {image.shape[0]}; resize them with --image-size"
                )
