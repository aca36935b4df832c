# Shared by the verbs of tpu_scripts: settings, --dry-run, and how hosts are reached by each route.
# shellcheck shell=sh disable=SC2034,SC2153
set -eu

VERB=$(basename "$0" .sh)
ROOT=$(cd "$(dirname "$0")/.." && pwd)
DRY=

die() {
    printf '%s: %s\n' "$VERB" "$*" >&2
    exit 2
}

# Words as the shell would take them, on one line.
quoted() {
    for word in "$@"; do
        case $word in
        *[!A-Za-z0-9_./:=,@%+-]* | '') printf "'%s' " "$(printf %s "$word" | sed "s/'/'\\\\''/g")" ;;
        *) printf '%s ' "$word" ;;
        esac
    done
    printf '\n'
}

# Runs a command that changes something; with --dry-run only prints it.
run() {
    if [ "$DRY" ]; then quoted "$@"; else "$@"; fi
}

# Runs a command that only asks. With --dry-run it is printed, and its answer is what comes first.
ask() {
    answer=$1
    shift
    if [ "$DRY" ]; then
        quoted "$@" >&3
        [ "$answer" ] || return 1
        printf '%s\n' "$answer"
    else
        "$@"
    fi
}
exec 3>&1

settings() {
    file=${POD_ENV:-pod.env}
    [ -f "$file" ] || die "$file is missing: copy tpu_scripts/pod.env.example and fill it in"
    case $file in */*) ;; *) file=./$file ;; esac
    # shellcheck source=/dev/null
    . "$file"
    for name in PROJECT ZONE NAME ROUTE BUCKET SHARED RUN; do
        eval "value=\${$name:-}"
        [ "$value" ] || die "$name is not set in $file"
    done
    case $ROUTE in
    instance) HOSTS=1 ;;
    group) [ "${HOSTS:-0}" -gt 1 ] || die "ROUTE=group is for several hosts: set HOSTS in $file" ;;
    queued) HOSTS=${HOSTS:-1} ;;
    *) die "ROUTE=$ROUTE in $file is not instance, group or queued" ;;
    esac
    case ${PROVISIONING:=standard}/$ROUTE in
    standard/* | spot/* | flex/instance | flex/group | reserved/queued) ;;
    *) die "PROVISIONING=$PROVISIONING does not go with ROUTE=$ROUTE" ;;
    esac
    REGION=${ZONE%-*}
    WHERE="--project=$PROJECT --zone=$ZONE"
}

options() {
    USAGE=$1
    shift
    ARGUMENT=
    for word in "$@"; do
        case $word in
        --dry-run) DRY=yes ;;
        -h | --help)
            printf 'usage: %s.sh [--dry-run] %s\n' "$VERB" "$USAGE"
            exit 0
            ;;
        -*) die "unknown option $word; usage: $VERB.sh [--dry-run] $USAGE" ;;
        *)
            [ -z "$ARGUMENT" ] || die "one argument at most; usage: $VERB.sh [--dry-run] $USAGE"
            ARGUMENT=$word
            ;;
        esac
    done
    settings
}

# Flags that say how capacity is asked for.
provisioning() {
    case $PROVISIONING in
    spot) echo --provisioning-model=SPOT --instance-termination-action=STOP ;;
    flex)
        echo --provisioning-model=FLEX_START "--max-run-duration=$RUN_FOR" \
            "--request-valid-for-duration=$WAIT_FOR" --instance-termination-action=DELETE
        ;;
    esac
}

# What there is of the pod: a word, or nothing.
state() {
    # shellcheck disable=SC2086
    case $ROUTE in
    instance) ask "$1" gcloud compute instances describe "$NAME" $WHERE '--format=value(status)' ;;
    group)
        ask "$1" gcloud compute instance-groups managed describe "$NAME" $WHERE \
            '--format=value(status.isStable)'
        ;;
    queued)
        ask "$1" gcloud compute tpus queued-resources describe "$NAME" $WHERE \
            '--format=value(state.state)'
        ;;
    esac 2>/dev/null
}

# The names of the VMs, in the order that numbers the processes.
machines() {
    # shellcheck disable=SC2086
    case $ROUTE in
    instance | queued) echo "$NAME" ;;
    group)
        ask "$(seq -f "$NAME-%g" 0 $((HOSTS - 1)))" \
            gcloud compute instance-groups managed list-instances "$NAME" $WHERE \
            '--format=value(NAME)' | sort
        ;;
    esac
}

# on MACHINE COMMAND: runs a command there; for queued resources on all workers, or on one.
on() {
    # shellcheck disable=SC2086
    case $ROUTE in
    queued)
        run gcloud compute tpus tpu-vm ssh "$NAME" $WHERE "--worker=${WORKER:-all}" "--command=$2"
        ;;
    *) run gcloud compute ssh "$1" $WHERE "--command=$2" ;;
    esac
}

everywhere() {
    for machine in $(machines); do on "$machine" "$1"; done
}

first() {
    WORKER=0
    on "$(machines | head -n 1)" "$1"
    unset WORKER
}

# copy FILE TARGET: to the home folder of every host.
copy() {
    # shellcheck disable=SC2086
    for machine in $(machines); do
        case $ROUTE in
        queued) run gcloud compute tpus tpu-vm scp "$1" "$NAME:$2" $WHERE --worker=all ;;
        *) run gcloud compute scp "$1" "$machine:$2" $WHERE ;;
        esac
    done
}
