"""A DCGAN as the tutorials write it, narrow: generator and discriminator of 64 x 64 images take turns, Adam for each."""
import sys

import torch
from torch import nn

NOISE, WIDTH, BATCH = 100, 16, 8


def init_weights(module):
    name = module.__class__.__name__
    if "Conv" in name:
        nn.init.normal_(module.weight.data, 0.0, 0.02)
    elif "BatchNorm" in name:
        nn.init.normal_(module.weight.data, 1.0, 0.02)
        nn.init.constant_(module.bias.data, 0)


def make_generator():
    layers, inputs = [], NOISE
    for outputs, stride, padding in ((WIDTH * 8, 1, 0), (WIDTH * 4, 2, 1), (WIDTH * 2, 2, 1), (WIDTH, 2, 1)):
        layers += [nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False), nn.BatchNorm2d(outputs),
                   nn.ReLU(True)]
        inputs = outputs
    return nn.Sequential(*layers, nn.ConvTranspose2d(inputs, 3, 4, 2, 1, bias=False), nn.Tanh())


def make_discriminator():
    layers, inputs = [nn.Conv2d(3, WIDTH, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)], WIDTH
    for outputs in (WIDTH * 2, WIDTH * 4, WIDTH * 8):
        layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs),
                   nn.LeakyReLU(0.2, inplace=True)]
        inputs = outputs
    return nn.Sequential(*layers, nn.Conv2d(inputs, 1, 4, 1, 0, bias=False), nn.Sigmoid())


def main(steps=50):
    torch.manual_seed(0)
    generator, discriminator = make_generator().apply(init_weights), make_discriminator().apply(init_weights)
    criterion = nn.BCELoss()
    optimizer_d = torch.optim.Adam(discriminator.parameters(), lr=0.0002, betas=(0.5, 0.999))
    optimizer_g = torch.optim.Adam(generator.parameters(), lr=0.0002, betas=(0.5, 0.999))
    for step in range(steps):
        real = torch.rand(BATCH, 3, 64, 64) * 2 - 1
        discriminator.zero_grad()
        label = torch.full((BATCH,), 1.0)
        error_real = criterion(discriminator(real).view(-1), label)
        error_real.backward()
        fake = generator(torch.randn(BATCH, NOISE, 1, 1))
        label.fill_(0.0)
        error_fake = criterion(discriminator(fake.detach()).view(-1), label)
        error_fake.backward()
        optimizer_d.step()

        generator.zero_grad()
        label.fill_(1.0)
        error_g = criterion(discriminator(fake).view(-1), label)
        error_g.backward()
        optimizer_g.step()
        if step % 10 == 0:
            print(f"step {step} loss D {(error_real + error_fake).item():.6f} loss G {error_g.item():.6f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
