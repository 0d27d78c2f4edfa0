"""Times one window on `mdm bench` and on the runtimes a user might choose instead, in one run.

usage: python benches/peers/peers.py [--mdm target/release/mdm] [--widths 32,64,192] [--batches 1,4] [--precisions f32,bf16]
                                     [--runs 3] [--rounds 3] [--threads N]

The work is the same for all: decoder blocks 8..12 of the paper's layout for one or several 256 x 256 RGB windows on the CPU,
random weights. Peers: PyTorch eager (channels first and channels last) and ONNX Runtime in f32, OpenVINO in f32 and with its
bf16 hint. The time to the first result starts with the model in memory (PyTorch), in an ONNX file (the others) or in memory
(mdm), and includes whatever is compiled or packed.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import tempfile
import time

import torch

import unet

BLOCKS = (8, 12)
WINDOW = 256


class Features(torch.nn.Module):
    """The network up to the last block that is wanted, as a function of image and timestep."""

    def __init__(self, width):
        super().__init__()
        self.net = unet.Unet(**{**unet.PAPER, "model_channels": width, "head_channels": min(64, width)})

    def forward(self, x, t):
        return tuple(self.net(x, t, BLOCKS[1])[BLOCKS[0] :])


class Peer:
    """Something that computes the features; `start` makes it ready and returns the function that runs once."""

    def __init__(self, name, precision, start):
        began = time.perf_counter()
        self.run = start()
        self.run()
        self.name, self.precision = name, precision
        self.first = time.perf_counter() - began
        self.seconds = []

    def measure(self, runs):
        for _ in range(runs):
            began = time.perf_counter()
            self.run()
            self.seconds.append(time.perf_counter() - began)


class Ours:
    """`mdm bench` in a process of its own."""

    name = "mdm"

    def __init__(self, binary, precision, width, batch, threads):
        self.command = [binary, "bench", "--width", width, "--window", WINDOW, "--batch", batch, "--device", "cpu"]
        self.command += ["--threads", threads, "--blocks", f"{BLOCKS[0]}..{BLOCKS[1]}", "--json"]
        self.command += ["--precision", precision]
        self.precision, self.seconds, self.first, self.memory = precision, [], math.inf, 0

    def measure(self, runs):
        command = [str(word) for word in [*self.command, "--runs", runs]]
        result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        self.precision = result["device"]["precision"]
        self.seconds.append(result["median_ms"] / 1e3)
        # Making random weights is not part of the work.
        first = result["open_ms"] + result["prepare_ms"] - result["random_weights_ms"] + result["first_run_ms"]
        self.first, self.memory = min(self.first, first / 1e3), result["peak_memory_mb"]


def peers(width, batch, threads, folder, precisions):
    """All that run here, ready."""
    torch.manual_seed(0)
    features = Features(width).eval()
    x, t = torch.rand(batch, 3, WINDOW, WINDOW) * 2 - 1, torch.full((batch,), 50.0)
    path = os.path.join(folder, "unet.onnx")
    torch.onnx.export(features, (x, t), path, dynamo=False, opset_version=17, input_names=["x", "t"])
    feed = {"x": x.numpy(), "t": t.numpy()}

    def pytorch(memory_format):
        net, image = features.to(memory_format=memory_format), x.to(memory_format=memory_format)
        return lambda: net(image, t)

    def onnxruntime():
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, feed)

    def openvino(precision):
        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        return lambda: request.infer(feed)

    yield Peer("ONNX Runtime", "f32", onnxruntime)
    for precision in precisions:
        yield Peer("OpenVINO", precision, lambda: openvino(precision))
    yield Peer("PyTorch", "f32", lambda: pytorch(torch.contiguous_format))
    # Weights are kept in one memory format at a time; this one is measured last.
    yield Peer("PyTorch, channels last", "f32", lambda: pytorch(torch.channels_last))


def compare(arguments, width, batch, folder):
    """Rounds in turns, so that whatever else the machine does meets all."""
    ours = [
        Ours(arguments.mdm, precision, width, batch, arguments.threads) for precision in arguments.precisions
    ]
    others = []
    with torch.no_grad():
        for peer in peers(width, batch, arguments.threads, folder, arguments.precisions):
            if peer.name.startswith("PyTorch"):
                peer.measure(arguments.runs * arguments.rounds)
            others.append(peer)
        for _ in range(arguments.rounds):
            for one in ours + others:
                if not one.name.startswith("PyTorch"):
                    one.measure(arguments.runs)
    print(f"\nwidth {width}, batch {batch}: peak memory of mdm {', '.join(f'{own.memory:.0f} MB ({own.precision})' for own in ours)}")
    print(f"  {'':30s}  median   least   first result", *[f"  mdm {own.precision} / this" for own in ours])
    for one in sorted(ours + others, key=lambda one: statistics.median(one.seconds)):
        median = statistics.median(one.seconds)
        ratios = [f"{statistics.median(own.seconds) / median:16.2f}" for own in ours]
        label = f"{one.name} ({one.precision})"
        print(f"  {label:30s} {median:7.3f} {min(one.seconds):7.3f} s {one.first:7.2f} s     ", *ratios, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mdm", default="target/release/mdm")
    parser.add_argument("--widths", default="32,64,192")
    parser.add_argument("--batches", default="1,4")
    parser.add_argument("--precisions", default="f32,bf16", type=lambda words: words.split(","))
    parser.add_argument("--runs", type=int, default=3, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads; {arguments.rounds} rounds of {arguments.runs} runs each; load {os.getloadavg()[0]:.1f}")
    for width in map(int, arguments.widths.split(",")):
        for batch in map(int, arguments.batches.split(",")):
            with tempfile.TemporaryDirectory() as folder:
                compare(arguments, width, batch, folder)


if __name__ == "__main__":
    main()
