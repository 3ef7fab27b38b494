"""How fast and how small: the same work done by Headstock and by its peers, in one interleaved run."""
