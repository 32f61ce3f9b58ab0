"""Measures PyTorch on request, so that other programs can poll it in turn.

One JSON object per line on stdin, one per line on stdout. Requests:

    {"kind": "layer", "ins", "outs", "spatial", "kernel", "stride", "pad",
     "groups", "transposed", "op": "forward"|"data"|"weight",
     "layout": "nchw"|"nhwc", "secs"}   -> {"secs": median of one call}
    {"kind": "step", "net": "resnet18"|"resnet34"|"unet32", "size", "layout", "repeats"}
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

import nets

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


def rss():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def step(q):
    before = rss()
    net = nets.build(q["net"])
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
