"""Holds `sstep` on a device against the untiled run on the CPU: see run.sh.

Needs nothing but Python's own library.
"""
import argparse
import array
import datetime
import json
import math
import os
import platform
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
STRATEGIES = ["optimal", "store-all", "checkpoint", "recompute-all", "offload-all", "paging", "streaming",
              "tile-checkpoint", "remat-ilp", "remat-page-ilp"]
# Largest difference relative to a tensor's largest element (or a thousandth of
# the largest gradient): what rounding may do over layers of these depths.
ALLOWED = {"f32": 1e-4, "f64": 1e-10}
# Bytes to which the driver rounds what it gives, and what it counts.
GRAIN = 32 << 20
CODES = {"f32": ("F32", "f"), "f64": ("F64", "d")}


def save(path, tensors, dtype):
    """Writes safetensors from (shape, values) by name."""
    name, code = CODES[dtype]
    header, body = {}, b""
    for key, (shape, values) in tensors.items():
        data = array.array(code, values).tobytes()
        header[key] = {"dtype": name, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    head = json.dumps(header).encode()
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head + body)


def load(path):
    """Values by name of a safetensors file."""
    with open(path, "rb") as f:
        data = f.read()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + n])
    codes = dict(CODES.values())
    out = {}
    for key, entry in header.items():
        if key != "__metadata__":
            lo, hi = entry["data_offsets"]
            out[key] = array.array(codes[entry["dtype"]], data[8 + n + lo:8 + n + hi])
    return out


def inputs(text, seed):
    """Random values for every input of a tape; what has one channel names one of two classes."""
    draw = random.Random(seed)
    out = {}
    for name, dims in re.findall(r"^(\S+) = input \[([^\]]*)\]", text, re.M):
        shape = [int(d) for d in dims.split(",")]
        n = math.prod(shape)
        if shape[1] == 1:
            out[name] = (shape, [float(draw.randrange(2)) for _ in range(n)])
        else:
            out[name] = (shape, [draw.uniform(-1, 1) for _ in range(n)])
    return out


def worst(got, want):
    """Largest relative difference, and of which tensor."""
    largest = {k: max((abs(v) for v in t), default=0.0) for k, t in want.items()}
    floor = max(1e-3 * max(largest.values()), 1e-30)
    found = (0.0, "-")
    for key, t in want.items():
        if len(got[key]) != len(t):
            return math.inf, key
        for a, b in zip(got[key], t):
            e = abs(a - b) / max(largest[key], floor)
            if not e <= found[0]:
                found = (math.inf if math.isnan(e) else e, key)
    return found


def query(*what):
    """A line of nvidia-smi, or None."""
    if not shutil.which("nvidia-smi"):
        return None
    done = subprocess.run(["nvidia-smi", *what, "--format=csv,noheader,nounits"], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


class Memory:
    """The most memory that the driver says processes of this machine hold, while it is open."""

    def __enter__(self):
        self.most, self.over = 0, threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.over.wait(0.05):
            said = query("--query-compute-apps=used_memory")
            if said:
                self.most = max(self.most, sum(int(n) for n in said.split() if n.isdigit()) << 20)

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sstep", default="sstep", help="the binary")
    parser.add_argument("--tapes", default=os.path.join(HERE, "../../examples/tapes"), help="folder of .tape files")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", help="where to write Markdown; standard output without")
    parser.add_argument("--quick", action="store_true", help="one tape, two strategies")
    args = parser.parse_args()
    tapes = sorted(f for f in os.listdir(args.tapes) if f.endswith(".tape"))
    strategies = STRATEGIES
    if args.quick:
        tapes, strategies = [t for t in tapes if t.startswith("unet")] or tapes[:1], STRATEGIES[:2]
    lines, failures = [], 0

    def grad(tape, tensors, out, *more, before=()):
        command = [*before, args.sstep, "grad", tape, "--tensors", tensors, "--out", out, "--json", *more]
        begin = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True)
        return done, time.monotonic() - begin

    listed = subprocess.run([args.sstep, "info", "--devices"], capture_output=True, text=True)
    if listed.returncode != 0 or (args.device not in listed.stdout and args.device != "auto"):
        print(listed.stdout + listed.stderr, file=sys.stderr)
        sys.exit(f"{args.device} is not there")
    version = subprocess.run([args.sstep, "--version"], capture_output=True, text=True).stdout.strip()
    lines += [f"# {args.device} against the untiled run on the CPU", "",
              f"{datetime.date.today()}, {version}, {platform.platform()}.", "", "```", listed.stdout.strip()]
    lines += [f"driver {query('--query-gpu=driver_version') or '-'}", "```", "",
              "| tape | type | strategy | of untiled | worst difference | tensor | step, s | driver's peak above the cap, of what the program reports beside it, MiB |",
              "|---|---|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as scratch:
        at = lambda name: os.path.join(scratch, name)
        for name in tapes:
            text = open(os.path.join(args.tapes, name)).read()
            for dtype in ["f32", "f64"]:
                with open(at("net.tape"), "w") as f:
                    f.write(re.sub(r"^tape v1 \w+", f"tape v1 {dtype}", text, flags=re.M))
                save(at("in.safetensors"), inputs(text, 1), dtype)
                run = (at("net.tape"), at("in.safetensors"))
                done, _ = grad(*run, at("want.safetensors"), "--reference")
                whole, _ = grad(*run, at("got.safetensors"), "--budget", "1GiB", "--strategy", "store-all")
                if done.returncode or whole.returncode:
                    sys.exit(f"{name}: {done.stderr}{whole.stderr}")
                want = load(at("want.safetensors"))
                untiled = json.loads(whole.stdout)["report"]["peak_bytes"]["measured"]
                for strategy in strategies:
                    for part in [1, 4]:
                        cap = untiled // part
                        with Memory() as memory:
                            done, _ = grad(*run, at("got.safetensors"), "--budget", str(cap), "--host", "16GiB",
                                           "--strategy", strategy, "--device", args.device)
                        row = f"| {name[:-5]} | {dtype} | {strategy} | 1/{part} |"
                        if done.returncode == 3:
                            lines.append(f"{row} no plan | | | |")
                            continue
                        if done.returncode:
                            failures += 1
                            lines.append(f"{row} {done.stderr.strip().splitlines()[-1]} | | | |")
                            continue
                        e, which = worst(load(at("got.safetensors")), want)
                        ok = e <= ALLOWED[dtype]
                        failures += not ok
                        report = json.loads(done.stdout)["report"]
                        secs, beside = report["secs"]["measured"], report["beside_arena_bytes"]
                        above = f"{(memory.most - cap) / 2**20:.0f} of {beside / 2**20:.0f}" if memory.most else "-"
                        if memory.most > cap + beside + GRAIN:
                            failures += 1
                            above += " **too much**"
                        lines.append(f"{row} {e:.1e}{'' if ok else ' **too much**'} | {which} | {secs:.4f} | {above} |")
        sanitizer = shutil.which("compute-sanitizer")
        if sanitizer and args.device != "cpu":
            for tool in ["memcheck", "racecheck", "initcheck"]:
                done, _ = grad(*run, at("got.safetensors"), "--budget", str(untiled // 4), "--host", "16GiB",
                               "--device", args.device, before=(sanitizer, "--tool", tool, "--error-exitcode", "9"))
                failures += done.returncode != 0
                lines.append(f"\ncompute-sanitizer {tool}: {'clean' if done.returncode == 0 else done.stdout[-2000:]}")
        else:
            lines.append("\ncompute-sanitizer: not run, " + ("not there" if not sanitizer else "no GPU"))
    lines.append(f"\n{failures} failures.")
    report = "\n".join(lines) + "\n"
    if args.out:
        with open(args.out, "w") as f:
            f.write(report)
    else:
        print(report, end="")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
