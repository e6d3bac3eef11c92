"""Rows of text as tables: in columns for a terminal, or as Markdown."""

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def aligned_table(rows: Rows) -> list[str]:
    """Return lines of columns: the first from the left, the others from the right.

    Args:
        rows: as many texts each, the header first.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_padded(row, widths)).rstrip() for row in rows]


def markdown_table(rows: Rows, *, numbers: bool = True) -> list[str]:
    """Return the lines of a Markdown table.

    Args:
        rows: as many texts each, the header first; a bar in a text is escaped.
        numbers: whether the columns after the first hold numbers, which stand at the right.
    """
    header, *body = (f"| {' | '.join(map(_escaped, row))} |" for row in rows)
    rule = "---:|" if numbers else "---|"
    return [header, "|---|" + rule * (len(rows[0]) - 1), *body]


def readable_size(num_bytes: float) -> str:
    """Write bytes as MB or GB."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"


def _padded(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *others = zip(row, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]


def _escaped(cell: str) -> str:
    return cell.replace("|", r"\|")
