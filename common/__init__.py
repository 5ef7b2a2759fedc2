"""Code that several rooms share: the console, base models, run folders, and the files in them."""
