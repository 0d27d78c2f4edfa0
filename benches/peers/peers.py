"""Times one window on `mdm bench` and on the runtimes a user might choose instead, in one run.

usage: python benches/peers/peers.py [--mdm target/release/mdm] [--widths 32,64,192] [--runs 7] [--threads N]

The work is the same for all: decoder blocks 8..12 of the paper's layout for one 256 x 256 RGB window, f32 on the CPU,
random weights. Peers: PyTorch eager (channels first and channels last), ONNX Runtime, OpenVINO.
"""

import argparse
import json
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


def measure(run, runs):
    """Median seconds; the first call, which may compile or allocate, is not counted."""
    run()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def peers(width, runs, threads):
    """Median seconds by name of the peer."""
    torch.manual_seed(0)
    features = Features(width).eval()
    x, t = torch.rand(1, 3, WINDOW, WINDOW) * 2 - 1, torch.tensor([50.0])
    seconds = {}
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        seconds["PyTorch"] = measure(lambda: features(x, t), runs)
        path = os.path.join(folder, "unet.onnx")
        torch.onnx.export(features, (x, t), path, dynamo=False, opset_version=17, input_names=["x", "t"])
        features = features.to(memory_format=torch.channels_last)
        last = x.to(memory_format=torch.channels_last)
        seconds["PyTorch, channels last"] = measure(lambda: features(last, t), runs)

        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        feed = {"x": x.numpy(), "t": t.numpy()}
        seconds["ONNX Runtime"] = measure(lambda: session.run(None, feed), runs)
        del session

        import openvino

        settings = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }
        request = openvino.Core().compile_model(path, "CPU", settings).create_infer_request()
        seconds["OpenVINO"] = measure(lambda: request.infer(feed), runs)
    return seconds


def ours(binary, width, runs, threads):
    command = [binary, "bench", "--width", width, "--window", WINDOW, "--device", "cpu"]
    command += ["--runs", runs, "--threads", threads, "--blocks", f"{BLOCKS[0]}..{BLOCKS[1]}", "--json"]
    result = json.loads(subprocess.run([str(word) for word in command], check=True, capture_output=True).stdout)
    return result["median_ms"] / 1e3, result["peak_memory_mb"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mdm", default="target/release/mdm")
    parser.add_argument("--widths", default="32,64,192")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{arguments.threads} threads; median of {arguments.runs} runs")
    for width in map(int, arguments.widths.split(",")):
        others = peers(width, arguments.runs, arguments.threads)
        seconds, memory = ours(arguments.mdm, width, arguments.runs, arguments.threads)
        best = min(others, key=others.get)
        print(f"\nwidth {width}: mdm {seconds:.3f} s, peak memory {memory:.0f} MB")
        for name, other in sorted(others.items(), key=lambda item: item[1]):
            mark = "  <- best peer" if name == best else ""
            print(f"  {name:24s} {other:7.3f} s   mdm takes {seconds / other:.2f} of it{mark}", flush=True)


if __name__ == "__main__":
    main()
