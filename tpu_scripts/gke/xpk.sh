#!/bin/sh
# The same run through xpk, which makes the JobSet: CLUSTER, IMAGE and SHARED in the environment.
set -eu
: "${CLUSTER:?the GKE cluster, made by xpk cluster create}"
: "${IMAGE:?an image with the code and its dependencies}"
: "${SHARED:?the folder of the bucket in the pods, from xpk storage attach}"
exec xpk workload create --cluster="$CLUSTER" --workload="${NAME:-vlaa-grpo-3b}" \
    --tpu-type="${TPU_TYPE:-v6e-16}" --num-slices=1 --docker-image="$IMAGE" \
    --max-restarts=10 --priority=medium "$@" --command="python -m vlaa_jax.main \
--config=configs/grpo.py:3b --workdir=$SHARED/runs/grpo-3b \
--config.model.checkpoint=$SHARED/checkpoints/Qwen2.5-VL-3B-Instruct \
--config.data.records=$SHARED/data/VLAA-Thinking-GRPO-25K.json \
--config.data.image_root=$SHARED/data/images"
