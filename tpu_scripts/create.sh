#!/bin/sh
# Asks for the pod that pod.env describes; does nothing where it is there already.
. "$(dirname "$0")/lib.sh"
options "" "$@"

look ""
if [ "$STATE" ]; then
    echo "$NAME is there already ($STATE)"
    exit 0
fi
# shellcheck disable=SC2046,SC2086,SC2153
case $ROUTE in
instance)
    run gcloud compute instances create "$NAME" $WHERE "--machine-type=$MACHINE" \
        "--image-project=$IMAGE_PROJECT" "--image-family=$IMAGE_FAMILY" \
        --maintenance-policy=TERMINATE --boot-disk-size=200GB --scopes=cloud-platform \
        $(provisioning)
    ;;
group)
    policy=$NAME-policy template=$NAME-template
    ask "" gcloud compute resource-policies describe "$policy" "--project=$PROJECT" \
        "--region=$REGION" >/dev/null 2>&1 ||
        run gcloud compute resource-policies create workload-policy "$policy" \
            "--project=$PROJECT" "--region=$REGION" --type=HIGH_THROUGHPUT \
            "--accelerator-topology=$TOPOLOGY"
    ask "" gcloud compute instance-templates describe "$template" "--project=$PROJECT" \
        >/dev/null 2>&1 ||
        run gcloud compute instance-templates create "$template" "--project=$PROJECT" \
            "--machine-type=$MACHINE" "--image-project=$IMAGE_PROJECT" \
            "--image-family=$IMAGE_FAMILY" --maintenance-policy=TERMINATE \
            --boot-disk-size=200GB --scopes=cloud-platform $(provisioning)
    run gcloud compute instance-groups managed create "$NAME" $WHERE "--template=$template" \
        "--size=$HOSTS" "--workload-policy=projects/$PROJECT/regions/$REGION/resourcePolicies/$policy"
    ;;
queued)
    case $PROVISIONING in
    spot) kind=--spot ;;
    reserved) kind=--reserved ;;
    *) kind= ;;
    esac
    run gcloud compute tpus queued-resources create "$NAME" $WHERE "--node-id=$NAME" \
        "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME" \
        "--valid-until-duration=$WAIT_FOR" $kind
    ;;
esac
