#!/bin/sh
# Simulates a maintenance event on the last host: the run must save and leave on all of them.
. "$(dirname "$0")/lib.sh"
options "" "$@"

# shellcheck disable=SC2086
case $ROUTE in
queued)
    WORKER=0
    # What such an event ends in; this route has no other.
    on "$NAME" "kill -TERM \$(ps -o pid= --ppid \$(cat ~/vlaa/pid))"
    unset WORKER
    ;;
*)
    list=$(machines)
    machine=$(printf '%s\n' "$list" | tail -n 1)
    run gcloud compute instances add-metadata "$machine" $WHERE \
        --metadata=simulate-maintenance-event=TRUE
    ;;
esac
echo "now see logs.sh: every host says that it leaves after the same step; resume.sh goes on"
