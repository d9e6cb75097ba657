"""The network and the potential on top of it."""
