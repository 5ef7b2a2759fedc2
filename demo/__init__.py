"""The demonstration."""

DEMO = "demo.json"  # the results, and the mark of a folder that the next demonstration may overwrite
