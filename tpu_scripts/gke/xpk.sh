#!/bin/sh
# launch.sh through xpk, which makes the JobSet: for clusters of xpk cluster create, with the bucket
# attached as SHARED by xpk storage attach. Once: xpk refuses a workload that is there.
# shellcheck source-path=SCRIPTDIR/.. source=lib.sh
. "$(dirname "$0")/../lib.sh"
options "" "$@"

: "${CLUSTER:?is not set}" "${IMAGE:?is not set}" "${TPU_TYPE:?is not set}"
: "${CHECKPOINT:?is not set}" "${CONFIG:?is not set}"
set -- --command="exec python -m vlaa_jax.main --config=$CONFIG --workdir=$SHARED/runs/$RUN \
--config.model.checkpoint=$SHARED/checkpoints/$(basename "$CHECKPOINT") ${OPTIONS:-}"
if [ "${KEY_FILE:-}" ]; then set -- "--env-file=$KEY_FILE" "$@"; fi
# 1: another host was lost. What signals end in, xpk starts again by itself.
# shellcheck disable=SC2086
run xpk workload create $WHERE "--cluster=$CLUSTER" "--workload=$NAME" "--tpu-type=$TPU_TYPE" \
    --num-slices=1 "--docker-image=$IMAGE" --max-restarts=10 --restart-on-exit-codes=1 \
    --termination-grace-period-seconds=120 --priority=medium "$@"
