"""What an examination finds, and how it goes on where a part of it fails."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

from xmcgan.errors import UserError

INSTALL = "python -m pip install -r requirements.txt"


@dataclasses.dataclass(frozen=True)
class Finding:
    """Hold what one look has shown.

    Attributes:
        subject: what was looked at, in a word or two.
        text: what was seen; of a problem, also what to do.
        is_problem: whether something is wrong.
    """

    subject: str
    text: str
    is_problem: bool = False


def examine(subject: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what a look finds; that it failed is a finding, too.

    Args:
        subject: what is looked at.
        look: may import what is not installed, and raise any UserError.
    """
    try:
        yield from look()
    except UserError as error:
        yield Finding(subject, str(error), is_problem=True)
    except ImportError as error:
        yield Finding(subject, f"cannot be checked: {error}; run\n  {INSTALL}", is_problem=True)
    except OSError as error:
        yield Finding(subject, f"cannot be read: {error}", is_problem=True)


def format_finding(finding: Finding) -> str:
    """Return a line for the screen, and the further lines of its text below."""
    mark = "PROBLEM" if finding.is_problem else "ok"
    first, *rest = finding.text.splitlines()
    return "\n".join(
        [f"{mark:<8} {finding.subject:<12} {first}", *(f"{'':<21} {line}" for line in rest)]
    )
