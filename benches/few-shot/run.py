#!/usr/bin/env python3
"""Few labelled images, many tested: this project's ways of fitting beside a random forest on classical filters and the masks of other
programs, in one table.

usage: run.py --mdm target/release/mdm --out OUT [--data FOLDER] [--protocols REGEX] [--methods REGEX] [--seeds 0,1,2]
              [--steps N | --time 10m] [--threads N] [--masks NAME=FOLDER ...]

The folder (by default the one that MDM_SHARED names) holds data/ and models/ as docs/accuracy.md describes them. Rows are kept in
OUT/rows.jsonl as they are done, and done rows are not done again: remove their lines to repeat them. Each fit sees the labelled
images alone; test images are segmented and scored once. `--masks NAME=FOLDER` scores FOLDER/PROTOCOL/IMAGE.png of another program,
class indices as pixels.

The forest needs scikit-image and scikit-learn: filters of each channel (intensity, edges, texture; sigma 0.7 to 10), 20000 pixels
an image, 100 trees of half the samples.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import time

# Labelled images, tested images, backbone, micrometres a pixel where the files do not say, and options of tuning: thin membranes take
# finer blocks, which was chosen on the third labelled image after tuning on the first two.
PROTOCOLS = {
    "nuclei-8": ("dsb2018", "nuclei_labelled.txt", "dsb2018", "nuclei_test.txt", "bundled", None, []),
    "glands-8": ("glas/train", [f"train_{n}" for n in range(1, 9)], "glas/testA", None, "mdm_glas_32", 0.62, []),
    "membranes-3": ("isbi2012_em", ["00", "01", "02"], "isbi2012_em", "others", "bundled", None, ["--blocks", "8..14"]),
    "stained-nuclei-3": ("monuseg/train", "first 3", "monuseg/test", None, "bundled", None, []),
    "glands-2": ("glas/train", ["train_1", "train_2"], "glas/testA", None, "mdm_glas_32", 0.62, []),
}
METHODS = ["forest", "frozen", "tuned", "scratch"]
METRICS = ["dice", "iou", "object_dice", "aji"]


def stems(folder):
    return sorted(path.stem for path in (folder / "images").glob("*.png"))


class Protocol:
    def __init__(self, name, data, models, out):
        source, labelled, tested, names, backbone, self.mpp, self.tuning = PROTOCOLS[name]
        self.name, self.folder = name, out / "images" / name
        source, tested = data / source, data / tested
        listed = lambda file: (models / file).read_text().split()
        if labelled == "first 3":
            labelled = stems(source)[:3]
        elif isinstance(labelled, str):
            labelled = listed(labelled)
        if names is None:
            names = stems(tested)
        elif names == "others":
            names = [name for name in stems(tested) if name not in labelled]
        else:
            names = listed(names)
        self.labelled, self.tested = self.link("labelled", source, labelled), self.link("tested", tested, names)
        self.count = (len(labelled), len(names))
        assets = pathlib.Path(__file__).resolve().parents[2] / "assets"
        self.backbone = assets / "mdm_nuclei_32.safetensors" if backbone == "bundled" else models / f"{backbone}.safetensors"

    def link(self, name, source, stems):
        for kind in ("images", "labels"):
            folder = self.folder / name / kind
            folder.mkdir(parents=True, exist_ok=True)
            for stem in stems:
                link = folder / f"{stem}.png"
                if not link.exists():
                    link.symlink_to((source / kind / f"{stem}.png").resolve())
        return self.folder / name

    def scale(self):
        return ["--mpp", str(self.mpp)] if self.mpp else []


class Bench:
    def __init__(self, arguments):
        self.arguments = arguments
        self.rows_file = arguments.out / "rows.jsonl"
        self.rows = [json.loads(line) for line in self.rows_file.read_text().splitlines()] if self.rows_file.exists() else []

    def mdm(self, *words):
        words = [self.arguments.mdm, *map(str, words)]
        if self.arguments.threads and words[1] in ("fit", "segment", "pretrain"):
            words += ["--threads", str(self.arguments.threads)]
        began = time.monotonic()
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"error: {' '.join(words)}\n{done.stderr}")
        return time.monotonic() - began, done.stdout

    def score(self, protocol, masks):
        _, scores = self.mdm("eval", "--prediction", masks, "--truth", protocol.tested / "labels", "--json")
        scores = json.loads(scores)
        return {"mean": scores["mean"], "std": scores["std"], "images": {image["name"]: image["dice"] for image in scores["images"]}}

    def fitted(self, protocol, method, seed):
        out = self.arguments.out / f"{protocol.name}-{method}-{seed}"
        model = out.with_suffix(".safetensors")
        fit = ["fit", "--backbone", protocol.backbone, "--images", protocol.labelled / "images", "--labels", protocol.labelled / "labels"]
        fit += ["-o", model, "--seed", seed, "--no-held-out", *protocol.scale()]
        if method in ("tuned", "scratch"):
            fit += ["--tune", *self.arguments.length, *protocol.tuning]
        if method == "scratch":
            fit[fit.index(protocol.backbone)] = self.untrained(protocol, seed)
        fitting, _ = self.mdm(*fit)
        segmenting, _ = self.mdm("segment", "--model", model, "--force", "-o", out, *protocol.scale(), protocol.tested / "images")
        return {"fit_seconds": fitting, "segment_seconds": segmenting, **self.score(protocol, out)}

    def untrained(self, protocol, seed):
        """The same network with random weights: one step of training that changes next to nothing."""
        run = self.arguments.out / f"untrained-{seed}"
        if not (run / "checkpoint.safetensors").exists():
            self.mdm("pretrain", protocol.labelled / "images", "-o", run, "--width", 32, "--head-channels", 32, "--size", 128, "--batch", 1,
                     "--steps", 1, "--learning-rate", 1e-12, "--warmup", 0, "--seed", seed, "--device", "cpu", "--samples-every", 0)
        weights = run.with_suffix(".safetensors")
        if not weights.exists():
            self.mdm("export", run, "-o", weights)
        return weights

    def forest(self, protocol, seed):
        import numpy
        from PIL import Image
        from skimage.feature import multiscale_basic_features
        from sklearn.ensemble import RandomForestClassifier

        # At the backbone's scale, as the others.
        step = 2 if protocol.mpp else 1

        def read(folder, stem):
            image = Image.open(folder / "images" / f"{stem}.png").convert("RGB")
            if step > 1:
                image = image.resize((image.width // step, image.height // step), Image.BOX)
            return numpy.asarray(image, dtype=numpy.float32) / 255

        def features(pixels):
            found = multiscale_basic_features(pixels, channel_axis=-1, sigma_min=0.7, sigma_max=10)
            return found.reshape(-1, found.shape[-1])

        began, random = time.monotonic(), numpy.random.default_rng(seed)
        samples, classes = [], []
        for stem in stems(protocol.labelled):
            pixels = read(protocol.labelled, stem)
            labels = numpy.asarray(Image.open(protocol.labelled / "labels" / f"{stem}.png"))[::step, ::step]
            labels = labels[: pixels.shape[0], : pixels.shape[1]].ravel()
            known = numpy.flatnonzero(labels != 255)
            chosen = random.permutation(known)[:20000]
            samples.append(features(pixels)[chosen])
            classes.append(labels[chosen])
        forest = RandomForestClassifier(100, max_samples=0.5, n_jobs=2, random_state=seed)
        forest.fit(numpy.concatenate(samples), numpy.concatenate(classes))
        fitting, began = time.monotonic() - began, time.monotonic()
        masks = self.arguments.out / f"{protocol.name}-forest-{seed}"
        masks.mkdir(exist_ok=True)
        for stem in stems(protocol.tested):
            pixels = read(protocol.tested, stem)
            mask = forest.predict(features(pixels)).reshape(pixels.shape[:2]).astype(numpy.uint8)
            with Image.open(protocol.tested / "images" / f"{stem}.png") as image:
                size = image.size
            Image.fromarray(mask).resize(size, Image.NEAREST).save(masks / f"{stem}.png")
        return {"fit_seconds": fitting, "segment_seconds": time.monotonic() - began, **self.score(protocol, masks)}

    def row(self, protocol, method, seed, make):
        known = any((row["protocol"], row["method"], row["seed"]) == (protocol.name, method, seed) for row in self.rows)
        if known:
            return
        row = {"protocol": protocol.name, "method": method, "seed": seed, "labelled": protocol.count[0], "tested": protocol.count[1], **make()}
        self.rows.append(row)
        with open(self.rows_file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{protocol.name:18} {method:10} seed {seed}: Dice {row['mean']['dice']:.4f}", file=sys.stderr, flush=True)

    def run(self):
        models = self.arguments.data / "models"
        for name in PROTOCOLS:
            if not re.search(self.arguments.protocols, name):
                continue
            protocol = Protocol(name, self.arguments.data / "data", models, self.arguments.out)
            for seed in self.arguments.seeds:
                for method in METHODS:
                    if re.search(self.arguments.methods, method):
                        make = (lambda: self.forest(protocol, seed)) if method == "forest" else (lambda: self.fitted(protocol, method, seed))
                        self.row(protocol, method, seed, make)
            for other, folder in self.arguments.masks:
                self.row(protocol, other, 0, lambda: self.score(protocol, folder / name))

    def table(self):
        print("| images, labelled -> tested | method | seeds | Dice | std over images | IoU | object Dice | AJI | fit, s | segment, s |")
        print("|---|---|---|---|---|---|---|---|---|---|")
        keys = dict.fromkeys((row["protocol"], row["method"]) for row in self.rows)
        for protocol, method in sorted(keys, key=lambda key: list(PROTOCOLS).index(key[0])):
            rows = [row for row in self.rows if (row["protocol"], row["method"]) == (protocol, method)]
            mean = lambda of: sum(map(of, rows)) / len(rows)
            cells = [f"{protocol.rsplit('-', 1)[0]}, {rows[0]['labelled']} -> {rows[0]['tested']}", method, str(len(rows))]
            dice = [row["mean"]["dice"] for row in rows]
            spread = f" ({min(dice):.3f} to {max(dice):.3f})" if len(rows) > 1 else ""
            cells += [f"{mean(lambda row: row['mean']['dice']):.3f}{spread}", f"{mean(lambda row: row['std']['dice']):.3f}"]
            cells += [f"{mean(lambda row: row['mean'][metric]):.3f}" for metric in METRICS[1:]]
            cells += [f"{mean(lambda row: row[part]):.0f}" if part in rows[0] else "" for part in ("fit_seconds", "segment_seconds")]
            print("| " + " | ".join(cells) + " |")


def mask_folder(text):
    name, _, folder = text.partition("=")
    if not folder:
        raise argparse.ArgumentTypeError("write NAME=FOLDER")
    return name, pathlib.Path(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mdm", default="mdm", help="the command")
    parser.add_argument("--data", type=pathlib.Path, default=os.environ.get("MDM_SHARED"), help="holds data/ and models/ [$MDM_SHARED]")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--protocols", default="", help="a regular expression")
    parser.add_argument("--methods", default="", help="a regular expression: " + ", ".join(METHODS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0])
    parser.add_argument("--steps", help="of tuning")
    parser.add_argument("--time", help="of tuning, such as 10m, instead of steps")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--masks", type=mask_folder, action="append", default=[], metavar="NAME=FOLDER")
    arguments = parser.parse_args()
    if arguments.data is None or not (arguments.data / "data").is_dir():
        parser.error("name the folder with the images: --data, or MDM_SHARED")
    arguments.length = ["--time", arguments.time] if arguments.time else ["--steps", arguments.steps] if arguments.steps else []
    arguments.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(arguments)
    bench.run()
    bench.table()


if __name__ == "__main__":
    main()
