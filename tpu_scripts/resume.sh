#!/bin/sh
# Goes on after a preemption: asks for the pod anew where it is gone, and starts the run again.
. "$(dirname "$0")/lib.sh"
options "" "$@"

if [ "$DRY" ]; then again="--dry-run"; else again=; fi
here=$(dirname "$0")
look "TERMINATED"
case $STATE in # what waits for capacity, or a group that mends itself, keeps its place
STOPP* | SUSPEND* | TERMINATED | FAILED) "$here/delete.sh" ${again:+"$again"} ;;
esac
for verb in create wait setup sync launch; do
    "$here/$verb.sh" ${again:+"$again"}
done
