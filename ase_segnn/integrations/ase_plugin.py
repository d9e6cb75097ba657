"""The calculator in ASE's list of plugins, which is experimental in ASE 3.29.

ASE loads this module by the entry point "ase.plugins" and takes `__ase_plugins__` of it.
"""

from __future__ import annotations


def __getattr__(name: str) -> object:
    """Make the plugin when ASE asks for it: to import ASE's part loads all plugins, this module among them."""
    if name != "__ase_plugins__":
        raise AttributeError(f"module '{__name__}' has no attribute {name!r}")
    from ase._4.plugins.plugin import CalculatorPlugin

    citation = "Brandstetter et al., ICLR 2022, arXiv:2110.02905"
    return {CalculatorPlugin("segnn", implementation="ase_segnn.SEGNNCalculator", citation=citation)}
