"""Code that several packages share: the console, base models, run folders, and the files in them."""
