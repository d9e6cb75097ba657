"""The calculator in ASE's list of plugins, which is experimental in ASE 3.29.

ASE loads this module by the entry point "ase.plugins"; nothing else does.
"""

from __future__ import annotations

from ase._4.plugins.plugin import CalculatorPlugin

__ase_plugins__ = {
    CalculatorPlugin(
        "segnn", implementation="ase_segnn.SEGNNCalculator", citation="Brandstetter et al., ICLR 2022, arXiv:2110.02905"
    )
}
