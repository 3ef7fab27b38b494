"""What an adapter is: its tasks, its bundle, where it is kept, how it runs."""
