"""Adapters to programs that run potentials without ASE: LAMMPS, KIM, torch-sim, OpenMM."""
