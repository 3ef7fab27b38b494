"""HTTP routes, a file a noun: parse, call one method, shape the answer."""
