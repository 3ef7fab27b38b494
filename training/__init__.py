"""How an adapter is made: examples in, bundle out."""
