"""torchvision's Faster R-CNN (MobileNet v3, feature pyramid) from scratch: trained on small random images with random boxes,
then asked for detections."""
import sys

import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn


def make_image(size):
    corners = torch.rand(3, 2) * size / 2
    boxes = torch.cat([corners, corners + 8 + torch.rand(3, 2) * (size / 2 - 8)], dim=1)
    return torch.rand(3, size, size), {"boxes": boxes, "labels": torch.randint(1, 5, (3,))}


def main(steps=10):
    torch.manual_seed(0)
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None, num_classes=5, min_size=96,
                                                  max_size=128)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.005, momentum=0.9, weight_decay=0.0005)
    model.train()
    for step in range(steps):
        images, targets = zip(make_image(96), make_image(80))
        losses = model(list(images), list(targets))
        loss = sum(losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step} loss {loss.item():.6f}", flush=True)
    model.eval()
    with torch.no_grad():
        detections = model([make_image(96)[0]])[0]
    print(f"{len(detections['boxes'])} boxes, best score {detections['scores'].max().item():.6f}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
