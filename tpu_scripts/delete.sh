#!/bin/sh
# Gives the pod back; the bucket with checkpoints and runs stays. Does nothing where there is none.
. "$(dirname "$0")/lib.sh"
options "" "$@"

look "RUNNING"
if [ -z "$STATE" ]; then
    echo "$NAME is not there"
    [ "$ROUTE" = group ] || exit 0
else
    # shellcheck disable=SC2086
    case $ROUTE in
    instance) run gcloud compute instances delete "$NAME" $WHERE --quiet ;;
    group) run gcloud compute instance-groups managed delete "$NAME" $WHERE --quiet ;;
    queued) run gcloud compute tpus queued-resources delete "$NAME" $WHERE --force --quiet ;;
    esac
fi
if [ "$ROUTE" = group ]; then
    if ask yes gcloud compute instance-templates describe "$NAME-template" "--project=$PROJECT" \
        >/dev/null 2>&1; then
        run gcloud compute instance-templates delete "$NAME-template" "--project=$PROJECT" --quiet
    fi
    if ask yes gcloud compute resource-policies describe "$NAME-policy" "--project=$PROJECT" \
        "--region=$REGION" >/dev/null 2>&1; then
        run gcloud compute resource-policies delete "$NAME-policy" "--project=$PROJECT" \
            "--region=$REGION" --quiet
    fi
fi
