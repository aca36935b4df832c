#!/bin/sh
# Waits until every host of the pod answers; an argument limits the wait, in minutes (default 120).
. "$(dirname "$0")/lib.sh"
options "[MINUTES]" "$@"

case ${ARGUMENT:=120} in *[!0-9]*) die "$ARGUMENT is not a number of minutes" ;; esac
case $ROUTE in instance) ready=RUNNING ;; group) ready=True ;; queued) ready=ACTIVE ;; esac
tries=$((ARGUMENT * 60 / ${POLL_S:=20} + 1))
again() {
    echo "$1"
    tries=$((tries - 1))
    [ "$tries" -gt 0 ] || die "$NAME is not ready after $ARGUMENT minutes; see docs/pods.md"
    sleep "$POLL_S"
}
while :; do
    look "$ready"
    case $STATE in
    "$ready" | true) break ;;
    FAILED | SUSPENDED | TERMINATED) die "$NAME is $STATE: delete.sh and create.sh ask again" ;;
    "") again "$NAME is not there yet" ;;
    *) again "$NAME is $STATE" ;;
    esac
done
until everywhere true; do again "a host of $NAME does not answer yet"; done
[ "$DRY" ] || echo "$NAME is ready"
