"""The demonstration."""

DEMO = "demo.json"  # the results, and the mark of a folder that the next demonstration may overwrite
PROBE = "probe.json"  # rows, and what the trained model gives for them, for the check of the reloaded model
