"""The compiler: a potential becomes a program, the program is differentiated, scheduled and printed as C++.

Read in this order:

1. `arrays`, `expressions`, `program`: what a program is made of.
2. `rules`, `builder`: how a module of the network writes down its steps. `layers`, `messages`, `networks`, `geometry`
   and `potentials` hold one rule per class of module.
3. `derivative`: the steps of the backward pass.
4. `schedule`: what runs together, and which arrays share memory.
5. `cpp`, `inference`, `training`: the printer. `interface` has the structs by which the result is called, and the
   folder cpp what is the same for all potentials.
"""
