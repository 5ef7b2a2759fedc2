"""The panels of `--help`: the titles under which it shows the options of a command, in this order."""

DATA = "Data"
VECTORS = "Vectors"
LORA = "LoRA"
TRAINING = "Training"
GENERATION = "Generation"
BUNDLE = "Bundle"
HUB = "Hub"
OUTPUT = "Output"
HELP = "Help"

PANELS = (DATA, VECTORS, LORA, TRAINING, GENERATION, BUNDLE, HUB, OUTPUT, HELP)
