"""Times the same windows on `mdm bench` and on PyTorch CUDA, and prints one table. `gpu.sh` builds mdm before.

The work is decoder blocks 8..12 of the paper's layout for batches of RGB windows, with the random weights of `mdm bench`,
which are made here once more. Features stay on the device for both; mdm's time includes the upload of the window, PyTorch's
does not. PyTorch runs eager in inference mode with cuDNN's autotuner, TF32 off, channels first and channels last; the
faster one counts. Errors are relative L2 errors of the worst block of one window against PyTorch in f64.

Exit code: 0 if all was measured, 1 if something was missing.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

BLOCKS = (8, 12)
LIMITS = {"f32": 1.0, "f16": 1.5}
TIMESTEP = 50.0


class Missing(Exception):
    """Why something could not be measured."""


def splitmix(seed, count, np):
    """The generator of `mdm bench`: `count` numbers in [0, 1) as f32."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)


def between(seed, count, reach, np):
    return -reach + (reach + reach) * splitmix(seed, count, np)


def set_weights(net, np, torch):
    """Gives all parameters the values that `mdm bench` gives them."""
    for name, parameter in net.named_parameters():
        seed = 0
        for byte in name.encode():
            seed = (seed * 0x100000001B3 % 2**64) ^ byte
        fan_in = int(np.prod(parameter.shape[1:]))
        reach = np.float32(0.1) if parameter.dim() == 1 else np.float32(1) / np.sqrt(np.float32(fan_in))
        values = between(seed, parameter.numel(), reach, np).reshape(tuple(parameter.shape))
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values))


def windows(batch, side, np):
    """The windows of `mdm bench`, channels first."""
    values = between(1, batch * side * side * 3, np.float32(1), np)
    return values.reshape(batch, side, side, 3).transpose(0, 3, 1, 2).copy()


class Mdm:
    """`mdm bench` on one device."""

    def __init__(self, arguments, cache):
        self.arguments, self.cache = arguments, cache

    def bench(self, precision, batch, features=None):
        """The report of one run; each precision has a cache of compiled shaders of its own."""
        a = self.arguments
        command = [a.mdm, "bench", "--device", a.mdm_device, "--precision", precision, "--width", str(a.width)]
        command += ["--window", str(a.window), "--batch", str(batch), "--blocks", f"{BLOCKS[0]}..{BLOCKS[1]}"]
        command += ["--runs", str(a.runs), "--json"]
        if features:
            command += ["--features", features]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=self.environment(precision))
        except OSError as error:
            raise Missing(f"{a.mdm} cannot be started: {error}") from error
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "XDG_RUNTIME_DIR" not in line]
            raise Missing(f"mdm bench: {' '.join(said[-3:]).removeprefix('error: ') or done.returncode}")
        return json.loads(done.stdout)


    def environment(self, precision):
        return {**os.environ, "MDM_CACHE": os.path.join(self.cache, precision)}


class Torch:
    """PyTorch on one device; nothing is made before it is needed."""

    def __init__(self, arguments):
        try:
            import numpy
            import torch
        except ImportError as error:
            raise Missing(
                f"{sys.executable} lacks {error.name}: name a Python that has PyTorch and numpy in PYTHON, "
                "or let `bash benches/peers/gpu.sh --install` install them"
            ) from error
        self.np, self.torch, self.arguments = numpy, torch, arguments
        self.device = arguments.torch_device
        if self.device == "cuda" and not torch.cuda.is_available():
            raise Missing("PyTorch finds no CUDA device (for a trial of this script: --torch-device cpu)")
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        import unet

        settings = {"model_channels": arguments.width, "head_channels": min(64, arguments.width)}
        net = unet.Unet(**{**unet.PAPER, **settings}).eval()
        del net.output_blocks[BLOCKS[1] + 1 :], net.out
        set_weights(net, numpy, torch)
        self.net = net.to(self.device)

    def name(self):
        version = f"PyTorch {self.torch.__version__}"
        if self.device != "cuda":
            return f"{version} on {self.device}"
        return f"{version}, cuDNN {self.torch.backends.cudnn.version()}, on {self.torch.cuda.get_device_name()}"

    def use(self, dtype, layout):
        """Brings the network to a type and a layout. Types have to be used from the widest on: weights are f32 at first,
        and what f16 rounds off is lost."""
        self.net = self.net.to(dtype=dtype, memory_format=layout)

    def input(self, batch, dtype, layout):
        x = self.torch.from_numpy(windows(batch, self.arguments.window, self.np))
        x = x.to(device=self.device, dtype=dtype, memory_format=layout)
        return x, self.torch.full((batch,), TIMESTEP, device=self.device)

    def features(self, x, t):
        with self.torch.inference_mode():
            return self.net(x, t, BLOCKS[1])[BLOCKS[0] :]

    def wait(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def seconds(self, batch, dtype):
        """The median of the faster layout, and which one that is."""
        found = {}
        layouts = {"first": self.torch.contiguous_format, "last": self.torch.channels_last}
        for name, layout in layouts.items():
            self.use(dtype, layout)
            x, t = self.input(batch, dtype, layout)
            began, runs = time.perf_counter(), 0
            while runs < 3 or (time.perf_counter() - began < self.arguments.warm_up and runs < 100):
                self.features(x, t)
                self.wait()
                runs += 1
            times = []
            for _ in range(self.arguments.runs):
                start = time.perf_counter()
                self.features(x, t)
                self.wait()
                times.append(time.perf_counter() - start)
            found[name] = statistics.median(times)
        best = min(found, key=found.get)
        return found[best], f"{best} ({', '.join(f'{name} {1e3 * s:.2f}' for name, s in found.items())})"

    def one_window(self, dtype):
        """The features of one window, channels last, in f64 on the host."""
        self.use(dtype, self.torch.contiguous_format)
        x, t = self.input(1, dtype, self.torch.contiguous_format)
        blocks = self.features(x, t)
        return [block.permute(0, 2, 3, 1).double().cpu().numpy().ravel() for block in blocks]


def worst_error(blocks, exact, np):
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(blocks, exact))


def read_features(path, like, np):
    values = np.fromfile(path, dtype="<f4").astype(np.float64)
    ends = np.cumsum([block.size for block in like])
    if values.size != ends[-1]:
        raise Missing(f"mdm wrote {values.size} features, PyTorch {ends[-1]}")
    return np.split(values, ends[:-1])


def table(rows):
    titles = ["type", "batch", "mdm ms", "windows/s", "PyTorch ms", "mdm/PyTorch", "limit", "mdm error", "PyTorch error"]
    cells = [titles + ["PyTorch's layout: channels"]] + rows
    widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
    for row in cells:
        print("  ".join([cell.rjust(width) for cell, width in zip(row, widths)] + row[len(titles) :]).rstrip())


def number(value, form):
    return "-" if value is None else format(value, form)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mdm", default="target/release/mdm", help="the command to measure")
    parser.add_argument("--mdm-device", default="gpu", help="what `mdm bench --device` gets")
    parser.add_argument("--torch-device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--batches", default="1,8")
    parser.add_argument("--types", default="f32,f16")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--warm-up", type=float, default=0.5, help="seconds at least, a layout of PyTorch's")
    parser.add_argument("--no-errors", action="store_true", help="leave out the comparison of results")
    arguments = parser.parse_args()
    types = [kind for kind in LIMITS if kind in arguments.types.split(",")]
    batches = [int(batch) for batch in arguments.batches.split(",")]
    began = time.perf_counter()
    problems, reports, times, errors = {}, {}, {}, {}

    def note(what, reason):
        problems.setdefault(str(reason), []).append(what)

    with tempfile.TemporaryDirectory() as folder:
        mdm = Mdm(arguments, os.path.join(folder, "cache"))
        for kind in types:
            for batch in batches:
                file = None if arguments.no_errors or batch != 1 else os.path.join(folder, kind)
                try:
                    reports[kind, batch] = mdm.bench(kind, batch, file)
                except Missing as reason:
                    note(f"{kind}, batch {batch}", reason)
        try:
            # A second start finds the compiled shaders of the first.
            again = {kind: mdm.bench(kind, batches[0]) for kind in types if (kind, batches[0]) in reports}
        except Missing as reason:
            again = {}
            note("second start", reason)
        name = None
        try:
            torch = Torch(arguments)
            name = torch.name()
            dtypes = {"f32": torch.torch.float32, "f16": torch.torch.float16}
            if not arguments.no_errors:
                exact = torch.one_window(torch.torch.float64)
            for kind in types:
                try:
                    if not arguments.no_errors:
                        errors["PyTorch", kind] = worst_error(torch.one_window(dtypes[kind]), exact, torch.np)
                        file = os.path.join(folder, kind)
                        if os.path.exists(file):
                            own = read_features(file, exact, torch.np)
                            errors["mdm", kind] = worst_error(own, exact, torch.np)
                    for batch in batches:
                        times[kind, batch] = torch.seconds(batch, dtypes[kind])
                except (Missing, RuntimeError) as reason:
                    note(f"PyTorch, {kind}", reason)
        except (Missing, RuntimeError) as reason:
            note("PyTorch", reason)

    rows = []
    for kind in types:
        for batch in batches:
            report, (seconds, layout) = reports.get((kind, batch)), times.get((kind, batch), (None, ""))
            own = report and report["median_ms"]
            ratio = own / (1e3 * seconds) if own and seconds else None
            first = batch == batches[0]
            rows.append(
                [
                    kind,
                    str(batch),
                    number(own, ".2f"),
                    number(report and report["windows_per_second"], ".1f"),
                    number(seconds and 1e3 * seconds, ".2f"),
                    number(ratio, ".2f") + ("" if ratio is None or ratio <= LIMITS[kind] else " (!)"),
                    f"{LIMITS[kind]:.1f}",
                    number(errors.get(("mdm", kind)) if first else None, ".1e"),
                    number(errors.get(("PyTorch", kind)) if first else None, ".1e"),
                    layout,
                ]
            )
    print(f"\nwidth {arguments.width}, window {arguments.window}, blocks {BLOCKS[0]}..{BLOCKS[1]}, medians of {arguments.runs} runs")
    for report in list(reports.values())[:1]:
        device = report["device"]
        print(f"mdm on {device['name']} ({device['kind']}, {device['backend']}, {device['driver']})")
    if name:
        print(name)
    print()
    table(rows)
    print()
    for (kind, batch), report in reports.items():
        line = f"{kind}, batch {batch}: device memory {report['device_memory_mb'] or 0:.0f} MB"
        line += f", of it activations {report['arena_mb']:.0f}"
        if ceilings := report["ceilings"]:
            line += f"; {report['gflop_per_second']:.0f} GFLOP/s of direct products, ceilings"
            line += f" {ceilings['product_gflop_per_second']:.0f} GFLOP/s, {ceilings['copy_gb_per_second']:.0f} GB/s"
        print(line)

    def start(report):
        own = report["prepare_ms"] - report["random_weights_ms"]
        parts = [report["open_ms"], own, report["first_run_ms"]]
        words = f"{sum(parts):.0f} ms (open {parts[0]:.0f}, prepare {parts[1]:.0f}, first run {parts[2]:.0f})"
        return f"{words}, cache {report['pipeline_cache'] or 'none'}"

    for kind, report in again.items():
        print(f"{kind}: first result after {start(reports[kind, batches[0]])}; again: {start(report)}")
    print(f"all in {time.perf_counter() - began:.0f} s")
    for reason, what in problems.items():
        print(f"not measured ({'; '.join(what)}): {reason}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
