#!/bin/sh
# Waits until every host of the pod answers; an argument limits the wait, in minutes (default 120).
. "$(dirname "$0")/lib.sh"
options "[MINUTES]" "$@"

case ${ARGUMENT:=120} in *[!0-9]*) die "$ARGUMENT is not a number of minutes" ;; esac
case $ROUTE in instance) ready=RUNNING ;; group) ready=True ;; queued) ready=ACTIVE ;; esac
tries=$((ARGUMENT * 60 / ${POLL_S:=20} + 1))
while :; do
    now=$(state "$ready") || now=
    case $now in
    "$ready" | true) break ;;
    FAILED | SUSPENDED) die "$NAME is $now: delete.sh and create.sh ask again" ;;
    "") [ "$DRY" ] || echo "$NAME is not there yet" ;;
    *) echo "$NAME is $now" ;;
    esac
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || die "$NAME is not ready after $ARGUMENT minutes; see docs/pods.md, capacity"
    sleep "$POLL_S"
done
everywhere true
[ "$DRY" ] || echo "$NAME is ready"
