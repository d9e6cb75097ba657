"""Active learning: a potential from structures and a reference, with frames that its own dynamics finds."""
