"""From atoms to the graph of a network: neighbor search, the Verlet skin, and the `AtomicGraph`."""
