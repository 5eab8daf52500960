"""Run an exported detector on a plain CPU: no torch, no Ultralytics, nothing of the federation."""
