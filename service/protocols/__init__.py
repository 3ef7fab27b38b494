"""Wire forms: pure functions from a request to rows, and from rows to an answer."""
