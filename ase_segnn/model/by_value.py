"""A potential or committee as plain arrays, for pickling to another process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ase_segnn.model.committee import Committee
from ase_segnn.model.config import PotentialConfig
from ase_segnn.model.potential import Potential


@dataclass(frozen=True, eq=False)
class PotentialByValue:
    """Configuration and weights of a potential as arrays instead of tensors.

    A calculator pickles this form of its potential. Pickling a tensor for another process moves the tensor to shared
    memory, in place, and containers have little shared memory. Arrays are copied.

    Parameters
    ----------
    config : of each member
    dtype : of the weights
    members : for each member, name of a weight -> its numbers; several members are a committee
    """

    config: PotentialConfig
    dtype: torch.dtype
    members: tuple[dict[str, NDArray[Any]], ...]

    @classmethod
    def of(cls, potential: Potential | Committee) -> PotentialByValue:
        """Copy the weights of a potential or committee."""
        members = potential.members if isinstance(potential, Committee) else [potential]
        weights = ({name: np.array(x.numpy(force=True)) for name, x in one.state_dict().items()} for one in members)
        return cls(potential.config, potential.dtype, tuple(weights))

    def potential(self, device: torch.device) -> Potential | Committee:
        """Build the potential on a device, frozen and in evaluation mode."""
        members = []
        for weights in self.members:
            with torch.device("cpu"), torch.random.fork_rng(devices=[]):  # keep the caller's random numbers
                member = Potential(self.config).to(self.dtype)
            member.load_state_dict({name: torch.from_numpy(x) for name, x in weights.items()})
            members.append(member.to(device).requires_grad_(False).eval())
        return members[0] if len(members) == 1 else Committee(members)
