#!/bin/sh
# Says for the pod and for every host how they are: state, chips, process, the last step.
. "$(dirname "$0")/lib.sh"
options "" "$@"

look "RUNNING"
[ "$STATE" ] || die "$NAME is not there: create.sh asks for it"
echo "$STATE"
everywhere "echo == \$(hostname): \$(ls /dev/vfio /dev/accel* 2>/dev/null | grep -c '[0-9]') chips
if $ALIVE; then echo running
elif [ -f ~/vlaa/rc ]; then echo ended with \$(cat ~/vlaa/rc): \$(tail -n 1 ~/vlaa/logs/$RUN.log)
else echo not started; fi"
first "tail -n 1 $SHARED/runs/$RUN/metrics.jsonl 2>/dev/null | cut -c 1-200"
