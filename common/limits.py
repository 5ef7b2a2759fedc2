"""The default limits of a row's texts. This file imports nothing, so that the command line shows them quickly."""

MAX_SOURCE, MAX_TARGET = 128, 64  # tokens
