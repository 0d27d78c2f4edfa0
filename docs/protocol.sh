#!/usr/bin/env bash
# The few-shot protocols of docs/accuracy.md: fits on eight images, segments the test images, prints the metrics.
#
# usage: docs/protocol.sh MODELS DATA OUT [options for `mdm fit`, such as --no-hide --seed 1]
#   MODELS  holds mdm_nuclei_32.safetensors, mdm_glas_32.safetensors, nuclei_labelled.txt and nuclei_test.txt
#   DATA    holds dsb2018/{images,labels} and glas/{train,testA}/{images,labels}
set -euo pipefail
models=$(realpath "$1") data=$(realpath "$2") out=$3
shift 3
mdm=${MDM:-mdm}
mkdir -p "$out"
out=$(realpath "$out")

# Links the named images of a folder.
pick() { # FOLDER TARGET NAMES...
    local folder=$1 target=$2 name
    shift 2
    for kind in images labels; do
        mkdir -p "$target/$kind"
        for name in "$@"; do ln -sf "$folder/$kind/$name.png" "$target/$kind/$name.png"; done
    done
}

mapfile -t labelled < "$models/nuclei_labelled.txt"
mapfile -t tested < "$models/nuclei_test.txt"
pick "$data/dsb2018" "$out/nuclei-labelled" "${labelled[@]}"
pick "$data/dsb2018" "$out/nuclei-test" "${tested[@]}"
pick "$data/glas/train" "$out/glands-labelled" train_{1,2,3,4,5,6,7,8}

echo "nuclei: 8 labelled, ${#tested[@]} tested, three heads"
"$mdm" fit --backbone "$models/mdm_nuclei_32.safetensors" --ensemble 3 "$@" \
    --images "$out/nuclei-labelled/images" --labels "$out/nuclei-labelled/labels" -o "$out/nuclei.safetensors"
"$mdm" segment --model "$out/nuclei.safetensors" --force -o "$out/nuclei" "$out/nuclei-test/images"
"$mdm" eval --prediction "$out/nuclei" --truth "$out/nuclei-test/labels" | tee "$out/nuclei.txt" | tail -n 2

echo "glands: 8 labelled, 20 tested, ten heads, 0.62 um per pixel"
"$mdm" fit --backbone "$models/mdm_glas_32.safetensors" --mpp 0.62 --ensemble 10 "$@" \
    --images "$out/glands-labelled/images" --labels "$out/glands-labelled/labels" -o "$out/glands.safetensors"
"$mdm" segment --model "$out/glands.safetensors" --mpp 0.62 --force -o "$out/glands" "$data/glas/testA/images"
"$mdm" eval --prediction "$out/glands" --truth "$data/glas/testA/labels" | tee "$out/glands.txt" | tail -n 2
