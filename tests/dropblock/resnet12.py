"""ResNet-12 as few-shot learning trains it: the starting point of docs/MIGRATE.md, with its own DropBlock and counter.

Four residual blocks of three 3x3 convolutions and a 2x2 pool, channels 64, 160, 320, 640 times `width` / 64; single
units are dropped after the first two blocks and blocks of 5x5 after the others, at a rate that grows over 40,000 steps.
"""

import torch
from torch import nn
from torch.nn import functional as F


def drop_blocks(x, keep_rate, block_size):
    side = x.shape[-1]
    valid = side - block_size + 1
    gamma = (1 - keep_rate) / block_size**2 * side**2 / valid**2
    seeds = torch.bernoulli(torch.full((*x.shape[:2], valid, valid), gamma, device=x.device))
    mask = 1 - F.max_pool2d(F.pad(seeds, [block_size - 1] * 4), block_size, stride=1)
    return x * mask * mask.numel() / mask.sum()


class Block(nn.Module):
    def __init__(self, inputs, outputs, drop_rate, block_size):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.conv3, self.bn3 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.pool = nn.MaxPool2d(2)
        self.drop_rate, self.block_size = drop_rate, block_size
        self.steps = 0

    def forward(self, x):
        out = F.leaky_relu(self.bn1(self.conv1(x)), 0.1)
        out = F.leaky_relu(self.bn2(self.conv2(out)), 0.1)
        out = self.pool(F.leaky_relu(self.bn3(self.conv3(out)) + self.shortcut(x), 0.1))
        if self.training:
            self.steps += 1
            out = drop_blocks(out, max(1 - self.drop_rate * self.steps / 40000, 1 - self.drop_rate), self.block_size)
        return out


class ResNet12(nn.Module):
    def __init__(self, classes, width=64, drop_rate=0.1):
        super().__init__()
        channels = [3, width, width * 5 // 2, width * 5, width * 10]
        self.layer1 = Block(channels[0], channels[1], drop_rate, 1)
        self.layer2 = Block(channels[1], channels[2], drop_rate, 1)
        self.layer3 = Block(channels[2], channels[3], drop_rate, 5)
        self.layer4 = Block(channels[3], channels[4], drop_rate, 5)
        self.fc = nn.Linear(channels[4], classes)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(x.mean((2, 3)))


def train(batches, classes, width=64):
    model = ResNet12(classes, width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for images, labels in batches:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model
