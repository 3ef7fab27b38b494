"""Training jobs: files that were sent, orders in a queue, workers that run them."""
