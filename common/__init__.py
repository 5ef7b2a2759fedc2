"""What several rooms of the package share: the console, base models, and folders that training saved."""
