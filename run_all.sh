#!/usr/bin/env bash
# The whole batch reproduction: makes every run that has no record yet, then the figures. Again: does nothing.
#   ./run_all.sh                            the published protocols (profile full)
#   ./run_all.sh --profile cpu              what made the committed records on an ordinary machine
#   ./run_all.sh --quick                    everything at small size in minutes (runs/quick, figures/quick)
#   ./run_all.sh -n                         only say what would be done
#   ./run_all.sh figures/NAME.png           one figure and what it needs; or notebooks/NAME.ipynb
#   ./run_all.sh report                     one page of all there is, report/index.html; no run is made
# Any other option goes to Snakemake: --cores 8, --profile workflow/slurm, ...
set -u
cd "$(dirname "$0")" || exit
profile=full targets="" options=()
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help) sed -n '2,9s/^# \{0,1\}//p' "$0"; exit ;;
        --quick) profile=quick ;;
        --profile) set -- "$1=${2:-}" "${@:3}"; continue ;;
        --profile=quick | --profile=cpu | --profile=full) profile=${1#*=} ;;
        --profile=*)
            if [ ! -d "${1#*=}" ] && [ ! -d "${HOME:-}/.config/snakemake/${1#*=}" ]; then
                echo "run_all.sh: there is no profile '${1#*=}'; there are quick, cpu and full," \
                    "and --profile FOLDER takes one of Snakemake's own, such as workflow/slurm" >&2
                exit 2
            fi
            options+=("$1") ;;
        -n | -p | -k | --dry-run | --dryrun | --printshellcmds | --verbose | *=*) options+=("$1") ;;
        -*) options+=("$1"); case "${2:--}" in -* | report | *.png | *.pdf | *.ipynb) ;; *) options+=("$2"); shift ;; esac ;; # and its value
        *) targets+=" $1" ;; # what is none, workflow/plan.py says
    esac
    shift
done
if [ ! -w "${HOME:-}" ]; then # where Snakemake, Jupyter and matplotlib keep what they remember
    export HOME=$PWD/.snakemake/home
    mkdir -p "$HOME" 2>/dev/null
fi
. ./env.sh || exit

exec python -m workflow.batch "$profile" "$targets" "${options[@]+"${options[@]}"}"
