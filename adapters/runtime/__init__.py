"""How adapters run: the bank of low-rank weights, packed attention, and the engine."""
