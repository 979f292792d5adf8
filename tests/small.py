"""A network and features small enough to follow by hand, for the tests of whole methods."""
import torch
from torch import nn


class Linear(nn.Module):
    "The first eight numbers of an image to `dim`, of length one, in double precision."
    def __init__(self, seed, dim):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(dim, 8, generator=generator, dtype=torch.float64))
        self.dim = dim

    def forward(self, x): return nn.functional.normalize(x.flatten(1)[:, :8] @ self.weight.T, dim=1)


def people_in_cameras(people, cameras, visits, noise, dim=24, bias=1., seed=0):
    "Unit features of people seen in every camera, each camera adding a vector of its own; their pids and camids."
    g = torch.Generator().manual_seed(seed)
    pid = torch.arange(people).repeat_interleave(cameras*visits)
    cam = torch.arange(cameras).repeat_interleave(visits).repeat(people)
    randn = lambda n: torch.randn(n, dim, generator=g)
    x = randn(people)[pid] + bias*randn(cameras)[cam] + noise*randn(len(pid))
    return nn.functional.normalize(x, dim=1), pid, cam
