"""One step of pre-training (forward, backward, AdamW, one moving average) on the CPU in f32: this project beside PyTorch.

Rounds alternate between the two, so that whatever else the machine does meets both. Of PyTorch's memory formats the faster
counts.
"""
import argparse
import re
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

import unet


def ssim_loss(answer, target):
    """Mean of clamp(1 - ssim, 0, 1) / 2 under a 5 x 5 Gaussian window of standard deviation 1.5."""
    at = torch.arange(5, dtype=answer.dtype, device=answer.device) - 2
    bell = torch.exp(-at**2 / (2 * 1.5**2))
    bell = bell / bell.sum()
    channels = answer.shape[1]
    window = (bell[:, None] * bell).expand(channels, 1, 5, 5).contiguous()
    blur = lambda image: F.conv2d(image, window, padding=2, groups=channels)
    mean_a, mean_t = blur(answer), blur(target)
    var_a, var_t = blur(answer * answer) - mean_a**2, blur(target * target) - mean_t**2
    covariance = blur(answer * target) - mean_a * mean_t
    c1, c2 = 0.01**2, 0.03**2
    ssim = (2 * mean_a * mean_t + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_t**2 + c1) * (var_a + var_t + c2))
    return ((1 - ssim).clamp(0, 1) / 2).mean()


class Peer:
    def __init__(self, width, size, batch, memory_format):
        torch.manual_seed(0)
        self.net = unet.Unet(width).to(memory_format=memory_format)
        self.image = torch.rand(batch, 3, size, size).mul(2).sub(1).to(memory_format=memory_format)
        self.t = torch.full((batch,), 500)
        self.optimiser = torch.optim.AdamW(self.net.parameters(), lr=1e-4, weight_decay=0.0, fused=True)
        self.ema = [p.detach().clone() for p in self.net.parameters()]

    def step(self):
        start = time.perf_counter()
        self.optimiser.zero_grad(set_to_none=True)
        ssim_loss(self.net(self.image, self.t)[1], self.image).backward()
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, list(self.net.parameters()), 1e-4)
        return time.perf_counter() - start


def ours(program, width, size, batch):
    command = [program, str(width), str(size), str(batch)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(seconds) for seconds in re.findall(r"step ([0-9.]+) s$", output, re.M)][1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", default="target/release/examples/step")
    parser.add_argument("--width", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    formats = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}
    print(f"{a.size} px, batch {a.batch}, {a.threads} threads, PyTorch {torch.__version__}; seconds, least (median)")
    for width in a.width:
        times = {}
        for round in range(a.rounds):
            times.setdefault("mdm", []).extend(ours(a.program, width, a.size, a.batch))
            for name, memory_format in formats.items():
                peer = Peer(width, a.size, a.batch, memory_format)
                peer.step()
                times.setdefault(name, []).extend(peer.step() for _ in range(2))
        show = {name: f"{min(t):.2f} ({statistics.median(t):.2f})" for name, t in times.items()}
        best = min(min(times[name]) for name in formats)
        middle = min(statistics.median(times[name]) for name in formats)
        ratio = f"{min(times['mdm']) / best:.2f} ({statistics.median(times['mdm']) / middle:.2f})"
        print(f"width {width}: " + ", ".join(f"{name} {text}" for name, text in show.items()) + f"; ratio {ratio}")


if __name__ == "__main__":
    main()
