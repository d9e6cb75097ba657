"""Named arrays of a program, and the places in them that expressions read and steps write."""

from __future__ import annotations

from typing import Literal, NamedTuple

# What an array has a row of: an atom, an edge, an element, a pair of elements, an interval of the distance; or one row.
Rows = Literal["node", "edge", "species", "pair", "knot", "once"]
# Whose row a loop takes: that of the atom itself (the center of an edge), of its neighbor, or of the edge.
At = Literal["center", "neighbor", "edge"]


class Array(NamedTuple):
    """Numbers in rows of `components` times `width`; the components of one channel are `width` apart.

    Features 64x1o of atoms are an array with 3 components, width 64 and 64 channels. What atoms send along edges in two
    ways has the same with a width of 128: slot 0 is the first 64, slot 1 the second. Attributes l <= 2 of edges are an
    array of 9 components, width 1 and no channels.

    Parameters
    ----------
    scope : where in the network it belongs, such as "layer_1"; arrays of several scopes have the same name
    name : what it holds
    rows : of what
    components, width : sizes of a row
    channels : that one slot has; 0 for single numbers
    is_double : float64 whatever the precision of the network is
    """

    scope: str
    name: str
    rows: Rows
    components: int
    width: int = 1
    channels: int = 0
    is_double: bool = False

    @property
    def identifier(self) -> str:
        """Name that nothing else has: no other array of the program, and no word of the printed language."""
        return f"{self.scope}_{self.name}" if self.scope else f"{self.name}_"

    @property
    def stride(self) -> int:
        """Numbers of one row."""
        return self.components * self.width

    def leaf(self, component: int = 0, slot: int = 0, at: At = "center") -> Leaf:
        """Return a place in the array."""
        assert 0 <= component < self.components
        assert 0 <= slot * max(self.channels, 1) < self.width
        return Leaf(self, at, component, slot)

    def leaves(self) -> list[Leaf]:
        """Return all places of the row of an atom."""
        slots = range(self.width // max(self.channels, 1))
        return [self.leaf(component, slot) for component in range(self.components) for slot in slots]


class Leaf(NamedTuple):
    """A place in the row of an array: one number, or the channels of a slot."""

    array: Array
    at: At
    component: int
    slot: int

    @property
    def offset(self) -> int:
        """Where its first number is in the row."""
        return self.component * self.array.width + self.slot * self.array.channels
