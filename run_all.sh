#!/usr/bin/env bash
# The whole batch reproduction: makes every run that has no record yet, then the figures. Again: does nothing.
#   ./run_all.sh                            the published protocols (profile full)
#   ./run_all.sh --profile cpu              what made the committed records on an ordinary machine
#   ./run_all.sh --quick                    everything at small size in minutes (runs/quick, figures/quick)
#   ./run_all.sh -n                         only say what would be done
#   ./run_all.sh figures/NAME.png           one figure and what it needs; or notebooks/NAME.ipynb
# Any other option goes to Snakemake: --cores 8, --profile workflow/slurm, ...
set -u
cd "$(dirname "$0")" || exit
profile=full targets="" options=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit ;;
        --quick) profile=quick ;;
        --profile=quick | --profile=cpu | --profile=full) profile=${1#*=} ;;
        --profile) case "${2:-}" in quick | cpu | full) profile=$2 && shift ;; *) options+=("$1") ;; esac ;;
        *.png | *.pdf | *.ipynb) targets+=" $1" ;;
        *) options+=("$1") ;;
    esac
    shift
done
. ./env.sh || exit

exec python -m workflow.batch "$profile" "$targets" "${options[@]+"${options[@]}"}"
