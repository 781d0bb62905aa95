"""What it takes to serve a model: pure arithmetic, every number with its steps. Memory so far."""
