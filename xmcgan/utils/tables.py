"""Rows of text as tables: aligned for a terminal, or Markdown. The first row is the header."""

from collections.abc import Sequence

Rows = Sequence[Sequence[str]]


def aligned_table(rows: Rows) -> list[str]:
    """Return lines with the first column aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines


def markdown_table(rows: Rows, *, numbers: bool = True) -> list[str]:
    """Return Markdown lines; `numbers` aligns all columns but the first to the right."""
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    header, *body = (f"| {' | '.join(row)} |" for row in escaped)
    rule = "---:|" if numbers else "---|"
    return [header, "|---|" + rule * (len(rows[0]) - 1), *body]


def readable_size(num_bytes: float) -> str:
    """Format bytes as MB or GB."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.1f} MB"
