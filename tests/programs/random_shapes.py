"""A small transformer whose batch size and sequence length are drawn anew each step; the model is dropped at the end."""
import gc
import hashlib
import random
import sys

import torch
from torch import nn

VOCABULARY, WIDTH, LAYERS = 8000, 96, 3


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 4, 4 * WIDTH, batch_first=True)
                                    for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def main(steps=300):
    torch.manual_seed(0)
    random.seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters())
    loss_fn = nn.CrossEntropyLoss()
    for step in range(steps):
        tokens = torch.randint(0, VOCABULARY, (random.randint(1, 16), random.randint(8, 96)))
        optimizer.zero_grad()
        loss = loss_fn(model(tokens).view(-1, VOCABULARY), tokens.view(-1))
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step} loss {loss.item():.6f}", flush=True)
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    print("parameters", digest.hexdigest())
    del model, optimizer, loss, tokens
    gc.collect()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
