"""Active learning: a potential from structures and a reference, with frames that its own dynamics finds.

`ase_segnn.training.learn` is the way in. Nothing is imported here, so that processes of a run start soon.
"""
