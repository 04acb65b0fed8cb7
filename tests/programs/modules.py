"""A model with modules in lists, under two names, without a name, or that come and go. With an argument it writes there, for
each op that a TorchDispatchMode sees, its name and what named_modules() calls the module that is being called."""
import json
import sys
import time

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode


class Layer(torch.nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.attention = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ModuleDict({"inner.x".replace(".", "_"): torch.nn.Identity()})["inner_x"])
        self.shared = shared
        self.nothing = None
        self.register_module("none", None)

    def forward(self, x):
        return self.shared(self.attention(x)).mul(2)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        shared = torch.nn.ReLU()
        self.layers = torch.nn.ModuleList([Layer(shared) for _ in range(3)])
        self.shared = shared
        self.__dict__["hidden"] = torch.nn.Tanh()
        self.layers[1].up = self.layers[0]  # reached twice
        self.late = None

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        x = self.hidden(self.shared(x)).add(1)
        x = torch.nn.Softmax(dim=-1)(x)
        return self.late(x) if self.late is not None else x


class Watch(TorchDispatchMode):
    def __init__(self, seen):
        super().__init__()
        self.seen, self.calls = seen, []

    def push(self, module, *_):
        self.calls.append(module)

    def pop(self, *_):
        self.calls.pop()

    def path(self):
        if not self.calls:
            return None
        root = self.calls[0]
        names = {id(module): name for name, module in root.named_modules()}
        for module in reversed(self.calls):
            if id(module) in names:
                return ".".join([type(root).__name__, names[id(module)]]).rstrip(".")
        return None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(("aten::" + function._schema.name.split("::")[1], self.path()))
        return function(*args, **(kwargs or {}))


def step(net, loss, optimizer):
    optimizer.zero_grad()
    loss(net(torch.randn(4, 8)), torch.zeros(4, 8)).backward()
    optimizer.step()


def main():
    torch.manual_seed(0)
    net, loss = Net(), torch.nn.MSELoss()
    seen = []
    watch = Watch(seen)
    register_module_forward_pre_hook(watch.push)
    register_module_forward_hook(watch.pop)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, foreach=False)
    for i in range(6):
        if i == 3:
            net.late = torch.nn.Linear(8, 8)
        with watch:
            torch.bartlett_window(4)
            step(net, loss, optimizer)
        time.sleep(0.05)
    torch.zeros(1)
    time.sleep(0.05)
    torch.zeros(1)
    if len(sys.argv) > 1:
        with open(sys.argv[1], "w", encoding="utf-8") as file:
            json.dump(seen, file)


main()
