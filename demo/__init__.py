"""The demonstration, `t5fusion demo`: train on the standard library, and measure what the vectors add."""

DEMO = "demo.json"  # the results; its presence marks a folder that the next demonstration may overwrite
DIFFERS = 3  # exit code of the check: the reloaded model gives other losses or texts (1 is the code of every traceback)
PROBE = "probe.json"  # rows, and the losses and texts of the trained model, to check the reloaded model
