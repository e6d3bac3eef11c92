"""Figures as aligned text."""

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return lines of columns: the first from the left, the others from the right.

    Args:
        header: of each column.
        rows: as many texts each.
    """
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return "  ".join(
            [f"{first[0]:<{first[1]}}", *(f"{text:>{width}}" for text, width in others)]
        )

    return "\n".join(map(line, [header, *rows]))


def size(num_bytes: float) -> str:
    """Write bytes as MB or GB."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
