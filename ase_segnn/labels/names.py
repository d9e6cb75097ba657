"""Names of labels: the one table of what energies, forces, stresses and their weights are called in files.

A name is a *stem* such as ``energy`` or ``virial``, alone or with a prefix or suffix such as ``REF_``. Capital letters,
``_`` and ``-`` do not matter: ``REF_energy``, ``ref_energy`` and ``RefEnergy`` are one name.

==========  ==================================================================================================
quantity    stems
==========  ==================================================================================================
energy      energy, total_energy, tot_energy, potential_energy, pot_energy, etot, e_tot, toten: eV, whole frame
free        free_energy, energy_free: eV, of the whole frame with the entropy of electrons
forces      forces, force: (n_atoms, 3) eV/Å
stress      stress, stress_tensor: eV/Å³, positive in tension
            virial, virials: eV, minus the stress times the volume
==========  ==================================================================================================

Which of several is taken. The names with one prefix are a *family*: one computation. Families go in this order, and all
labels come from one if it has them all:

1. the family of the key of energies, if it is given, such as ``energy_key: dft_energy``;
2. REF_, as written for MACE;
3. the results of a calculator, what ASE makes of ``energy``, ``forces`` and ``stress`` in most files;
4. names without a prefix;
5. dft_, qm_, vasp_, label_, target_, true_.

A label that the first family lacks is taken from the next one that has it, unless the two have another label in common
whose values differ: they are two computations then. All frames of a data set have their labels from one place each.

Names with any other prefix, such as ``mace_energy``, may be predictions, and are taken only where a key says so.

Energy or free energy. Forces of computations with smeared electrons are derivatives of the free energy, which ASE
holds as ``free_energy``, beside an ``energy`` extrapolated to no smearing. Users of MACE, NequIP and ASE get the
latter from ``atoms.get_potential_energy()``, so that ``energy`` is taken here as well wherever there is one. A
difference to the free energy is told; ``energy_key: free_energy`` takes that.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ase_segnn.configuration import Configuration
from ase_segnn.quantities import LABELS

REFERENCE, RESULTS, PLAIN = "ref", "(results)", ""  # no name has brackets

Quantity = Literal["energy", "free", "forces", "stress"]

_STEMS: dict[str, Quantity] = {
    **dict.fromkeys(
        ("energy", "totalenergy", "totenergy", "potentialenergy", "potenergy", "etot", "toten", "energytotal"), "energy"
    ),
    **dict.fromkeys(("freeenergy", "energyfree"), "free"),
    **dict.fromkeys(("forces", "force"), "forces"),
    **dict.fromkeys(("stress", "stresstensor", "virial", "virials"), "stress"),
}
_OTHER_WORDS = ("dft", "qm", "vasp", "label", "target", "true")
FAMILIES = (REFERENCE, RESULTS, PLAIN, *_OTHER_WORDS)

# Weights of frames: name without "config" and "weight" -> labels whose squared errors are multiplied.
_WEIGHTS = {
    "": LABELS,
    **dict.fromkeys(("energy", "energies", "freeenergy"), ("energy",)),
    **dict.fromkeys(("forces", "force"), ("forces",)),
    **dict.fromkeys(("stress", "stresses"), ("stress",)),
    **dict.fromkeys(("virial", "virials"), ("virial",)),
}

# Parts of names that look like a label, whatever stands beside them.
_SIGNS = ("energy", "energies", "force", "stress", "virial", "toten", "etot", "gradient")
# Deviations among members of a committee, as `ase-segnn select` writes them.
_NO_LABELS = ("energystd", "energiesstd", "forcesstd", "maxforcesstd")
# Of atoms, in the results of many of ASE's calculators.
PER_ATOM = ("energies", "stresses")


class LabelKeys(Configuration):
    """What labels are called in a file, if not as `ase_segnn.labels.names` has it or to choose one of several.

    Each key is looked for among a frame's calculator results, ``info`` and ``arrays``. A name that contains "virial"
    stands for minus the stress times the volume, in eV.

    Parameters
    ----------
    energy : eV, of the whole structure
    forces : (n_atoms, 3) eV/Å
    stress : eV/Å³, positive in tension; (6,) in ASE's order xx, yy, zz, yz, xz, xy, or (3, 3) or (9,)
    """

    energy: str | None = None
    forces: str | None = None
    stress: str | None = None


@dataclass(frozen=True)
class Spelling:
    """What a name says.

    Parameters
    ----------
    quantity : "free" is the free energy
    family : prefix or suffix in small letters; names with the same one belong to one computation
    is_virial : the value is minus the stress times the volume
    """

    quantity: Quantity
    family: str
    is_virial: bool = False

    @property
    def label(self) -> str:
        """The label it can stand for, one of `LABELS`."""
        return "energy" if self.quantity == "free" else self.quantity

    @property
    def is_known(self) -> bool:
        """Whether it is taken without being asked for."""
        return self.family in FAMILIES


@lru_cache(maxsize=4096)
def spelling(name: str) -> Spelling | None:
    """Read the name of a label; None for names that are none.

    >>> spelling("REF_virials")
    Spelling(quantity='stress', family='ref', is_virial=True)
    >>> spelling("mace_energy").is_known
    False
    >>> spelling("config_energy_weight") is None
    True
    """
    plain = _plain(name)
    if weighted_labels(name) or plain in _NO_LABELS:
        return None
    words = _words(name)
    for stem in sorted(_STEMS, key=len, reverse=True):
        for whole, rest in ((plain.endswith(stem), plain[: -len(stem)]), (plain.startswith(stem), plain[len(stem) :])):
            # a stem of several words may be run together, other names must have it as words of their own
            if whole and (rest in {REFERENCE, PLAIN, *_OTHER_WORDS} or _apart(words, stem)):
                return Spelling(_STEMS[stem], rest, "virial" in plain)
    return None


def looks_like_label(name: str) -> bool:
    """Whether a name may be meant for a label or for the weight of one.

    >>> [looks_like_label(name) for name in ("energy_per_atom", "force_weight", "config_type", "forces_std")]
    [True, True, False, False]
    """
    plain = _plain(name)
    return plain not in _NO_LABELS and not weighted_labels(name) and any(sign in plain for sign in _SIGNS)


@lru_cache(maxsize=4096)
def weighted_labels(name: str) -> tuple[str, ...]:
    """Labels that a frame's weight of this name is for; "virial" for stresses that are given as virials.

    >>> weighted_labels("config_weight"), weighted_labels("Config_Virials_Weight"), weighted_labels("weight")
    (('energy', 'forces', 'stress'), ('virial',), ())
    """
    plain = _plain(name)
    if not (plain.startswith("config") and plain.endswith("weight")):
        return ()
    return _WEIGHTS.get(plain.removeprefix("config").removesuffix("weight"), ())


def same_name(first: str, second: str) -> bool:
    """Whether two names differ in capital letters, ``_`` and ``-`` at most."""
    return _plain(first) == _plain(second)


def fingerprint() -> str:
    """Everything in the table, as text: files made by another table are told by it."""
    return repr((_STEMS, FAMILIES, _WEIGHTS, _NO_LABELS, _SIGNS))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _words(name: str) -> list[str]:
    return [word for word in "".join(c if c.isalnum() else " " for c in name.lower()).split() if word]


def _apart(words: list[str], stem: str) -> bool:
    """Whether the stem is made of whole words at one end."""
    ends = [words[: n + 1] for n in range(len(words))] + [words[n:] for n in range(len(words))]
    return any("".join(end) == stem for end in ends)
