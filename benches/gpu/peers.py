"""One step of a network by PyTorch on a device: one line of JSON.

    peers.py NET SIZE [--how untiled] [--dtype f32] [--norm group] [--memory BYTES]

How: `untiled`; `checkpoint` (every block recomputed); `save_on_cpu` (what autograd saves
moved to page-locked memory); `tile-checkpoint` (a ResNet with frozen norm in tiles with
their halo, each recomputed: equal to the whole, for nothing in it sees further than the
halo). Types: `f32`; `tf32` (f32, products rounded to TF32); `bf16` (autocast, weights in
f32). Channels-last throughout. `--memory` is what PyTorch's allocator may hold.

Prints {"secs", "peak_bytes", "reserved_bytes", "h2d_bytes", "loss", "torch", …}, or "error".
A process per line, so that every peak is its own. `--device cpu` tries the script out.
"""
import argparse
import json
import math
import os
import statistics
import sys
import time

import torch
from torch.utils.checkpoint import checkpoint

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../peers"))
import nets

# Positions of an image that a feature sees to either side, at most.
HALF_EXTENT = {"resnet18": 236, "resnet34": 468}


def again(piece, *inputs):
    return checkpoint(piece, *inputs, use_reentrant=False)


def tiled(net, x, tile, half_extent, device):
    """The loss from the features of tiles, each recomputed in the backward pass."""
    stride = net.STRIDE
    halo = -(-half_extent // stride)
    height, width = (n // stride for n in x.shape[2:])
    step = tile // stride

    def features(part, top, bottom, left, right):
        y = net.features(part.to(device, non_blocking=True))
        return y[:, :, top:y.shape[2] - bottom, left:y.shape[3] - right]

    def axis(extent):
        for lo in range(0, extent, step):
            hi = min(lo + step, extent)
            first, last = max(lo - halo, 0), min(hi + halo, extent)
            yield slice(first * stride, last * stride), lo - first, last - hi

    rows = []
    for rows_in, top, bottom in axis(height):
        row = [again(features, x[:, :, rows_in, columns_in], top, bottom, left, right)
               for columns_in, left, right in axis(width)]
        rows.append(torch.cat(row, 3))
    return net.loss(torch.cat(rows, 2))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=["resnet18", "resnet34", "unet32"])
    parser.add_argument("size", type=int)
    parser.add_argument("--how", default="untiled", choices=["untiled", "checkpoint", "save_on_cpu", "tile-checkpoint"])
    parser.add_argument("--dtype", default="f32", choices=["f32", "tf32", "bf16", "f64"])
    parser.add_argument("--norm", default="group", choices=["group", "frozen"])
    parser.add_argument("--memory", type=int)
    parser.add_argument("--tile", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda:0")
    args = parser.parse_args()
    if args.how == "tile-checkpoint" and (args.norm != "frozen" or not args.net.startswith("resnet")):
        parser.error("tiles equal the whole only in a ResNet with --norm frozen")
    if args.how == "tile-checkpoint" and (args.size % 32 or args.tile % 32):
        parser.error("tiles are whole features: --size and --tile in multiples of 32")
    device = torch.device(args.device)
    on_gpu = device.type == "cuda"
    answer = {"net": args.net, "size": args.size, "how": args.how, "dtype": args.dtype, "norm": args.norm,
              "torch": torch.__version__}
    try:
        answer.update(measure(args, device, on_gpu))
    except torch.OutOfMemoryError:
        answer["error"] = "out of memory"
    print(json.dumps(answer), flush=True)


def measure(args, device, on_gpu):
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = args.dtype == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = args.dtype == "tf32"
    if on_gpu:
        torch.backends.cudnn.benchmark = True
        if args.memory:
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(args.memory / total, 1.0), device)
        torch.cuda.reset_peak_memory_stats(device)
    real = torch.float64 if args.dtype == "f64" else torch.float32
    net = nets.build(args.net, args.norm).to(device, real, memory_format=torch.channels_last)
    x = torch.rand(1, 3, args.size, args.size, dtype=real)
    # Tiles are brought to the device one by one: the image need not fit.
    if args.how != "tile-checkpoint":
        x = x.to(device, memory_format=torch.channels_last)
    elif on_gpu:
        x = x.pin_memory()
    cast = torch.autocast(device.type, torch.bfloat16, enabled=args.dtype == "bf16")

    def step():
        net.zero_grad(set_to_none=True)
        with cast:
            if args.how == "tile-checkpoint":
                loss = tiled(net, x, args.tile, HALF_EXTENT[args.net], device)
            elif args.how == "checkpoint":
                loss = net(x, again)
            elif args.how == "save_on_cpu":
                with torch.autograd.graph.save_on_cpu(pin_memory=on_gpu):
                    loss = net(x)
            else:
                loss = net(x)
        loss.backward()
        return loss.item()

    secs = []
    for _ in range(args.rounds + 1):
        begin = time.perf_counter()
        loss = step()
        if on_gpu:
            torch.cuda.synchronize(device)
        secs.append(time.perf_counter() - begin)
    out = {"secs": statistics.median(secs[1:] or secs), "loss": loss}
    norms = [p.grad.double().norm().item() for p in net.parameters() if p.grad is not None]
    out["gradient_norm"] = math.sqrt(sum(n * n for n in norms))
    if on_gpu:
        out["peak_bytes"] = torch.cuda.max_memory_allocated(device)
        out["reserved_bytes"] = torch.cuda.max_memory_reserved(device)
        out["device"] = torch.cuda.get_device_name(device)
    return out


if __name__ == "__main__":
    main()
