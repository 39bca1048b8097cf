#!/usr/bin/env bash
# Fetches into DIR (.whl) what benchmarks/on_gpu.sh needs on a machine that has torch, transformers and no network.
#
#     benchmarks/wheels.sh [DIR] [PYTHON]        for example: benchmarks/wheels.sh .whl 3.12
set -euo pipefail
dir=${1:-.whl} version=${2:-3.12}
wanted=(
  trl==1.16.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19 msgspec==0.22.0 ruamel.yaml==0.19.1 click
  jsonschema==4.26.0 jsonschema-specifications referencing rpds-py rensa==0.5.0 liger-kernel==0.8.5
  bitsandbytes==0.50.2
)
platforms=(manylinux_2_28 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1)
for each in "${wanted[@]}"; do
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$version" --implementation cp \
    $(printf -- "--platform %s_x86_64 " "${platforms[@]}") -d "$dir" "$each"
done
du -sh "$dir"
