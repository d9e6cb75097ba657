"""Networks with as many channels of each degree: what is missing is filled up with channels that stay zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ase_segnn.model.edge_layout import has_equal_channels
from ase_segnn.model.irreps import Irreps
from ase_segnn.model.potential import Potential
from ase_segnn.model.segnn import MessageNetwork, SteerableMLP
from ase_segnn.model.steerable import SteerableLinear

_MULTIPLE = 8  # of the channels after filling up, so that vectors are long


@torch.no_grad()
def with_equal_channels(potential: Potential) -> Potential:
    """Return a potential that gives the same results and has as many channels of each irrep, a multiple of 4.

    A channel that is added has weights of zero in front of it and behind it. Its features, their gates' products and
    their messages are exactly zero, so that results are the same but for the order of sums.

    Parameters
    ----------
    potential : not changed; returned as it is if nothing has to be added
    """
    hidden = potential.network.irreps_hidden
    if has_equal_channels(hidden):
        return potential
    channels = -(-max(mul for mul, _ in hidden) // _MULTIPLE) * _MULTIPLE
    irreps = "+".join(f"{channels}x{ir}" for _, ir in hidden)
    config = potential.config
    config = config.model_copy(update={"network": config.network.model_copy(update={"irreps_hidden": irreps})})
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they are
        wide = Potential(config)
    wide = wide.to(device=potential.device, dtype=potential.dtype).requires_grad_(False).eval()
    fill = _Filler(hidden, channels)
    old, new = potential.network, wide.network
    fill.linear(old.embedding, new.embedding, [None], fill.features)
    for old_layer, new_layer in zip(old.rounds, new.rounds, strict=True):
        fill.message(old_layer.message, new_layer.message)
        fill.mlp(old_layer.update, new_layer.update, [*fill.features, *fill.features], fill.features)
    fill.mlp(old.readout, new.readout, fill.features, [None])
    return wide


# Numbers of channels that follow each other in an entry, each of which gets more; None where an entry stays as it is.
_Parts = Sequence[int] | None


class _Filler:
    """Copies weights to where they are in layers with more channels; all other weights there become zero."""

    def __init__(self, hidden: Irreps, channels: int) -> None:
        self._channels = channels
        self.features: list[_Parts] = [[mul] for mul, _ in hidden]
        scalars = [mul for mul, ir in hidden if ir.l == 0 and ir.p == 1]
        gated = [mul for mul, ir in hidden if not (ir.l == 0 and ir.p == 1)]
        self._before_gate: list[_Parts] = [[*scalars, *gated], *([mul] for mul in gated)]

    def _places(self, parts: _Parts, n: int) -> Tensor:
        """Return where the n channels of an entry are after filling up."""
        if parts is None:
            return torch.arange(n)
        return torch.cat([torch.arange(mul) + k * self._channels for k, mul in enumerate(parts)])

    def linear(
        self, old: SteerableLinear, new: SteerableLinear, before: Sequence[_Parts], after: Sequence[_Parts]
    ) -> None:
        """Copy one layer whose inputs and outputs have these parts."""
        for entry, parts in enumerate(after):
            columns = self._places(parts, old.irreps_out[entry].mul)
            weight = new.weights[entry]
            weight.zero_()
            for path, wide in zip(old.paths[entry], new.paths[entry], strict=True):
                rows = wide.rows.start + self._places(before[path.entry_in], old.irreps_in[path.entry_in].mul)
                weight[rows[:, None], columns] = old.weights[entry][path.rows]
            if str(entry) in old.biases:
                new.biases[str(entry)].zero_()[columns] = old.biases[str(entry)]

    def mlp(self, old: SteerableMLP, new: SteerableMLP, before: Sequence[_Parts], after: Sequence[_Parts]) -> None:
        """Copy two layers with a gate between them."""
        self.linear(old.linear_1, new.linear_1, before, self._before_gate)
        self.linear(old.linear_2, new.linear_2, self.features, after)

    def message(self, old: MessageNetwork, new: MessageNetwork) -> None:
        """Copy the two layers of messages with one gate, and the network from message scalars to their weights."""
        scalars: list[_Parts] = [None] * (len(old.linear_1.irreps_in) - 2 * len(self.features))
        self.linear(old.linear_1, new.linear_1, [*self.features, *self.features, *scalars], self._before_gate)
        self.linear(old.linear_2, new.linear_2, self.features, self.features)
        if old.weights is None or new.weights is None:
            return
        places = []  # of the weights of the second layer's rows
        start = 0
        for paths, weight in zip(new.linear_2.paths, new.linear_2.weights, strict=True):
            places += [start + path.rows.start + self._places(self.features[path.entry_in], 0) for path in paths]
            start += len(weight)
        rows = torch.cat(places)
        for module, wide in zip(old.weights, new.weights, strict=True):
            if not isinstance(module, nn.Linear) or not isinstance(wide, nn.Linear):
                continue
            if module is old.weights[-1]:
                wide.weight.zero_()[rows] = module.weight
                wide.bias.zero_()[rows] = module.bias
            else:
                wide.weight.copy_(module.weight)
                wide.bias.copy_(module.bias)
