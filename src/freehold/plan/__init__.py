"""What it takes to serve a model: pure arithmetic, every number with its steps.

Memory, cost, and the choice among all that is possible.
"""
