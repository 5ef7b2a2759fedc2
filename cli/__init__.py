"""The command line. Each command has a file, which parses, makes one call and prints."""
