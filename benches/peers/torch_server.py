"""Measures PyTorch on request, so that other programs can poll it in turn.

One JSON object per line on stdin, one per line on stdout. Requests:

    {"kind": "layer", "ins", "outs", "spatial", "kernel", "stride", "pad",
     "groups", "transposed", "op": "forward"|"data"|"weight",
     "layout": "nchw"|"nhwc", "secs"}   -> {"secs": median of one call}
    {"kind": "step", "net": "resnet18"|"unet32", "size", "layout", "repeats"}
        -> {"secs": median of forward and backward, "rss_bytes": peak above that before}
    {"kind": "version"} -> {"version"}

The caller sets OMP_NUM_THREADS and the allocator's environment.
"""
import json
import os
import resource
import statistics
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def layer(q):
    n = len(q["spatial"])
    k, s, p = [q["kernel"]] * n, [q["stride"]] * n, [q["pad"]] * n
    if q["transposed"]:
        out = [(i - 1) * b - 2 * c + a for i, a, b, c in zip(q["spatial"], k, s, p)]
        w = torch.randn(q["ins"], q["outs"] // q["groups"], *k)
    else:
        out = [(i + 2 * c - a) // b + 1 for i, a, b, c in zip(q["spatial"], k, s, p)]
        w = torch.randn(q["outs"], q["ins"] // q["groups"], *k)
    x = torch.randn(1, q["ins"], *q["spatial"])
    g = torch.randn(1, q["outs"], *out)
    if q["layout"] == "nhwc":
        form = torch.channels_last if n == 2 else torch.channels_last_3d
        x, w, g = (t.contiguous(memory_format=form) for t in (x, w, g))
    rest = (s, p, [1] * n, q["transposed"], [0] * n, q["groups"])
    mask = [q["op"] == "data", q["op"] == "weight", False]

    def call():
        if q["op"] == "forward":
            torch.ops.aten.convolution(x, w, None, *rest)
        else:
            torch.ops.aten.convolution_backward(g, x, w, None, *rest, mask)

    with torch.no_grad():
        return {"secs": median(call, q["secs"])}


def median(call, secs):
    call()
    took, end = [], time.perf_counter() + secs
    while len(took) < 3 or (time.perf_counter() < end and len(took) < 500):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def norm(channels):
    return nn.GroupNorm(8, channels)


class Basic(nn.Module):
    def __init__(self, ins, outs, stride=1):
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


class ResNet18(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.norm = norm(64)
        blocks, ins = [], 64
        for outs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [Basic(ins, outs, stride), Basic(outs, outs)]
            ins = outs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(512, 2)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.conv(x)), inplace=True), 3, 2, 1)
        return F.cross_entropy(self.head(self.blocks(x).mean((2, 3))), torch.tensor([1]))


class Twice(nn.Module):
    def __init__(self, ins, outs):
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, 1, 1, bias=False)
        self.norm1 = norm(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.norm2 = norm(outs)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)), inplace=True)
        return F.relu(self.norm2(self.conv2(x)), inplace=True)


class UNet(nn.Module):
    def __init__(self, base, depth=3):
        super().__init__()
        width = [base << i for i in range(depth + 1)]
        self.down = nn.ModuleList([Twice(3, base)] + [Twice(a, b) for a, b in zip(width, width[1:])])
        pairs = list(zip(width, width[1:]))[::-1]
        self.up = nn.ModuleList([nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairs])
        self.join = nn.ModuleList([Twice(2 * a, a) for a, _ in pairs])
        self.head = nn.Conv2d(base, 2, 1)

    def forward(self, x):
        skips = []
        for i, down in enumerate(self.down):
            x = down(x if i == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, join in zip(self.up, self.join):
            x = join(torch.cat([skips.pop(), up(x)], 1))
        return F.cross_entropy(self.head(x), torch.zeros(1, *x.shape[2:], dtype=torch.long))


def rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step(q):
    before = rss()
    net = {"resnet18": ResNet18, "unet32": lambda: UNet(32)}[q["net"]]()
    x = torch.randn(1, 3, q["size"], q["size"])
    if q["layout"] == "nhwc":
        net = net.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    took = []
    for _ in range(q["repeats"] + 1):
        net.zero_grad(set_to_none=True)
        start = time.perf_counter()
        net(x).backward()
        took.append(time.perf_counter() - start)
    return {"secs": statistics.median(took[1:]), "rss_bytes": rss() - before}


def main():
    for line in sys.stdin:
        q = json.loads(line)
        kinds = {"layer": layer, "step": step, "version": lambda _: {"version": torch.__version__}}
        print(json.dumps(kinds[q["kind"]](q)), flush=True)


main()
