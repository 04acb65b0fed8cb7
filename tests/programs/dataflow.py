"""A few ops whose data flow is known, for the exports: views, in-place and out variants, lists, an exception, a second thread,
and one that is not over when the program is."""
import os
import threading

import torch

a = torch.randn(4, 4)
b = a.t()
b.add_(1)                      # writes a through its view
c = a * 2
d = torch.empty(4, 4)
torch.add(a, c, out=d)
e = d.sum()
del c
f = torch.ones(4, 4)           # may be where c was
g = f - 1
torch._foreach_mul_([f, d], 2.0)
h = torch.maximum(f, d)
b.copy_(h)
i = torch.relu(a)
try:
    i + torch.ones(3)
except RuntimeError:
    pass
j = i.abs()
thread = threading.Thread(target=lambda: torch.zeros(3).mul_(2))
thread.start()
thread.join()


class Ends(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        os._exit(0)


j.as_subclass(Ends) + torch.ones(3)
