"""One step of pre-training (forward, SSIM loss, backward, AdamW, one moving average) on a GPU: this project beside PyTorch.

PyTorch runs eager, channels last, with a fused AdamW; f16 is autocast with a scaled loss, f32 has TF32 off. cuDNN chooses its
algorithms by its own rules, which each row says: to try them all, forward and backward, takes longer than a borrowed GPU may be
there for; --cudnn-benchmark with more --case-seconds does it. Its images are on the device already; this project uploads them
in every step. Each row is printed, and kept in the file of --json, as soon as it is known. After --seconds nothing new is begun.

Exit code: 0 if all was measured, 1 if something was missing.
"""

import argparse
import gc
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time

from gpu import Later, Missing, at_most


def ours(arguments, width, kind):
    """The median seconds of a step, and how many it is of."""
    command = [arguments.program, str(width), str(arguments.size), str(arguments.batch), arguments.mdm_device, kind]
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise Missing(f"{arguments.program} cannot be started: {error}") from error
    try:
        output, errors = process.communicate()
    finally:
        process.kill()
    if process.returncode:
        raise Missing(" ".join(line for line in errors.splitlines() if "XDG_RUNTIME_DIR" not in line)[-300:])
    skipped = len(re.findall("not applied", output))
    return 1e3 * float(re.search(r"best step [0-9.]+ s, median ([0-9.]+) s", output)[1]), f"{skipped} steps skipped" if skipped else ""


class Torch:
    def __init__(self, arguments):
        try:
            import torch
        except ImportError as error:
            raise Missing(f"{sys.executable} lacks {error.name}") from error
        self.torch, self.arguments, self.device = torch, arguments, arguments.torch_device
        if self.device == "cuda" and not torch.cuda.is_available():
            raise Missing("PyTorch finds no CUDA device (for a trial of this script: --torch-device cpu)")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = arguments.cudnn_benchmark

    def name(self):
        version = f"PyTorch {self.torch.__version__}"
        return f"{version} on {self.torch.cuda.get_device_name() if self.device == 'cuda' else self.device}"

    def wait(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def step_ms(self, width, kind):
        import training
        import unet

        torch, a = self.torch, self.arguments
        torch.manual_seed(0)
        with torch.device(self.device):
            net = unet.Unet(width).to(memory_format=torch.channels_last)
            image = torch.rand(a.batch, 3, a.size, a.size).mul(2).sub(1).to(memory_format=torch.channels_last)
            t = torch.full((a.batch,), 500)
        parameters = list(net.parameters())
        optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0, fused=True)
        averages = [p.detach().clone() for p in parameters]
        half = kind == "f16"
        scaler = torch.amp.GradScaler(self.device, enabled=half)

        def step():
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast(self.device, torch.float16, enabled=half):
                answer = net(image, t)[1]
            loss = training.ssim_loss(answer.float(), image)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            with torch.no_grad():
                torch._foreach_lerp_(averages, parameters, 1e-4)

        # A scale of the loss that is too large costs a few steps without an update.
        for _ in range(3 if not half or self.device == "cpu" else 10):
            step()
        self.wait()
        times = []
        for _ in range(a.runs):
            start = time.perf_counter()
            step()
            self.wait()
            times.append(time.perf_counter() - start)
        about = ""
        if self.device == "cuda":
            about = f"memory {torch.cuda.max_memory_allocated() / 1e6:.0f} MB, cudnn.benchmark {'on' if a.cudnn_benchmark else 'off'}"
        return 1e3 * statistics.median(times), about

    def free(self):
        gc.collect()
        if self.device == "cuda":
            self.torch.cuda.empty_cache()
            self.torch.cuda.reset_peak_memory_stats()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default="target/release/examples/step")
    parser.add_argument("--mdm-device", default="gpu")
    parser.add_argument("--torch-device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--width", type=int, nargs="+", default=[64, 192])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--types", default="f16,f32")
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--cudnn-benchmark", action="store_true", help="have cuDNN try every algorithm of every convolution first")
    parser.add_argument("--seconds", type=float, default=300, help="for everything together")
    parser.add_argument("--case-seconds", type=float, default=25, help="at most, for one row")
    parser.add_argument("--json", help="a file to keep the rows in")
    a = parser.parse_args()
    began = time.monotonic()
    found = {"size": a.size, "batch": a.batch, "rows": [], "missing": []}

    def say(text):
        print(f"{time.monotonic() - began:6.1f} s  {text}", flush=True)

    def keep():
        if a.json:
            with open(a.json + ".part", "w") as out:
                json.dump(found, out, indent=1)
            os.replace(a.json + ".part", a.json)

    def attempt(what, work):
        left = a.seconds - (time.monotonic() - began)
        try:
            if left < 2:
                raise Missing("no time left")
            with at_most(min(left, a.case_seconds)):
                return work()
        except Exception as error:  # PyTorch raises all kinds
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            found["missing"].append(f"{what}: {reason}")
            say(f"not measured: {what}: {reason}")
            keep()
            return None

    # Killed by whoever started this, it takes the program under test with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    say(f"{a.size} px, batch {a.batch}, one step, medians")
    later, torch = Later(lambda: Torch(a)), None
    for kind in a.types.split(","):
        for width in a.width:
            times = {}
            for name in ["mdm", "PyTorch"]:
                if name == "PyTorch" and torch is None:
                    torch = attempt("PyTorch", later.get)
                    if torch is None:
                        break
                    say(torch.name())
                what = f"{kind}  width {width:3}  {name:7}"
                work = (lambda: ours(a, width, kind)) if name == "mdm" else (lambda: torch.step_ms(width, kind))
                result = attempt(what, work)
                if name == "PyTorch":
                    torch.free()
                if result is None:
                    continue
                times[name], more = result
                row = {"type": kind, "width": width, "name": name, "ms": times[name], "images_per_second": 1e3 * a.batch / times[name]}
                row["about"] = more
                text = f"{what} {times[name]:9.1f} ms  {row['images_per_second']:8.1f} images/s"
                if len(times) == 2:
                    row["mdm_over_peer"] = times["mdm"] / times["PyTorch"]
                    text += f"  mdm/PyTorch {row['mdm_over_peer']:.2f}"
                found["rows"].append(row)
                say(f"{text}  {more}".rstrip())
                keep()
    say("done")
    sys.stdout.flush()
    # Threads that still import are not waited for.
    os._exit(1 if found["missing"] else 0)


if __name__ == "__main__":
    main()
