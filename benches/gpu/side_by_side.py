"""Steps of sstep and of PyTorch on one device, side by side: see run.sh.

Images that PyTorch holds untiled: its seconds and peak, and ours at that peak and at an
eighth and a thirty-second of it. Images that it does not hold: the usual remedies, with
PyTorch's allocator limited to the same memory as ours. Every PyTorch figure comes from a
process of its own (peers.py), ours from `sstep-bench step`. sstep computes in f32;
PyTorch's tf32 and bf16 rows say what those would bring.
"""
import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
GIB = 1 << 30
# Network, size, norm: what fits a large device whole, and what does not.
FITS = [("resnet34", 2048, "frozen"), ("resnet34", 4096, "frozen"), ("unet32", 2048, "group")]
BEYOND = [("resnet34", 16384, "frozen"), ("resnet34", 32768, "frozen"), ("unet32", 8192, "group")]
PARTS = [1, 8, 32]
DTYPES = ["f32", "tf32", "bf16"]


def remedies(net):
    return ["checkpoint", "save_on_cpu"] + (["tile-checkpoint"] if net.startswith("resnet") else [])


class Bench:
    def __init__(self, args):
        self.args, self.lines, self.failures = args, [], 0

    def call(self, command):
        """What a command prints as JSON; nothing in a dry run, which prints the command."""
        if self.args.dry_run:
            print(" ".join(command))
            return []
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=self.args.timeout)
        except subprocess.TimeoutExpired:
            return [{"error": f"more than {self.args.timeout} s"}]
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
            return [{"error": said[:160]}]
        said = done.stdout.strip()
        # sstep-bench prints its table as one array, peers.py an object.
        return json.loads(said) if said.startswith("[") else [json.loads(said.splitlines()[-1])]

    def torch(self, net, size, norm, how, dtype, memory=None):
        command = [self.args.python, os.path.join(HERE, "peers.py"), net, str(size), "--norm", norm, "--how", how,
                   "--dtype", dtype, "--rounds", str(self.args.rounds), "--device", self.args.device]
        answers = self.call(command + (["--memory", str(memory)] if memory else []))
        return answers[-1] if answers else {}

    def ours(self, net, size, norm, caps):
        command = [self.args.bench, "step", net, str(size), "--norm", norm, "--device", self.args.device, "--budget",
                   ",".join(str(cap) for cap in caps), "--host", self.args.host, "--rounds", str(self.args.rounds), "--json"]
        return self.call(command)

    def row(self, net, size, norm, what, answer, of=None, cap=None):
        if not answer:
            return
        size_of = lambda n: f"{n / GIB:.2f}" if n else "-"
        secs = answer.get("secs")
        figures = answer["error"] if secs is None else f"{secs:.3f}"
        ratio = f"{of / secs:.2f}" if of and secs else "-"
        moved = answer.get("to_device", 0) + answer.get("to_host", 0)
        rate = f"{moved / secs / 1e9:.1f}" if moved and secs else "-"
        self.failures += secs is None and what.startswith("sstep")
        self.lines.append(f"| {net} {norm} | {size} | {what} | {size_of(cap)} | {figures} | {ratio} | "
                          f"{size_of(answer.get('peak_bytes') or answer.get('device'))} | {size_of(moved)} | {rate} |")

    def compare(self, nets, beyond):
        for net, size, norm in nets:
            if beyond:
                cap = int(self.args.memory * GIB)
                caps, best = [cap], None
                for how in remedies(net):
                    for dtype in DTYPES:
                        answer = self.torch(net, size, norm, how, dtype, cap)
                        if dtype == "f32" and answer.get("secs"):
                            best = min(best or answer["secs"], answer["secs"])
                        self.row(net, size, norm, f"PyTorch {dtype}, {how}", answer, None, cap)
            else:
                whole = {dtype: self.torch(net, size, norm, "untiled", dtype) for dtype in DTYPES}
                best = whole["f32"].get("secs")
                for dtype, answer in whole.items():
                    self.row(net, size, norm, f"PyTorch {dtype}, untiled", answer, best)
                peak = whole["f32"].get("peak_bytes") or 8 * GIB
                caps = [peak // part for part in PARTS]
            answers = self.ours(net, size, norm, caps)
            for answer in answers:
                self.row(net, size, norm, f"sstep f32, {answer.get('step', '-')}", answer, best)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default="sstep-bench", help="the binary, built with --features cuda")
    parser.add_argument("--python", default=sys.executable, help="one that has PyTorch")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--memory", type=float, default=8, help="GiB of device memory beyond which remedies compete")
    parser.add_argument("--host", default="96GiB", help="host memory of our plans")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=int, default=1800, help="seconds for one command")
    parser.add_argument("--out", help="where to write Markdown; standard output without")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and run none")
    args = parser.parse_args()
    if not args.dry_run and not shutil.which(args.bench):
        sys.exit(f"{args.bench} is not there: copy sstep-bench, or name it by --bench")
    bench = Bench(args)
    bench.lines = [f"# sstep beside PyTorch on {args.device}", "", f"{datetime.date.today()}.", "",
                   "| network | size | what | cap, GiB | step, s | speed of PyTorch f32's best | peak, GiB | moved, GiB | moved, GB/s |",
                   "|---|---|---|---|---|---|---|---|---|"]
    bench.compare(FITS, beyond=False)
    bench.compare(BEYOND, beyond=True)
    if args.dry_run:
        return
    report = "\n".join(bench.lines) + "\n"
    if args.out:
        with open(args.out, "w") as f:
            f.write(report)
    else:
        print(report, end="")
    sys.exit(1 if bench.failures else 0)


if __name__ == "__main__":
    main()
