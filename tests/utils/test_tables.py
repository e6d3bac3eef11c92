"""Tables of text."""

from xmcgan.utils.tables import aligned_table, markdown_table, readable_size

ROWS = [["", "ms", "note"], ["literal", "12", "a|b"], ["ours", "7", ""]]


def test_columns_are_aligned_and_no_line_ends_in_spaces():
    lines = aligned_table([row[:2] for row in ROWS])
    assert lines == ["         ms", "literal  12", "ours      7"]
    assert aligned_table([["a", "b"], ["c", ""]]) == ["a  b", "c"]


def test_markdown_has_a_rule_for_every_column_and_escapes_bars():
    header, rule, *body = markdown_table(ROWS)
    assert (header, rule) == ("|  | ms | note |", "|---|---:|---:|")
    assert body == [r"| literal | 12 | a\|b |", "| ours | 7 |  |"]
    assert markdown_table(ROWS, numbers=False)[1] == "|---|---|---|"


def test_bytes_are_readable():
    assert (readable_size(2.5e9), readable_size(3e6)) == ("2.50 GB", "3.0 MB")
