"""List the residue-residue contacts between two chains of a protein complex.

Two residues, one from each chain, are in contact if any of their non-hydrogen atoms are at
most the cutoff apart. Two files are written to the current folder:

contacts.tsv  one line per contact, with the closest pair of atoms
summary.txt   the sizes of the chains and the number of contacts of each type

Only the standard library is needed, so the script runs wherever Python 3.10 or newer does.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

# The same three classes PRODIGY uses to count contacts, so that the numbers can be compared.
CLASSES = {
    "charged": "ARG ASP GLU HIS LYS",
    "polar": "ASN GLN SER THR",
    "apolar": "ALA CYS GLY ILE LEU MET PHE PRO TRP TYR VAL",
}
CLASS_OF = {name: kind for kind, names in CLASSES.items() for name in names.split()}


class Residue(NamedTuple):
    """A residue as the PDB file names it."""

    chain: str
    number: int
    insertion: str
    name: str

    @property
    def label(self) -> str:
        """The residue number as people write it, for example 27 or 27A."""
        return f"{self.number}{self.insertion}"


class Atom(NamedTuple):
    """A non-hydrogen atom."""

    residue: Residue
    name: str
    x: float
    y: float
    z: float


class Contact(NamedTuple):
    """The closest pair of atoms between two residues."""

    distance: float
    first: Atom
    second: Atom

    @property
    def kind(self) -> str:
        """The classes of both residues in alphabetical order, for example apolar-charged."""
        return contact_kind(
            CLASS_OF.get(self.first.residue.name, "other"),
            CLASS_OF.get(self.second.residue.name, "other"),
        )


Cell = tuple[int, int, int]


def contact_kind(class_1: str, class_2: str) -> str:
    """Name a pair of classes the same way whichever comes first."""
    return "-".join(sorted((class_1, class_2)))


def is_hydrogen(line: str) -> bool:
    """Tell whether an ATOM line describes hydrogen or deuterium."""
    # Many modelling programs leave the element column empty.
    element = line[76:78].strip() or line[12:16].strip().lstrip("0123456789")[:1]
    return element.upper() in ("H", "D")


def finite(text: str) -> float:
    """Convert to a number, but refuse nan and inf, which failed models can hold."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"not a finite number: {text}")
    return value


def read_chain(path: Path) -> list[Atom]:
    """Read the non-hydrogen atoms of a PDB file with one chain."""
    atoms: list[Atom] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("ATOM") or is_hydrogen(line):
            continue
        try:
            residue = Residue(
                chain=line[21],
                number=int(line[22:26]),
                insertion=line[26].strip(),
                name=line[17:20].strip(),
            )
            x, y, z = (finite(line[start : start + 8]) for start in (30, 38, 46))
        except (ValueError, IndexError):
            raise ValueError(f"{path}, line {number}: not a valid ATOM line") from None
        atoms.append(Atom(residue, line[12:16].strip(), x, y, z))
    if not atoms:
        raise ValueError(f"{path}: no atoms found")
    return atoms


def cell_of(atom: Atom, size: float) -> Cell:
    """Return the cell of a cubic grid that holds the atom."""
    return math.floor(atom.x / size), math.floor(atom.y / size), math.floor(atom.z / size)


def find_contacts(chain_1: list[Atom], chain_2: list[Atom], cutoff: float) -> list[Contact]:
    """Return the contacts between two chains, in the order of their residues."""
    # With cells as wide as the cutoff, a partner can only be in the same cell or a neighbour.
    # The work then grows with the number of atoms, not with its square.
    grid: defaultdict[Cell, list[Atom]] = defaultdict(list)
    for atom in chain_2:
        grid[cell_of(atom, cutoff)].append(atom)

    closest: dict[tuple[Residue, Residue], Contact] = {}
    for first in chain_1:
        i, j, k = cell_of(first, cutoff)
        for di, dj, dk in itertools.product((-1, 0, 1), repeat=3):
            for second in grid.get((i + di, j + dj, k + dk), ()):
                distance = math.dist(first[2:], second[2:])
                if distance > cutoff:
                    continue
                pair = (first.residue, second.residue)
                if pair not in closest or distance < closest[pair].distance:
                    closest[pair] = Contact(distance, first, second)
    return [closest[pair] for pair in sorted(closest)]


def contact_table(contacts: list[Contact]) -> str:
    """Return the contacts as tab-separated text with a header line."""
    lines = [
        "chain_1\tresidue_1\tname_1\tatom_1\tchain_2\tresidue_2\tname_2\tatom_2\tdistance\ttype"
    ]
    for contact in contacts:
        fields: list[str] = []
        for atom in (contact.first, contact.second):
            fields += [atom.residue.chain, atom.residue.label, atom.residue.name, atom.name]
        lines.append("\t".join([*fields, f"{contact.distance:.2f}", contact.kind]))
    return "\n".join(lines) + "\n"


def summary(
    entry: str, chains: tuple[list[Atom], list[Atom]], contacts: list[Contact], cutoff: float
) -> str:
    """Return the summary as lines of 'name: value'."""
    names = [chain[0].residue.chain for chain in chains]
    lines = [f"entry: {entry}", f"chains: {' '.join(names)}"]
    for name, chain in zip(names, chains, strict=True):
        lines.append(f"residues in chain {name}: {len({atom.residue for atom in chain})}")
    lines.append(f"cutoff in angstrom: {cutoff}")
    lines.append(f"contacts: {len(contacts)}")
    counts = Counter(contact.kind for contact in contacts)
    # Every type gets a line, also with no contacts, so that programs can rely on it.
    for class_1, class_2 in itertools.combinations_with_replacement(sorted(CLASSES), 2):
        kind = contact_kind(class_1, class_2)
        lines.append(f"contacts {kind}: {counts.pop(kind, 0)}")
    lines.append(f"contacts with other residues: {sum(counts.values())}")
    for name, residues in (
        (names[0], {contact.first.residue for contact in contacts}),
        (names[1], {contact.second.residue for contact in contacts}),
    ):
        lines.append(f"interface residues in chain {name}: {len(residues)}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Read the command line and write contacts.tsv and summary.txt."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("entry", help="name of the complex, for the summary")
    parser.add_argument("chain_1", type=Path, help="PDB file with the first chain")
    parser.add_argument("chain_2", type=Path, help="PDB file with the second chain")
    parser.add_argument("--cutoff", type=finite, default=5.0, help="in angstrom (default: 5.0)")
    arguments = parser.parse_args()
    if arguments.cutoff <= 0:
        parser.error("the cutoff must be greater than 0")

    try:
        chains = read_chain(arguments.chain_1), read_chain(arguments.chain_2)
    except (OSError, ValueError) as error:
        sys.exit(f"contacts.py: {error}")
    contacts = find_contacts(*chains, arguments.cutoff)
    Path("contacts.tsv").write_text(contact_table(contacts), encoding="utf-8")
    Path("summary.txt").write_text(
        summary(arguments.entry, chains, contacts, arguments.cutoff), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
