#!/usr/bin/env bash
# The tiny pipeline, its files checked, then SFT and GRPO on them: the whole chain on a laptop CPU.
#
#     bash benchmarks/pipeline_to_training.sh [FOLDER] [SAMPLES] [GRPO_STEPS]
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-runs/chain} samples=${2:-400} steps=${3:-4}
task() { python -m vlaa_jax.main "$@"; }

task --config=configs/pipeline.py:tiny --workdir="$folder/data" --config.collect.embedded="$samples"
python -m vlaa_jax.data check "$folder"/data/{sft,aha_sft,grpo}.jsonl \
    --images "$folder/data/images" --quiet
task --config=configs/sft.py:tiny --workdir="$folder/sft" \
    --config.data.records="$folder/data/sft.jsonl" --config.data.image_root="$folder/data/images"
task --config=configs/grpo.py:tiny --workdir="$folder/grpo" \
    --config.model.checkpoint="$folder/sft" --config.run.steps="$steps" \
    --config.data.records="$folder/data/grpo.jsonl" --config.data.image_root="$folder/data/images"
