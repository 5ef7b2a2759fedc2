"""Code that several folders share: the console, base models, run folders, and the files in them."""
