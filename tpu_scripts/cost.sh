#!/bin/sh
# Says what the pod has cost so far, and what the rest of the run will, from runs/RUN (see fetch.sh).
. "$(dirname "$0")/lib.sh"
options "" "$@"

: "${PRICE_PER_CHIP_HOUR:?set PRICE_PER_CHIP_HOUR in pod.env}"
# shellcheck disable=SC2086
case $ROUTE in
instance | group)
    chips=$((HOSTS * CHIPS_PER_HOST))
    machine=$(leader)
    made=$(ask 2026-01-01T00:00:00Z gcloud compute instances describe "$machine" $WHERE \
        '--format=value(creationTimestamp)')
    ;;
queued)
    chips=${ACCELERATOR##*-}
    case $ACCELERATOR in v[234]-* | v5p-*) chips=$((chips / 2)) ;; esac # these count cores
    made=$(ask 2026-01-01T00:00:00Z gcloud compute tpus queued-resources describe "$NAME" $WHERE \
        '--format=value(createTime)')
    ;;
esac
[ "$DRY" ] && exit 0
seconds=$(($(date +%s) - $(date -d "$made" +%s)))
awk -v s="$seconds" -v n="$chips" -v p="$PRICE_PER_CHIP_HOUR" 'BEGIN {
    printf "%d chips for %.1f h at %.2f each: %.2f since the pod was made\n", n, s / 3600, p, n * p * s / 3600 }'
if [ -f "runs/$RUN/metrics.jsonl" ]; then
    steps=$(sed -n 's/.*"steps": \([0-9]*\).*/\1/p' "runs/$RUN/config.json" | head -n 1)
    sed -n 's/.*"time\/step_s": \([0-9.]*\).*/\1/p' "runs/$RUN/metrics.jsonl" | tail -n 10 |
        awk -v n="$chips" -v p="$PRICE_PER_CHIP_HOUR" -v all="${steps:-0}" \
            -v done="$(wc -l <"runs/$RUN/metrics.jsonl")" '{ sum += $1 } END { if (NR) {
            left = (all - done) * sum / NR
            printf "%d of %d steps done; the rest takes about %.1f h and %.2f\n",
                done, all, left / 3600, n * p * left / 3600 } }'
fi
