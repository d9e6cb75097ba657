"""Systems whose physics is computed: a structure, conditions, and values of the reference to compare with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ase import Atoms
from pydantic import BeforeValidator, Field

from ase_segnn.builders import is_built
from ase_segnn.configuration import Configuration
from ase_segnn.labels import FrameLabels, LabelKeys, choose_labels
from ase_segnn.structures import read_named, read_structure

Kind = Literal["crystal", "liquid", "molecule"]
Part = Literal["elastic", "vacancy", "surfaces", "phonons", "vibrations", "torsions", "stretching", "dynamics"]
Temperature = Annotated[float, Field(gt=0, le=1e6)]

_GROUP_KEYS = ("config_type", "group")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class System(Configuration):
    """A system and the conditions under which its physics is computed.

    Parameters
    ----------
    structure : file that ASE reads, ``file@index`` selects, default the last; or ``bulk:Si``, ``molecule:CH3CH2OH``,
        ``smiles:CCO``, see `ase_segnn.builders.built`
    kind : crystal, liquid or molecule. By default a structure without periodicity is a molecule, and a periodic one a
        crystal; a liquid has to be named
    temperatures : K, of dynamics
    duration_ps : of dynamics at each temperature; by default 100, and 1000 for a molecule. The run at constant energy
        takes at most 100
    melt : K, of a run that a crystal is expected to melt in, at the volume of the crystal
    frames : files of labeled frames of the reference. A liquid's radial distribution functions come from all of them,
        surface energies from slabs across the third cell vector
    strained : group of those frames (`config_type` or `group`) that are a perfect cubic crystal, strained
    reference : quantity, as in the table of results -> value of the reference
    skip : parts that are not computed
    """

    structure: str
    kind: Kind | None = None
    temperatures: Annotated[list[Temperature], Field(min_length=1)] = [300.0, 600.0]
    duration_ps: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    melt: Temperature | None = None
    frames: Annotated[list[str], BeforeValidator(_as_list)] = []
    strained: str | None = None
    reference: dict[str, float] = {}
    skip: Annotated[list[Part], BeforeValidator(_as_list)] = []


@dataclass(frozen=True, eq=False)
class Frame:
    """A labeled frame of the reference."""

    atoms: Atoms
    labels: FrameLabels
    group: str


@dataclass(frozen=True, eq=False)
class LoadedSystem:
    """A system with its structure and frames.

    Parameters
    ----------
    system : as described
    kind : of the structure
    atoms : the structure
    frames : of the reference, labeled
    """

    system: System
    kind: Kind
    atoms: Atoms
    frames: list[Frame]

    @classmethod
    def load(
        cls, system: System, locate: Callable[[str], Sequence[str]] | None = None, keys: LabelKeys | None = None
    ) -> LoadedSystem:
        """Read or build structure and frames.

        Parameters
        ----------
        system : as described
        locate : name of a file, with a selection -> sources of that name; default: the name itself
        keys : names of the labels of the frames

        Raises
        ------
        FileNotFoundError
            If a file is missing.
        ValueError
            If ASE cannot build the structure, its kind does not fit its periodicity, it has a single atom where two are
            needed, or a frame cannot be used.
        """
        find = locate or (lambda name: [name])
        atoms = read_structure(system.structure if is_built(system.structure) else find(system.structure)[0])
        kind = _kind_of(system, atoms)
        named = [each for name in system.frames for source in find(name) for each in read_named(source)]
        frames = []
        if named:
            choice = choose_labels(named, keys)
            frames = [Frame(frame, choice.labels(frame), _group(frame)) for _, frame in named]
            foreign = {symbol for frame in frames for symbol in frame.atoms.symbols} - set(atoms.symbols)
            if foreign:
                raise ValueError(
                    f"frames of the reference have {', '.join(sorted(foreign))}, which '{system.structure}' has not; "
                    "give frames of this system"
                )
        if system.strained is not None and not any(frame.group == system.strained for frame in frames):
            groups = ", ".join(sorted({frame.group for frame in frames})) or "none"
            raise ValueError(f"no frame of the reference has the group '{system.strained}'; there are {groups}")
        return cls(system, kind, atoms, frames)


def _kind_of(system: System, atoms: Atoms) -> Kind:
    kind: Kind = system.kind or ("crystal" if atoms.pbc.any() else "molecule")
    pbc = atoms.pbc.tolist()
    if kind == "molecule" and atoms.pbc.any():
        raise ValueError(f"a molecule is not periodic, '{system.structure}' has pbc={pbc}; take kind crystal or liquid")
    if kind != "molecule" and not (atoms.pbc.all() and atoms.cell.rank == 3):
        raise ValueError(f"a {kind} is periodic along all three vectors, '{system.structure}' has pbc={pbc}")
    if kind == "molecule" and len(atoms) < 2:
        raise ValueError(f"'{system.structure}' is one atom, which has no physics of a molecule; give two or more")
    if system.melt is not None and kind != "crystal":
        raise ValueError(f"melt is for a crystal, '{system.structure}' is a {kind}; leave it out")
    return kind


def _group(atoms: Atoms) -> str:
    return next((str(atoms.info[key]) for key in _GROUP_KEYS if key in atoms.info), "")
