#!/bin/sh
# Starts the run on all hosts, each in the background; the same command goes on after an interruption.
. "$(dirname "$0")/lib.sh"
options "" "$@"

model=$SHARED/checkpoints/$(basename "${CHECKPOINT:?CHECKPOINT is not set}")
# shellcheck disable=SC2088 # the host's shell reads it
train="~/vlaa/venv/bin/python -m vlaa_jax.main --config=${CONFIG:?CONFIG is not set} --workdir=$SHARED/runs/$RUN --config.model.checkpoint=$model ${OPTIONS:-}"

# start MACHINE FLAGS: a host that is running already is left alone.
start() {
    # shellcheck disable=SC2088
    on "$1" "cd ~/vlaa/code
if $ALIVE; then echo runs already; exit 0; fi
rm -f ~/vlaa/rc
$KEYS
setsid nohup sh -c $(quoted "$train $2; echo \$? > ~/vlaa/rc") > ~/vlaa/logs/$RUN.log 2>&1 < /dev/null &
echo \$! > ~/vlaa/pid"
}

case $ROUTE in
instance) start "$NAME" --hosts=one ;;
queued) start "$NAME" --hosts=auto ;; # the metadata of the pod says who is who
group)
    number=0
    list=$(machines)
    for machine in $list; do
        [ "${leader:-}" ] || leader=$machine
        start "$machine" "--coordinator=$leader:${PORT:-8476} --process_count=$HOSTS --process_id=$number"
        number=$((number + 1))
    done
    ;;
esac
