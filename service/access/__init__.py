"""Who calls: API keys, what each may do, and whose adapters, files and jobs it sees."""
