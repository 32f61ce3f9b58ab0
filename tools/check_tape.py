#!/usr/bin/env python3
"""Checks `sstep grad` on a .tape against PyTorch's autograd, untiled.

    check_tape.py NET.tape [--sstep PATH] [--budget 8MiB] [--strategy NAME] [--host 1GiB] [--seed 0]

Random tensors are made for every leaf, both programs compute loss and
gradients, and the largest difference of each is printed, relative to its
largest element (or to a thousandth of the largest gradient, where the true one
vanishes). Needs torch, numpy and safetensors.
"""
import argparse
import os
import re
import subprocess
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

LINE = re.compile(r"(\S+) = (\w+)\s*(?:\(([^)]*)\))?\s*(?:(\[[^]]*\]))?\s*(.*)")


def numbers(text):
    return [float(v) if "." in v or "e" in v else int(v) for v in re.findall(r"-?[\d.]+(?:e-?\d+)?", text)]


def attributes(text):
    out = {}
    for key, value in re.findall(r"(\w+)(?:=(\[[^]]*\]|\S+))?", re.sub(r"=\s+", "=", text)):
        if not value:
            out[key] = True
        elif value.startswith("["):
            out[key] = [int(v) for v in numbers(value)]
        else:
            out[key] = numbers(value)[0] if re.match(r"-?[\d.]", value) else value
    return out


class Tape:
    def __init__(self, text):
        lines = [line.split("#")[0].strip() for line in text.splitlines()]
        lines = [line for line in lines if line]
        assert lines[0].startswith("tape v1"), lines[0]
        self.dtype = {"f32": torch.float32, "f64": torch.float64}[lines[0].split()[2]]
        self.outputs = [line.split()[1] for line in lines[1:] if line.startswith("output ")]
        self.nodes = []
        for line in lines[1:]:
            if line.startswith("output "):
                continue
            name, op, inputs, shape, rest = LINE.fullmatch(line).groups()
            inputs = [i.strip() for i in inputs.split(",")] if inputs else []
            self.nodes.append((name, op, inputs, numbers(shape or ""), attributes(rest)))


def spread(value, n, default):
    if value is None:
        return [default] * n
    return list(value) if isinstance(value, list) else [int(value)] * n


def paddings(a, n):
    both = a.get("pad")
    lo = spread(a.get("pad_lo", both), n, 0)
    hi = spread(a.get("pad_hi", both), n, 0)
    return lo, hi


def padded(x, lo, hi, value=0.0):
    flat = [p for pair in zip(reversed(lo), reversed(hi)) for p in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def windows(x, a, fill):
    """Patches of a pool: [N, C, out…, kernel…]."""
    n = x.dim() - 2
    kernel = spread(a.get("kernel"), n, 1)
    stride = spread(a.get("stride"), n, 1)
    lo, hi = paddings(a, n)
    x = padded(x, lo, hi, fill)
    for i in range(n):
        x = x.unfold(2 + i, kernel[i], stride[i])
    return x


def per_map(v, x):
    return v.reshape(*v.shape, *[1] * (x.dim() - v.dim())) if v.dim() < x.dim() else v


def normalise(x, a, mean, var, gamma, beta):
    view = [1, -1] + [1] * (x.dim() - 2)
    return (x - mean) / torch.sqrt(var + a["eps"]) * gamma.view(view) + beta.view(view)


def evaluate(tape, values):
    env = {}
    for name, op, inputs, shape, a in tape.nodes:
        if op in ("input", "param"):
            env[name] = values[name]
            continue
        if op == "constant":
            env[name] = torch.full(shape, float(a["value"]), dtype=tape.dtype)
            continue
        x = [env[i] for i in inputs]
        n = x[0].dim() - 2
        axes = list(range(2, x[0].dim()))
        if op == "conv":
            lo, hi = paddings(a, n)
            conv = [F.conv1d, F.conv2d, F.conv3d][n - 1]
            y = conv(padded(x[0], lo, hi), x[1], x[2] if len(x) > 2 else None,
                     stride=spread(a.get("stride"), n, 1), dilation=spread(a.get("dilation"), n, 1),
                     groups=int(a.get("groups", 1)))
        elif op == "conv_transpose":
            lo, hi = paddings(a, n)
            stride = spread(a.get("stride"), n, 1)
            dilation = spread(a.get("dilation"), n, 1)
            conv = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d][n - 1]
            y = conv(x[0], x[1], None, stride=stride, dilation=dilation, groups=int(a.get("groups", 1)))
            out = a.get("out")
            full = list(y.shape[2:])
            out = out if out is not None else [f - l - h for f, l, h in zip(full, lo, hi)]
            # What lies beyond the last tap is zero.
            y = F.pad(y, [p for f, l, o in reversed(list(zip(full, lo, out))) for p in (-l, l + o - f)])
            if len(x) > 2:
                y = y + per_map(x[2][None], y)
        elif op == "max_pool":
            p = windows(x[0], a, -float("inf"))
            y = p.amax(dim=list(range(2 + n, 2 + 2 * n))) if not p.requires_grad else p.flatten(2 + n).max(-1).values
        elif op == "avg_pool":
            p = windows(x[0], a, 0.0).sum(dim=list(range(2 + n, 2 + 2 * n)))
            ones = torch.ones_like(x[0][:1, :1])
            count = windows(ones, a, 1.0 if a.get("count_pad") else 0.0).sum(dim=list(range(2 + n, 2 + 2 * n)))
            y = p / count
        elif op == "upsample":
            factor = spread(a.get("factor"), n, 1)
            if a.get("mode", "nearest") == "nearest":
                y = x[0]
                for i, f in enumerate(factor):
                    y = y.repeat_interleave(f, dim=2 + i)
            else:
                mode = ["linear", "bilinear", "trilinear"][n - 1]
                y = F.interpolate(x[0], scale_factor=factor, mode=mode, align_corners=False)
        elif op in ("relu", "sigmoid", "tanh", "exp"):
            y = getattr(torch, op)(x[0])
        elif op == "gelu":
            y = F.gelu(x[0])
        elif op == "silu":
            y = F.silu(x[0])
        elif op == "leaky_relu":
            y = F.leaky_relu(x[0], float(a["slope"]))
        elif op == "add":
            y = x[0] + per_map(x[1], x[0])
        elif op == "mul":
            y = x[0] * per_map(x[1], x[0])
        elif op == "scale":
            y = x[0] * float(a["factor"])
        elif op == "softmax":
            y = torch.softmax(x[0], 1)
        elif op == "channel_sum":
            y = x[0].sum(1, keepdim=True)
        elif op == "concat":
            y = torch.cat(x, 1)
        elif op == "slice":
            y = x[0]
            for i, (s, l) in enumerate(zip(a["start"], a["len"])):
                y = y.narrow(1 + i, s, l)
        elif op == "pad":
            y = padded(x[0], a["lo"], a["hi"])
        elif op == "broadcast":
            y = per_map(x[0], torch.empty(*x[0].shape, *a["spatial"])).expand(*x[0].shape, *a["spatial"])
        elif op == "sum_map":
            y = x[0].sum(axes)
            if a.get("keep_batch") == "false":
                y = y.sum(0)
        elif op == "global_max":
            y = x[0].flatten(2).max(-1).values
        elif op == "spatial_lse":
            y = torch.logsumexp(x[0].flatten(2), -1)
        elif op in ("moments", "pack_moments"):
            y = x[0]  # computed where it is used
            env[name] = (x, a)
            continue
        elif op == "normalise":
            map_, packed, gamma, beta = x
            if a.get("frozen"):
                view = [1, -1] + [1] * (map_.dim() - 2)
                mean, var = (v.view(view) for v in packed[0])
            elif a.get("batch"):
                dims = [0] + axes
                mean, var = map_.mean(dims, keepdim=True), map_.var(dims, unbiased=False, keepdim=True)
            else:
                groups = int(a["groups"])
                g = map_.reshape(map_.shape[0], groups, -1)
                mean, var = g.mean(-1), g.var(-1, unbiased=False)
                each = map_.shape[1] // groups
                view = [map_.shape[0], -1] + [1] * (map_.dim() - 2)
                mean, var = (v.repeat_interleave(each, 1).view(view) for v in (mean, var))
            y = normalise(map_, a, mean, var, gamma, beta)
        elif op == "linear":
            y = F.linear(x[0], x[1], x[2] if len(x) > 2 else None)
        elif op == "cross_entropy":
            labels = x[1].squeeze(1).round().long()
            y = F.cross_entropy(x[0], labels).reshape(1)
        elif op == "bce":
            y = F.binary_cross_entropy_with_logits(x[0], x[1]).reshape(1)
        elif op == "mse":
            y = F.mse_loss(x[0], x[1]).reshape(1)
        elif op == "dice_sums":
            p, t = x
            y = torch.stack([(p * t).sum(axes), p.sum(axes), t.sum(axes)], -1)
        elif op == "dice_loss":
            s = float(a["smooth"])
            inter, p, t = x[0].unbind(-1)
            y = (1 - (2 * inter + s) / (p + t + s)).mean().reshape(1)
        else:
            sys.exit(f"{name}: no PyTorch counterpart of {op} here")
        env[name] = y
    return env


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("tape")
    args.add_argument("--sstep", default="target/release/sstep")
    args.add_argument("--budget", default="1GiB")
    args.add_argument("--host", default="1GiB")
    args.add_argument("--strategy", default="optimal")
    args.add_argument("--seed", type=int, default=0)
    args.add_argument("--tolerance", type=float)
    args = args.parse_args()

    tape = Tape(open(args.tape).read())
    rng = np.random.default_rng(args.seed)
    np_type = np.float32 if tape.dtype == torch.float32 else np.float64
    tensors = {}
    # How a leaf is used says what values make sense.
    labels = {i[1] for _, op, i, _, _ in tape.nodes if op == "cross_entropy"}
    targets = {i[1] for _, op, i, _, _ in tape.nodes if op in ("bce", "dice_sums")}
    variances = {i[1] for _, op, i, _, _ in tape.nodes if op == "pack_moments"}
    for name, op, _, shape, _ in tape.nodes:
        if op not in ("input", "param"):
            continue
        if name in labels:
            value = rng.integers(0, 2, shape)
        elif name in targets:
            value = rng.random(shape)
        elif name in variances:
            value = rng.random(shape) + 0.5
        else:
            fan = max(1, int(np.prod(shape[1:])))
            value = rng.standard_normal(shape) / (np.sqrt(fan) if op == "param" else 1)
        tensors[name] = value.astype(np_type)

    values = {k: torch.from_numpy(v.copy()) for k, v in tensors.items()}
    wanted = []
    for name, op, _, _, a in tape.nodes:
        if (op == "param" and not a.get("frozen")) or (op == "input" and a.get("grad")):
            values[name].requires_grad_(True)
            wanted.append(name)
    env = evaluate(tape, values)
    loss = env[tape.outputs[0]]
    grads = torch.autograd.grad(loss.sum(), [values[n] for n in wanted], allow_unused=True)
    expected = {"loss": loss.detach().numpy()}
    expected |= {f"grad/{n}": g.numpy() for n, g in zip(wanted, grads) if g is not None}

    with tempfile.TemporaryDirectory() as folder:
        given, got = os.path.join(folder, "in.safetensors"), os.path.join(folder, "out.safetensors")
        save_file(tensors, given)
        run = [args.sstep, "grad", args.tape, "--tensors", given, "--out", got, "--budget", args.budget,
               "--host", args.host, "--strategy", args.strategy]
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
        found = load_file(got)

    tolerance = args.tolerance or (1e-4 if np_type == np.float32 else 1e-10)
    worst = 0.0
    floor = 1e-3 * max(float(np.abs(w).max()) for w in expected.values())
    for name, want in expected.items():
        have = found[name].reshape(want.shape)
        error = float(np.abs(have - want).max() / max(float(np.abs(want).max()), floor, 1e-30))
        worst = max(worst, error)
        print(f"{error:9.2e}  {name}  {list(want.shape)}")
    verdict = "agrees" if worst <= tolerance else "DIFFERS"
    print(f"{verdict}: largest relative difference {worst:.2e}, tolerance {tolerance:.0e}")
    sys.exit(0 if worst <= tolerance else 1)


if __name__ == "__main__":
    main()
