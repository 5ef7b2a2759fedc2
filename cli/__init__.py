"""The command line. Each command has a file, which parses the arguments, makes one call and prints the result."""
