"""torchvision's ResNet-18 trained from scratch on small random images: SGD with momentum and weight decay, a step schedule."""
import sys

import torch
from torch import nn
from torchvision.models import resnet18


def main(steps=30):
    torch.manual_seed(0)
    model = resnet18(num_classes=10)
    model.train()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)
    for step in range(steps):
        images, target = torch.randn(4, 3, 64, 64), torch.randint(0, 10, (4,))
        output = model(images)
        loss = criterion(output, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % 10 == 0:
            _, predicted = output.topk(5, 1)
            correct = predicted.eq(target.view(-1, 1)).any(1).float().sum()
            print(f"step {step} loss {loss.item():.6f} top-5 {correct.item():.0f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 30)
