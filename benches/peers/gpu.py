"""Times the same windows on `mdm bench` and on PyTorch CUDA, row by row. `gpu.sh` builds mdm before.

The work is decoder blocks 8..12 of the paper's layout for batches of RGB windows, with the random weights of `mdm bench`,
which are made here once more. Features stay on the device for both; mdm's time includes the upload of the windows, PyTorch's
does not. PyTorch runs in inference mode with cuDNN's autotuner, TF32 off, channels last: eager, eager in a CUDA graph (no
time between kernels), and compiled by `torch.compile` with CUDA graphs. Errors are relative L2 errors of the worst block of
one window against PyTorch in f64.

Each row is printed, and kept in the file of --json, as soon as it is known, what tells most first: whoever stops the script
loses what was not measured yet and nothing else. After --seconds nothing new is begun.

Exit code: 0 if all was measured, 1 if something was missing.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

BLOCKS = (8, 12)
LIMITS = {"f16": 1.5, "f32": 1.0}
TIMESTEP = 50.0
WAYS = ["mdm", "eager", "graph", "compiled"]


class Missing(Exception):
    """Why something could not be measured."""


class Rows:
    """What was measured so far."""

    def __init__(self, arguments):
        self.arguments, self.began = arguments, time.monotonic()
        self.file = arguments.json
        self.found = {"width": arguments.width, "window": arguments.window, "blocks": BLOCKS, "rows": [], "notes": []}
        self.missing = False

    def spent(self):
        return time.monotonic() - self.began

    def left(self):
        return self.arguments.seconds - self.spent()

    def say(self, text):
        print(f"{self.spent():6.1f} s  {text}", flush=True)

    def keep(self):
        if self.file:
            with open(self.file + ".part", "w") as out:
                json.dump(self.found, out, indent=1)
            os.replace(self.file + ".part", self.file)

    def note(self, text, missing=False):
        self.missing |= missing
        self.found["notes"].append(text)
        self.say(("not measured: " if missing else "") + text)
        self.keep()

    def ms(self, kind, batch, way):
        return next((row["ms"] for row in self.found["rows"] if (row["type"], row["batch"], row["way"]) == (kind, batch, way)), None)

    def peer_ms(self, kind, batch):
        """PyTorch's best so far."""
        return min(filter(None, (self.ms(kind, batch, way) for way in WAYS[1:])), default=None)

    def ratio(self, kind, batch):
        own, peer = self.ms(kind, batch, "mdm"), self.peer_ms(kind, batch)
        return own / peer if own and peer else None

    def add(self, kind, batch, way, ms, gflop=None, more=""):
        row = {"type": kind, "batch": batch, "way": way, "ms": ms, "ms_per_window": ms / batch}
        text = f"{kind}  batch {batch:2}  {way:8} {ms:9.2f} ms  {ms / batch:8.3f} ms a window  {1e3 * batch / ms:8.1f} windows/s"
        if gflop:
            row["tflop_per_second"] = gflop / ms
            text += f"  {gflop / ms:6.1f} TFLOP/s"
        self.found["rows"].append(row)
        ratio = self.ratio(kind, batch)
        if ratio:
            row["mdm_over_best_peer"] = ratio
            text += f"  mdm/PyTorch {ratio:.2f} (limit {LIMITS[kind]:.1f})"
        self.say(text + more)
        self.keep()


class Mdm:
    """`mdm bench` on one device."""

    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder
        self.process = None

    def bench(self, kind, batches, runs, features=None):
        """Yields the report of each batch as it comes; each type has a cache of compiled shaders of its own."""
        a = self.arguments
        command = [a.mdm, "bench", "--device", a.mdm_device, "--precision", kind, "--width", str(a.width)]
        command += ["--window", str(a.window), "--batch", ",".join(map(str, batches)), "--blocks", f"{BLOCKS[0]}..{BLOCKS[1]}"]
        command += ["--runs", str(runs), "--no-ceilings", "--json"]
        if features:
            command += ["--features", features]
        cache = os.path.join(self.folder, f"cache-{kind}")
        with tempfile.TemporaryFile("w+", dir=self.folder) as errors:
            try:
                process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, "MDM_CACHE": cache})
            except OSError as error:
                raise Missing(f"{a.mdm} cannot be started: {error}") from error
            self.process = process
            lines = []
            for line in process.stdout:
                # A report begins and ends at the first column, and what makes an array of several is between.
                if lines or line.startswith("{"):
                    lines.append(line)
                if line.startswith("}"):
                    yield json.loads("".join(lines))
                    lines = []
            code = process.wait()
            self.process = None
            if code:
                errors.seek(0)
                said = [line.strip() for line in errors if "XDG_RUNTIME_DIR" not in line]
                raise Missing(f"mdm bench: {' '.join(said[-3:]).removeprefix('error: ') or code}")

    def stop(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


def signed(value):
    """The 64-bit number with these bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


def shifted(z, bits):
    """A logical shift to the right."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


class Torch:
    """PyTorch on one device. Importing it takes seconds, so that happens beside the first measurements of mdm."""

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
        self.on_gpu = self.device == "cuda"
        self.layout = torch.channels_last
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        self.dtypes = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16}
        self.nets = {}

    def between(self, seed, count, reach):
        """Numbers in [-reach, reach) by the generator of `mdm bench`, a splitmix, as f32 on the device."""
        torch = self.torch
        z = torch.arange(1, count + 1, dtype=torch.int64, device=self.device) * signed(0x9E3779B97F4A7C15) + signed(seed)
        z = (z ^ shifted(z, 30)) * signed(0xBF58476D1CE4E5B9)
        z = (z ^ shifted(z, 27)) * signed(0x94D049BB133111EB)
        z = shifted(z ^ shifted(z, 31), 40)
        return (z.to(torch.float32) / (1 << 24)) * float(reach + reach) - float(reach)

    def net(self, kind):
        """The network in one type, with the weights of `mdm bench`."""
        if kind in self.nets:
            return self.nets[kind]
        torch, np = self.torch, self.np
        if kind != "f32":
            import copy

            made = copy.deepcopy(self.net("f32")).to(dtype=self.dtypes[kind])
        else:
            import unet

            a = self.arguments
            with torch.device("meta"):
                made = unet.Unet(**{**unet.PAPER, "model_channels": a.width, "head_channels": min(64, a.width)})
            del made.output_blocks[BLOCKS[1] + 1 :], made.out
            made = made.to_empty(device=self.device).eval().requires_grad_(False)
            for name, parameter in made.named_parameters():
                seed = 0
                for byte in name.encode():
                    seed = (seed * 0x100000001B3 % 2**64) ^ byte
                fan_in = int(np.prod(parameter.shape[1:]))
                reach = np.float32(0.1) if parameter.dim() == 1 else np.float32(1) / np.sqrt(np.float32(fan_in))
                parameter.copy_(self.between(seed, parameter.numel(), reach).view(parameter.shape))
            made = made.to(memory_format=self.layout)
        self.nets[kind] = made
        return made

    def input(self, kind, batch):
        """The windows of `mdm bench`."""
        side = self.arguments.window
        x = self.between(1, batch * side * side * 3, self.np.float32(1)).view(batch, side, side, 3).permute(0, 3, 1, 2)
        x = x.to(dtype=self.dtypes[kind]).contiguous(memory_format=self.layout)
        return x, self.torch.full((batch,), TIMESTEP, device=self.device)

    def features(self, net, x, t):
        return net(x, t, BLOCKS[1])[BLOCKS[0] :]

    def wait(self):
        if self.on_gpu:
            self.torch.cuda.synchronize()

    def ms(self, run):
        """The median of runs after at least three that warm up and as many as fill --warm-up seconds."""
        began, runs = time.perf_counter(), 0
        while runs < 3 or (time.perf_counter() - began < self.arguments.warm_up and runs < 100):
            run()
            self.wait()
            runs += 1
        times = []
        for _ in range(self.arguments.runs):
            start = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - start)
        return 1e3 * statistics.median(times)

    def eager(self, kind, batch):
        net, (x, t) = self.net(kind), self.input(kind, batch)
        with self.torch.inference_mode():
            return self.ms(lambda: self.features(net, x, t))

    def graph(self, kind, batch):
        """The kernels of an eager run, replayed; follows an eager run, which chose them."""
        torch = self.torch
        if not self.on_gpu:
            raise Missing("CUDA graphs need CUDA")
        net, (x, t) = self.net(kind), self.input(kind, batch)
        with torch.inference_mode():
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self.features(net, x, t)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.features(net, x, t)
            return self.ms(graph.replay)

    def compiled(self, kind, batch):
        torch = self.torch
        torch._dynamo.reset()
        net, (x, t) = self.net(kind), self.input(kind, batch)
        mode = {"mode": "reduce-overhead"} if self.on_gpu else {}
        run = torch.compile(lambda x, t: net(x, t, BLOCKS[1])[BLOCKS[0] :], dynamic=False, **mode)
        with torch.inference_mode():
            return self.ms(lambda: run(x, t))

    def one_window(self, kind):
        """The features of one window, channels last, in f64 on the host."""
        # Choosing among kernels takes longer than the run.
        self.torch.backends.cudnn.benchmark = False
        x, t = self.input(kind, 1)
        with self.torch.inference_mode():
            blocks = self.features(self.net(kind), x, t)
        self.torch.backends.cudnn.benchmark = True
        return [block.permute(0, 2, 3, 1).double().cpu().numpy().ravel() for block in blocks]

    def name(self):
        version = f"PyTorch {self.torch.__version__}"
        if not self.on_gpu:
            return f"{version} on {self.device}"
        return f"{version}, cuDNN {self.torch.backends.cudnn.version()}, on {self.torch.cuda.get_device_name()}"


class Later:
    """Something made in a thread."""

    def __init__(self, make):
        self.value = self.error = None
        self.thread = threading.Thread(target=self.run, args=(make,), daemon=True)
        self.thread.start()

    def run(self, make):
        try:
            self.value = make()
        except Exception as error:  # whatever it is, it is the caller's to say
            self.error = error

    def get(self):
        self.thread.join()
        if self.error:
            raise self.error
        return self.value


@contextlib.contextmanager
def at_most(seconds):
    """Gives up after so many seconds."""

    def give_up(*_):
        raise Missing(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def worst_error(blocks, exact, np):
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(blocks, exact))


def read_features(path, like, np):
    values = np.fromfile(path, dtype="<f4").astype(np.float64)
    ends = np.cumsum([block.size for block in like])
    if values.size != ends[-1]:
        raise Missing(f"mdm wrote {values.size} features, PyTorch {ends[-1]}")
    return np.split(values, ends[:-1])


def start(report):
    own = report["prepare_ms"] - report["random_weights_ms"]
    parts = [report["open_ms"], own, report["first_run_ms"]]
    words = f"{sum(parts):.0f} ms (open {parts[0]:.0f}, prepare {parts[1]:.0f}, first run {parts[2]:.0f})"
    return f"{words}, cache {report['pipeline_cache'] or 'none'}"


class Comparison:
    def __init__(self, arguments, folder):
        self.arguments, self.folder = arguments, folder
        self.rows, self.mdm = Rows(arguments), Mdm(arguments, folder)
        self.batches = sorted({int(batch) for batch in arguments.batches.split(",")})
        self.torch = None
        self.gflop = {}
        self.exact = None

    def attempt(self, what, work, limit=None):
        """Does one thing, in so many seconds; what goes wrong with it stops nothing else."""
        if self.rows.left() < 2:
            self.rows.note(f"{what}: no time left", missing=True)
            return
        try:
            with at_most(min(self.rows.left(), limit or self.rows.left())):
                work()
        except Exception as error:  # PyTorch raises all kinds
            reason = str(error).strip().splitlines() or [type(error).__name__]
            self.rows.note(f"{what}: {reason[0][:300]}", missing=True)
            if self.torch and self.torch.on_gpu:
                self.torch.torch.cuda.empty_cache()
        finally:
            self.mdm.stop()

    def features_file(self, kind):
        """Where mdm's features of one window are, if they are to be compared."""
        wanted = not self.arguments.no_errors and self.batches[0] == 1
        return os.path.join(self.folder, f"features-{kind}") if wanted else None

    def own(self, kind):
        for report in self.mdm.bench(kind, self.batches, self.arguments.runs, self.features_file(kind)):
            batch, device = report["batch"], report["device"]
            if batch == self.batches[0]:
                self.rows.note(f"mdm on {device['name']} ({device['kind']}, {device['backend']}, {device['driver']}, {device['precision']})")
            self.gflop[batch] = report["gflop"]
            self.rows.add(kind, batch, "mdm", report["median_ms"], report["gflop"])
            memory = f"device memory {report['device_memory_mb'] or 0:.0f} MB, of it activations {report['arena_mb']:.0f}"
            self.rows.note(f"mdm, {kind}, batch {batch}: {memory}; first result after {start(report)}")

    def again(self, kind):
        """A second start finds the compiled shaders of the first."""
        for report in self.mdm.bench(kind, self.batches[:1], 1):
            self.rows.note(f"mdm, {kind}: second start, first result after {start(report)}")

    def peer(self, way, kind, batch):
        def work():
            ms = getattr(self.torch, way)(kind, batch)
            self.rows.add(kind, batch, way, ms, self.gflop.get(batch))

        limit = self.arguments.compile_seconds if way == "compiled" else None
        self.attempt(f"{kind}, batch {batch}, PyTorch {way}", work, limit)

    def errors(self, kind):
        np = self.torch.np
        if self.exact is None:
            self.exact = self.torch.one_window("f64")
            self.torch.nets.pop("f64")
        found = {"PyTorch": worst_error(self.torch.one_window(kind), self.exact, np)}
        file = self.features_file(kind)
        if file and os.path.exists(file):
            found["mdm"] = worst_error(read_features(file, self.exact, np), self.exact, np)
        self.rows.found.setdefault("errors", {})[kind] = found
        self.rows.note(f"error of {kind}: " + ", ".join(f"{name} {error:.1e}" for name, error in found.items()))

    def open_torch(self, later):
        torch = later.get()
        self.rows.note(torch.name())
        self.torch = torch

    def run(self):
        kinds = [kind for kind in LIMITS if kind in self.arguments.types.split(",")]
        try:
            self.measure(kinds)
        finally:
            self.table(kinds)
        return 1 if self.rows.missing else 0

    def measure(self, kinds):
        a, rows = self.arguments, self.rows
        most = self.batches[-1]
        compiled = [(kind, int(batch)) for kind, batch in (case.split(":") for case in a.compiled.split(",") if case)]
        rows.say(f"width {a.width}, window {a.window}, blocks {BLOCKS[0]}..{BLOCKS[1]}, medians of {a.runs} runs")
        later = Later(lambda: Torch(a))
        for kind in kinds[:1]:
            self.attempt(f"{kind}, mdm", lambda: self.own(kind))
        self.attempt("PyTorch", lambda: self.open_torch(later))
        ready = [kind for kind in kinds if self.torch]
        for index, kind in enumerate(kinds):
            if index:
                self.attempt(f"{kind}, mdm", lambda: self.own(kind))
            if not self.torch:
                continue
            self.peer("eager", kind, most)
            self.peer("graph", kind, most)
            if (kind, most) in compiled and index == 0:
                self.peer("compiled", kind, most)
            for batch in self.batches[:-1]:
                self.peer("eager", kind, batch)
                self.peer("graph", kind, batch)
            if not a.no_errors:
                self.attempt(f"errors of {kind}", lambda: self.errors(kind))
        for kind, batch in compiled:
            if kind in ready and (kind, batch) != (ready[0], most):
                self.peer("compiled", kind, batch)
        if not a.no_starts:
            for kind in kinds:
                self.attempt(f"{kind}, second start of mdm", lambda: self.again(kind))

    def table(self, kinds):
        rows = self.rows
        titles = ["type", "batch", *(f"{way} ms" for way in WAYS), "mdm/PyTorch", "limit", "mdm error", "PyTorch error"]
        cells = [titles]

        def number(value, form):
            return "-" if value is None else format(value, form)

        for kind in kinds:
            errors = rows.found.get("errors", {}).get(kind, {})
            for batch in self.batches:
                ratio = rows.ratio(kind, batch)
                row = [kind, str(batch), *(number(rows.ms(kind, batch, way), ".2f") for way in WAYS)]
                row += [number(ratio, ".2f") + ("" if ratio is None or ratio <= LIMITS[kind] else " (!)"), f"{LIMITS[kind]:.1f}"]
                row += [number(errors.get(name) if batch == self.batches[0] else None, ".1e") for name in ["mdm", "PyTorch"]]
                cells.append(row)
        widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
        print()
        for row in cells:
            print("  ".join(cell.rjust(width) for cell, width in zip(row, widths)))
        print(f"all in {rows.spent():.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mdm", default="target/release/mdm", help="the command to measure")
    parser.add_argument("--mdm-device", default="gpu", help="what `mdm bench --device` gets")
    parser.add_argument("--torch-device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--batches", default="1,8,16")
    parser.add_argument("--types", default="f32,f16")
    parser.add_argument("--compiled", default="f16:16,f16:1,f32:16", help="what to compile as well, in this order")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--warm-up", type=float, default=0.3, help="seconds at least, before PyTorch is timed")
    parser.add_argument("--seconds", type=float, default=600, help="for everything together")
    parser.add_argument("--compile-seconds", type=float, default=45, help="at most, for compiling and timing one case")
    parser.add_argument("--json", help="a file to keep the rows in")
    parser.add_argument("--no-errors", action="store_true", help="leave out the comparison of results")
    parser.add_argument("--no-starts", action="store_true", help="leave out the second starts of mdm")
    arguments = parser.parse_args()
    # Who is told to stop says what is known by then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with tempfile.TemporaryDirectory() as folder:
            code = Comparison(arguments, folder).run()
    except SystemExit as stopped:
        code = stopped.code
    sys.stdout.flush()
    # Threads that still compile or import are not waited for.
    os._exit(code)


if __name__ == "__main__":
    main()
