#!/usr/bin/env bash
# All that only a GPU shows, in stages of at most three minutes, the most valuable first. Results are written after each.
#
#     benchmarks/on_gpu.sh OUT [STAGE…]          stages: install recipes tests lora full plan; all of them by default
#
# It needs Python with torch, transformers, accelerate, peft, tokenizers and pyarrow, and no network: the other packages
# are installed from .whl, which benchmarks/wheels.sh fills. OUT gets a log of each stage and the numbers as JSON.
# SMALL=--small runs it in small, also on a CPU.
set -uo pipefail
cd "$(dirname "$0")/.."
mkdir -p "$1"
out=$(realpath "$1")
shift
stages=${*:-install recipes tests lora full plan}
python=${PYTHON:-python3} small=${SMALL:-} limit=${LIMIT:-170}
site=${SITE:-/tmp/sftrun-site}
export PYTHONPATH="$PWD:$site" PYTHONUNBUFFERED=1 SFTRUN_CACHE=$(mktemp -d) HF_HUB_OFFLINE=1
work=$(mktemp -d)

install() {
  [ -d .whl ] && $python -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" .whl/*.whl
  $python - <<'PY'
import importlib
for name in ("torch transformers accelerate peft trl datasets msgspec ruamel.yaml yaml click jsonschema pluggy rich "
             "pyarrow tensorboard tokenizers safetensors liger_kernel bitsandbytes triton pytest hypothesis").split():
    try:
        print(name, getattr(importlib.import_module(name), "__version__", ""))
    except Exception as error:
        print("MISSING", name, repr(error)[:300])
import torch
print(torch.cuda.is_available() and torch.cuda.get_device_name())
PY
  $python -m sftrun --version
}

recipes() {
  time $python -m sftrun recipes/chat.yaml --out "$work/chat" --set train.max_steps=200 &&
    time $python -m sftrun recipes/lora.yaml --out "$work/lora" --set "model.name=$work/chat/model" --set train.max_steps=100
  cp "$work/lora/eval/scores.json" "$out/lora-scores.json"
}

tests() {
  $python -m pytest -q -m gpu -p no:cacheprovider --timeout 120 -rA --tb=short $(grep -l "mark.gpu" tests/test_*.py)
}

speed() { $python benchmarks/gpu.py --case "$1" --ways sftrun,trl --rounds 1 --minutes 2.6 --out "$out/gpu.json" $small; }

lora() { speed llama-8b-lora; }

full() { speed qwen-0.5b-full; }

plan() { $python benchmarks/gpu.py --plan --minutes 2.6 --out "$out/gpu.json" $small; }

export -f install recipes tests speed lora full plan
export out work python small site
failed=0
for stage in $stages; do
  began=$SECONDS
  timeout "$limit" bash -c "$stage" >"$out/$stage.log" 2>&1
  code=$?
  [ $code = 0 ] || failed=1
  echo "$stage: exit $code, $((SECONDS - began)) s" | tee -a "$out/stages.txt"
  tail -n "${LINES_SHOWN:-25}" "$out/$stage.log"
done
exit $failed
