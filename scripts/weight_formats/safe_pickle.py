"""Read pickles without running code: every name in them is refused but a given few."""

import contextlib
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from xmcgan.errors import DataError, WeightsError


class Placeholder:
    """Placeholder for one allowed global of a pickle, which may only call it.

    A pickle can set attributes of what it imports; on this object it cannot.
    """

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        """Call the allowed function."""
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        """Refuse a pickle that tries to change an allowed global."""
        raise pickle.UnpicklingError("the pickle changes what it imports")


class SafeUnpickler(pickle.Unpickler):
    """Unpickler of a file that may name only the given globals.

    Args:
        file: The open file.
        allowed: Replacement for each (module, name); nothing of that module is imported.
        path: The file's path, for messages.
        persistent_load: Resolves persistent ids; files that have some are refused without.
    """

    def __init__(
        self,
        file: IO[bytes],
        allowed: Mapping[tuple[str, str], Any],
        path: Path,
        persistent_load: Callable[[Any], Any] | None = None,
    ):
        super().__init__(file)
        self._allowed = allowed
        self._path = path
        self._persistent_load = persistent_load

    def find_class(self, module: str, name: str) -> Any:
        """Return the placeholder of a global; raises WeightsError for any other, not imported."""
        if (module, name) not in self._allowed:
            raise WeightsError(
                f"{self._path} asks for the Python object {module}.{name}, which its data do "
                "not need: the file was refused and nothing in it was run; use a file whose origin "
                "you trust, or one of safetensors or JSON"
            )
        return self._allowed[module, name]

    def persistent_load(self, pid: Any) -> Any:
        """Resolve a persistent id."""
        if self._persistent_load is None:
            raise pickle.UnpicklingError("persistent ids are not part of this format")
        return self._persistent_load(pid)


@contextlib.contextmanager
def wrap_read_errors(path: Path) -> Iterator[None]:
    """Turn any error of reading a damaged file into a WeightsError that names it."""
    try:
        yield
    except WeightsError:
        raise
    # A pickle of arbitrary bytes can raise nearly anything.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise WeightsError(f"{path} is cut, damaged or of another format: {reason}") from error


class _Opaque:
    """Stands for an object that nobody reads."""

    __slots__ = ()

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        """Keep nothing."""


def read_values(path: Path, ignored: Iterable[tuple[str, str]] = ()) -> Any:
    """Return lists, dictionaries, texts and numbers of a pickle.

    Args:
        ignored: globals (module, name) whose objects are opaque in the result.

    Raises:
        DataError: the file is damaged, or names other Python objects.
    """
    allowed = dict.fromkeys(ignored, Placeholder(_Opaque))
    try:
        with wrap_read_errors(path), path.open("rb") as file:
            return SafeUnpickler(file, allowed, path).load()
    except WeightsError as error:
        raise DataError(str(error)) from None
