"""The networks that PyTorch is measured with, as `sstep.nn` builds them.

`norm` is "group" (8 groups) or "frozen" (a scale and a shift per channel: batch norm
with frozen statistics). A network is a list of pieces that maps go through one after
the other, so that each can be checkpointed by itself, and a loss.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class Frozen(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x):
        return x * self.scale + self.shift


def norm_of(kind):
    return {"group": lambda channels: nn.GroupNorm(8, channels), "frozen": Frozen}[kind]


class Basic(nn.Module):
    def __init__(self, norm, ins, outs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.norm1 = norm(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.norm2 = norm(outs)
        self.short = None
        if stride != 1 or ins != outs:
            self.short = nn.Sequential(nn.Conv2d(ins, outs, 1, stride, bias=False), norm(outs))

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)), inplace=True)
        y = self.norm2(self.conv2(y))
        return F.relu(y + (x if self.short is None else self.short(x)), inplace=True)


class Stem(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.norm = norm(64)

    def forward(self, x):
        return F.max_pool2d(F.relu(self.norm(self.conv(x)), inplace=True), 3, 2, 1)


def as_is(piece, *inputs):
    return piece(*inputs)


class ResNet(nn.Module):
    # Input positions per position of the features.
    STRIDE = 32

    def __init__(self, depths, norm="group"):
        super().__init__()
        norm = norm_of(norm)
        pieces, ins = [Stem(norm)], 64
        for outs, stride, depth in zip((64, 128, 256, 512), (1, 2, 2, 2), depths):
            for i in range(depth):
                pieces.append(Basic(norm, ins, outs, stride if i == 0 else 1))
                ins = outs
        self.pieces = nn.ModuleList(pieces)
        self.head = nn.Linear(512, 2)

    def features(self, x, through=as_is):
        for piece in self.pieces:
            x = through(piece, x)
        return x

    def loss(self, features):
        return F.cross_entropy(self.head(features.mean((2, 3))), torch.tensor([1], device=features.device))

    def forward(self, x, through=as_is):
        return self.loss(self.features(x, through))


class Twice(nn.Module):
    def __init__(self, norm, ins, outs):
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, 1, 1, bias=False)
        self.norm1 = norm(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.norm2 = norm(outs)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(x)), inplace=True)


class Down(Twice):
    def forward(self, x):
        return super().forward(F.max_pool2d(x, 2))


class Join(nn.Module):
    def __init__(self, norm, ins, outs):
        super().__init__()
        self.up = nn.ConvTranspose2d(ins, outs, 2, 2)
        self.twice = Twice(norm, 2 * outs, outs)

    def forward(self, x, skip):
        return self.twice(torch.cat([skip, self.up(x)], 1))


class UNet(nn.Module):
    def __init__(self, base, norm="group", depth=3):
        super().__init__()
        norm = norm_of(norm)
        width = [base << i for i in range(depth + 1)]
        pairs = list(zip(width, width[1:]))
        self.down = nn.ModuleList([Twice(norm, 3, base)] + [Down(norm, a, b) for a, b in pairs])
        self.up = nn.ModuleList([Join(norm, b, a) for a, b in pairs[::-1]])
        self.head = nn.Conv2d(base, 2, 1)

    def forward(self, x, through=as_is):
        skips = []
        for down in self.down:
            x = through(down, x)
            skips.append(x)
        skips.pop()
        for up in self.up:
            x = through(up, x, skips.pop())
        labels = torch.zeros(1, *x.shape[2:], dtype=torch.long, device=x.device)
        return F.cross_entropy(self.head(x), labels)


def build(name, norm="group"):
    return {
        "resnet18": lambda: ResNet((2, 2, 2, 2), norm),
        "resnet34": lambda: ResNet((3, 4, 6, 3), norm),
        "unet32": lambda: UNet(32, norm),
    }[name]()
