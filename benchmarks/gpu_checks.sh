#!/usr/bin/env bash
# Everything that needs a GPU: builds, tests, looks for wrong accesses and races, measures. Results go to $1.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-build/gpu}
mkdir -p "$out"

AVFAST_CUDA=ON pip install -e '.[test]' -c constraints.txt
{
  nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem --format=csv
  python -c 'import avfast, torch; print(torch.__version__, avfast.build_info())'
} | tee "$out/machine.txt"

python -m pytest -m cuda | tee "$out/tests.txt"

# Without torch's caching allocator every tensor has bounds of its own; graphs cannot be captured that way.
for tool in memcheck racecheck; do
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
    python -m pytest -m cuda -k 'not graph and not side_stream and not every_run' | tee "$out/$tool.txt"
done

# On CUDA a round is many calls: divide a time by its `calls`. `limit` is a copy of as many bytes.
python -m pytest benchmarks -m cuda --benchmark-json "$out/benchmarks.json" | tee "$out/benchmarks.txt"
