"""Mathematics in torch: steerable layers, the network, and the potential on top of it."""
