#!/bin/sh
# Goes on after a preemption: asks for the pod anew where it is gone, and starts the run again.
. "$(dirname "$0")/lib.sh"
options "" "$@"

if [ "$DRY" ]; then again="--dry-run"; else again=; fi
here=$(dirname "$0")
case $(state "TERMINATED" || echo GONE) in
GONE | RUNNING | True | true | ACTIVE) ;;
*) "$here/delete.sh" ${again:+"$again"} ;; # a stopped TPU VM is made anew, it cannot be started
esac
for verb in create wait setup sync launch; do
    "$here/$verb.sh" ${again:+"$again"}
done
