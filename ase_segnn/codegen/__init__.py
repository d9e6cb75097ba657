"""The compiler: a potential becomes a program, the program is differentiated and printed as C++ or Triton.

There are two kinds of C++: `inference` makes energies, forces and stresses, `training` besides the gradients of the
weights. Both start from the same rules.

Read in this order:

1. `arrays`, `expressions`, `program`: what a program is made of.
2. `rules`, `builder`: how a module of the network writes down its steps. `layers`, `messages`, `networks`, `geometry`
   and `potentials` hold one rule per class of module.
3. `derivative`: the steps that make forces, and those that make gradients of weights.
4. `cpp`, `loops`: the printer of a loop over atoms or along edges.
5. `schedule`, `inference`: what runs together for a block of atoms, which arrays share memory, and the C++ around the
   loops. `training`: the same for training, where each thread runs all steps on structures of its own.
6. `triton`: the printer for GPUs. `ase_segnn.engines.kernels` runs what it prints, one loop or product after another.
7. `interface`: the structs by which the results are called. The folder cpp: what is the same for all potentials.
"""
