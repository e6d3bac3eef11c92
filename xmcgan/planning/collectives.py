"""The collectives of a compiled program: what a step sends between devices."""

import dataclasses
import math
import re
from collections.abc import Iterator

_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_INSTRUCTION = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(?:-start)?\(")
_ARRAY = re.compile(r"([a-z]+)(\d*)\w*\[([\d,]*)\]")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLED = re.compile(r"(?:body|to_apply|calls)=%?([\w.\-]+)|calls=\{([^}]*)\}")
_CALLS = re.compile(r"\b(?:call|fusion|while|conditional)\(")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# The three ways to write which devices take part: of a mesh, as a grid of groups, or as lists.
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\)+)? \{([^}]*)\}")
_GRID_GROUPS = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_PAIRS = re.compile(r"source_target_pairs=")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of a program.

    Attributes:
        kind: Such as "all-reduce".
        shapes: Of its results on one device, such as ((64, 96),); several if XLA joined them.
        num_bytes: Size of these results.
        group: Number of devices that take part.
        times: How often it runs, more than once inside a loop.
        name: The operation of the model that it comes from.
    """

    kind: str
    shapes: tuple[tuple[int, ...], ...]
    num_bytes: int
    group: int
    times: int
    name: str

    @property
    def sent_bytes(self) -> float:
        """Bytes that a device sends in a ring: the usual algorithm, and the minimum."""
        share = (self.group - 1) / self.group
        factor = {
            "all-reduce": 2 * share,
            "all-gather": share,
            "all-to-all": share,
            "reduce-scatter": self.group - 1,
            "collective-permute": 1,
        }[self.kind]
        return self.times * factor * self.num_bytes


def find_collectives(program: str) -> list[Collective]:
    """Return the collectives in `compiled.as_text()`, loops counted as often as they run.

    Raises:
        ValueError: A collective is in a loop of unknown length.
    """
    bodies = dict(_computations(program))
    (entry,) = (name for name, lines in bodies.items() if lines[0].startswith("ENTRY"))
    return list(_walk(bodies, entry, 1))


def _computations(program: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", []
    for line in program.splitlines():
        if not line.startswith(" ") and (found := _COMPUTATION.match(line.strip())):
            name, lines = found[1], [line]
        elif line.startswith("}") and name:
            yield name, lines
            name = ""
        elif name:
            lines.append(line)


def _walk(bodies: dict[str, list[str]], name: str, times: int) -> Iterator[Collective]:
    for line in bodies[name]:
        if found := _INSTRUCTION.search(line):
            yield _parse(line, found, times)
        elif _CALLS.search(line):
            trips = _TRIPS.search(line)
            is_loop = " while(" in line
            for called in _CALLED.finditer(line):
                for inner in (called[1] or called[2] or "").replace("%", "").split(", "):
                    inside = list(_walk(bodies, inner, times)) if inner in bodies else []
                    count = 1
                    if inside and is_loop:
                        count = int(trips[1]) if trips else _trips(bodies, line)
                    yield from (dataclasses.replace(c, times=c.times * count) for c in inside)


def _trips(bodies: dict[str, list[str]], line: str) -> int:
    """Trips of a loop that counts from 0 up to the one constant of its condition."""
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    text = "\n".join(bodies.get(condition[1], [])) if condition else ""
    limits = set(re.findall(r"= [su]32\[\](?:\{[^}]*\})? constant\((\d+)\)", text))
    if len(limits) != 1 or "direction=LT" not in text:
        raise ValueError(f"a collective in a loop of unknown length: {line}")
    return int(limits.pop())


def _parse(line: str, found: re.Match[str], times: int) -> Collective:
    arrays = [(m[1], m[2], m[3]) for m in _ARRAY.finditer(found[1])]
    shapes = tuple(tuple(map(int, filter(None, dims.split(",")))) for _, _, dims in arrays)
    num_bytes = sum(
        math.prod(shape) * (1 if kind == "pred" else int(bits) // 8)
        for (kind, bits, _), shape in zip(arrays, shapes, strict=True)
    )
    name = re.search(r'op_name="([^"]*)"', line)
    title = name[1] if name else ""
    return Collective(found[2], shapes, num_bytes, _group_size(line), times, title)


def _group_size(line: str) -> int:
    if found := _MESH_GROUPS.search(line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        size = 1
        for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2]):
            size *= int(part or sizes[axis])
        return size
    if found := _GRID_GROUPS.search(line):
        return int(found[1])
    if found := _LISTED_GROUPS.search(line):
        return len(found[1].split(","))
    if _PAIRS.search(line):
        return 2
    raise ValueError(f"a collective that does not say who takes part: {line}")
