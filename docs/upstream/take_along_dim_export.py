"""torch: `torch.export` of `take_along_dim` fixes a dynamic size to that of the example. `gather` keeps it dynamic."""

import torch


class TakeAlong(torch.nn.Module):
    def forward(self, order, values):
        return values.take_along_dim(order.unsqueeze(-1), 1)


class Gather(torch.nn.Module):
    def forward(self, order, values):
        return values.gather(1, order.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


example = (torch.zeros(3, 9, dtype=torch.long), torch.zeros(3, 2, 8))
batch = torch.export.Dim("batch", min=2, max=64)
for module in (Gather(), TakeAlong()):
    try:
        torch.export.export(module, example, dynamic_shapes=({0: batch}, {0: batch}))
        outcome = "exported"
    except Exception as error:
        outcome = str(error).splitlines()[1].strip()
    print(f"torch {torch.__version__}, {type(module).__name__}: {outcome}; expected: exported")
