"""A committee: several potentials with different weights. Their disagreement shows where not to trust a prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from ase_segnn.graphs.atomic_graph import AtomicGraph
from ase_segnn.model.config import PotentialConfig
from ase_segnn.model.potential import Potential, Prediction


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class CommitteePrediction(Prediction):
    r"""Means over the K members of a committee, and standard deviations between members.

    A deviation is :math:`\sqrt{\sum_k (x_k - \bar x)^2 / (K - 1)}`. For the force on an atom the difference is the
    length of the vector :math:`\mathbf F_k - \bar{\mathbf F}`, so deviations do not change when the structure turns.

    Parameters
    ----------
    energy, atom_energies, forces, stress : means, as in `Prediction`
    energy_std : (B,) float64, eV
    atom_energies_std : (N,) float64, eV
    forces_std : (N,) float64, eV/Å; None if no forces were asked for
    """

    energy_std: Tensor
    atom_energies_std: Tensor
    forces_std: Tensor | None = None


class Committee(nn.Module):
    """Potentials of one config, trained from different random weights, that predict together.

    Use a committee to see where not to trust a potential: deviations between members are large for structures unlike
    the training data. Deviations are no error bars, since an error that all members share does not show.

    The energy of the committee is the mean energy. Mean forces and mean stress are its derivatives, so dynamics
    conserve the mean energy.

    Parameters
    ----------
    members : two or more potentials; not copied

    Raises
    ------
    ValueError
        If there are fewer than two members, if members differ in config or dtype, or if two have the same weights.

    References
    ----------
    Schran, Brezina, Marsalek, J. Chem. Phys. 153, 104105 (2020), arXiv:2006.01541.
    """

    def __init__(self, members: Sequence[Potential]) -> None:
        super().__init__()
        if len(members) < 2:
            raise ValueError(
                f"a committee has two members or more, got {len(members)}; a single potential is used as is"
            )
        for index, member in enumerate(members):
            _check_same_kind(members[0], member, index)
        for (i, one), (j, other) in combinations(enumerate(members), 2):
            if _same_weights(one, other):
                raise ValueError(
                    f"members {i} and {j} of the committee have the same weights, and so would never disagree; train "
                    "them with different seeds"
                )
        self.members: Sequence[Potential] = nn.ModuleList(members)  # type: ignore[assignment]  # works as one

    @property
    def config(self) -> PotentialConfig:
        """Configuration of each member."""
        return self.members[0].config

    @property
    def cutoff(self) -> float:
        """Distance up to which atoms are neighbors, Å."""
        return self.members[0].cutoff

    @property
    def elements(self) -> tuple[str, ...]:
        """Chemical symbols of the elements that the committee knows."""
        return self.members[0].elements

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the networks."""
        return self.members[0].dtype

    def __repr__(self) -> str:
        return f"Committee({len(self.members)} x {self.members[0]})"

    def predict(self, graph: AtomicGraph, *, forces: bool = True, stress: bool = False) -> CommitteePrediction:
        """Predict means and deviations of the members' results, detached; arguments as of `Potential.predict`."""
        return combine([member.predict(graph, forces=forces, stress=stress) for member in self.members])


def combine(predictions: Sequence[Prediction]) -> CommitteePrediction:
    """Return means and deviations of two or more members' predictions for the same graph."""
    energies = torch.stack([prediction.energy for prediction in predictions])
    atom_energies = torch.stack([prediction.atom_energies for prediction in predictions])
    forces = _stacked([prediction.forces for prediction in predictions])
    stresses = _stacked([prediction.stress for prediction in predictions])
    return CommitteePrediction(
        energy=energies.mean(0),
        atom_energies=atom_energies.mean(0),
        forces=None if forces is None else forces.mean(0),
        stress=None if stresses is None else stresses.mean(0),
        energy_std=energies.std(0),
        atom_energies_std=atom_energies.std(0),
        forces_std=None if forces is None else forces.var(0).sum(1).sqrt(),
    )


def _stacked(values: list[Tensor | None]) -> Tensor | None:
    given = [value for value in values if value is not None]
    return torch.stack(given) if given else None


def _check_same_kind(first: Potential, member: Potential, index: int) -> None:
    if member.dtype != first.dtype:
        raise ValueError(f"members of a committee have one dtype, member 0 has {first.dtype}, {index} {member.dtype}")
    fields, others = (dict(_fields(potential.config.model_dump())) for potential in (first, member))
    for name in fields | others:
        if fields.get(name) != others.get(name):
            raise ValueError(
                f"members of a committee differ in their weights only, but {name} is {fields.get(name)!r} in member 0 "
                f"and {others.get(name)!r} in member {index}; train all with the same recipe and data, and another seed"
            )


def _fields(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of a nested config: ``network.cutoff``, 5.0."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _same_weights(one: Potential, other: Potential) -> bool:
    weights = other.state_dict()
    return all(torch.equal(weight, weights[name].to(weight.device)) for name, weight in one.state_dict().items())
