"""The default limits for the lengths of a row's texts. This file imports nothing, so that --help shows them quickly."""

MAX_SOURCE, MAX_TARGET = 128, 64  # tokens
