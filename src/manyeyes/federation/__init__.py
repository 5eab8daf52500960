"""Rounds of training over many nodes; an engine that needs torch or Flower is a file of its own."""
