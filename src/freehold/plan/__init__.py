"""Memory, speed and cost of one way to serve a model: pure arithmetic, every number with its steps."""
