# shellcheck shell=bash
# Sourced from bash or zsh:  source env.sh
# Makes .venv beside this file when it is missing, installs requirements.txt into it and activates it.
# What is installed are the versions that the tests ran with, workflow/tested.txt, checked by their hashes.
# When nothing has changed it only activates. An interrupted installation is taken up by the next call.
#   PYTHON=python3.12 source env.sh      another interpreter for making the environment
#   PRUNING_VENV=FOLDER source env.sh    an environment at another place; of one already prepared, what it has stays
#   PRUNING_LATEST=1 source env.sh       the newest versions, until the next call without it
# Everything is in a function, so that the caller's variables, options and folder stay as they are, and it
# is called under `if`, so that a caller's `set -e` does not close the terminal before a message is read.

_pruning_env() {
    local root=$1 venv=${PRUNING_VENV:-$1/.venv} python=${PYTHON:-python3} stamp key have make='' clear=''
    local latest=${PRUNING_LATEST:-0} how=tested versions
    stamp=$venv/.pruning-installed
    # The folder is part of the key because an environment that was moved is broken: its scripts hold paths.
    versions=$(cat "$root/requirements.txt" "$root/workflow/tested.txt" "$root/workflow/torch.txt") || return 1
    key="$(printf '%s\n' "$latest" "$versions" | cksum) $venv" || return 1
    have=$(cat "$stamp" 2>/dev/null || :)
    if [ "$have" != "$key" ]; then
        "$venv/bin/python" -m pip --version >/dev/null 2>&1 || make=yes
        if [ -z "${PRUNING_VENV:-}" ] && [ -n "$have" ] && [ "${have#* * }" != "${key#* * }" ]; then
            make=yes clear=yes # but never an environment that somebody else prepared
        fi
        if [ -n "$make" ]; then
            "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
                echo "env.sh: Python 3.11 or newer is needed, and '$python' is not that." \
                    "Name another one: PYTHON=python3.12 source env.sh" >&2
                return 1
            }
            # What was made here holds the tested versions; first, so that an interrupted call knows it too.
            [ -e "$venv/bin/python" ] || { mkdir -p "$venv" && : >"$venv/.pruning-made"; } || return 1
            echo "env.sh: making $venv with $("$python" --version)" >&2
            "$python" -m venv ${clear:+--clear} "$venv" || {
                echo "env.sh: no environment was made (Debian and Ubuntu: apt install python3-venv)" >&2
                return 1
            }
        fi
        [ -z "${PRUNING_VENV:-}" ] || [ -e "$venv/.pruning-made" ] || how=missing # somebody else prepared it
        [ "$latest" = 0 ] || how=newest
        echo "env.sh: installing into $venv what is $how (some minutes and gigabytes the first time)" >&2
        set -- "$venv/bin/python" -m pip install --quiet --disable-pip-version-check
        case $how in
            newest) "$@" --upgrade -r "$root/requirements.txt" ;;
            missing) "$@" -r "$root/requirements.txt" ;;
            # Two calls, because pip wants hashes for all that one call installs, and torch's build is not one file.
            tested) "$@" --require-hashes --no-deps -r "$root/workflow/tested.txt" &&
                "$@" -c "$root/workflow/torch.txt" -r "$root/requirements.txt" ;;
        esac </dev/null || {
            echo "env.sh: the installation failed; source env.sh again to go on from here, or take the newest" \
                "versions instead of the tested ones: PRUNING_LATEST=1 source env.sh" >&2
            return 1
        }
        # Last, so that an interrupted installation leaves no stamp. A prepared environment may be read-only;
        # then pip looks each time, finds everything there, and that is all.
        (printf '%s\n' "$key" >"$stamp") 2>/dev/null || :
        echo "env.sh: ready" >&2
    fi
    # shellcheck source=/dev/null
    . "$venv/bin/activate" || return 1
    # The launcher that supplies papermill's output path goes first. A file on the path and not a shell
    # function: so it is the same in bash, zsh, scripts, make and JupyterLab's terminals.
    PATH=$root/workflow/bin:$PATH
    export PATH
    hash -r 2>/dev/null || :
}

if [ -n "${ZSH_VERSION:-}" ]; then
    eval '_pruning_root=${(%):-%x}' # this file's path; in eval because bash cannot read zsh's way to say it
else
    _pruning_root=${BASH_SOURCE[0]}
fi
_pruning_root=$(unset CDPATH && cd -P -- "$(dirname -- "$_pruning_root")" >/dev/null && pwd)

if _pruning_env "$_pruning_root"; then
    unset -f _pruning_env
    unset _pruning_root
else
    unset -f _pruning_env
    unset _pruning_root
    # shellcheck disable=SC2317
    return 1 2>/dev/null || exit 1 # exit only when the file was run instead of sourced
fi
