"""torch: the ONNX exporter cannot convert the product of a comparison and a dynamic size, only that of numbers."""

import logging
import warnings

import torch

warnings.simplefilter("ignore")
logging.disable()


class Product(torch.nn.Module):
    def forward(self, x):
        return (x > 0) * x.shape[1]


try:
    torch.onnx.export(Product(), (torch.ones(2, 3),), dynamo=True, dynamic_shapes=({0: "a", 1: "b"},), verbose=False)
    outcome = "exported"
except Exception as error:
    outcome = type(error).__name__
print(f"torch {torch.__version__}, (x > 0) * x.shape[1]: {outcome}; expected: exported")
