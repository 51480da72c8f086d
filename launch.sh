#!/bin/sh
# Finds a suitable Python (3.11 to 3.13) and runs core/setup/launch.py with all arguments. See `./launch.sh help`.
# 3.11 first: it has wheels for the most packages, and every change is tested on it.
set -u

script=$0
while [ -h "$script" ]; do # started through a link
    target=$(readlink "$script")
    case $target in
        /*) script=$target ;;
        *) script=$(dirname "$script")/$target ;;
    esac
done
root=$(CDPATH='' cd -- "$(dirname -- "$script")" && pwd -P) || exit 1
home=${HOME:-/nonexistent}
# Of another program (ROS, a cluster's modules): its packages would be imported instead of Atelier's.
unset PYTHONHOME PYTHONPATH

# Every file of this name on PATH, not only the first, which may be a pyenv shim that refuses to run.
on_path() {
    old_ifs=$IFS
    IFS=:
    set -f
    for folder in $PATH; do
        if [ -x "$folder/$1" ] && [ ! -d "$folder/$1" ]; then printf '%s\n' "$folder/$1"; fi
    done
    set +f
    IFS=$old_ifs
}

present() {
    for file in "$@"; do
        if [ -x "$file" ]; then printf '%s\n' "$file"; fi
    done
}

candidates() {
    for version in 3.11 3.12 3.13; do
        on_path "python$version"
        present "${PYENV_ROOT:-$home/.pyenv}/versions/$version"*/bin/python \
            "/opt/homebrew/opt/python@$version/bin/python$version" "/usr/local/opt/python@$version/bin/python$version" \
            "/home/linuxbrew/.linuxbrew/opt/python@$version/bin/python$version" \
            "/Library/Frameworks/Python.framework/Versions/$version/bin/python$version" "/opt/local/bin/python$version" \
            "$home/.local/share/uv/python/cpython-$version"*/bin/python "$home/.asdf/installs/python/$version"*/bin/python \
            "$home/.local/share/mise/installs/python/$version"*/bin/python \
            "/usr/local/bin/python$version" "/usr/bin/python$version"
    done
    on_path python3
    on_path python
    for conda in "${CONDA_PREFIX:-}" "$home/miniconda3" "$home/anaconda3" "$home/miniforge3" "$home/mambaforge" /opt/conda /opt/miniconda3; do
        if [ -n "$conda" ]; then present "$conda/bin/python" "$conda"/envs/*/bin/python; fi
    done
}

# Sets `python` to the best one, or leaves it empty with `others` (unsuitable versions) and `novenv` (one without venv).
choose_python() {
    python='' twelve='' thirteen='' others='' novenv=''
    while IFS= read -r candidate; do
        # Apple's python3 opens a window offering to install developer tools, and is too old anyway.
        if [ "$candidate" = /usr/bin/python3 ] && [ "$(uname -s)" = Darwin ]; then continue; fi
        answer=$("$candidate" "$root/core/setup/probe.py" 2>/dev/null </dev/null) || continue
        path=${answer#*|*|}
        case $answer in
            '3.11|ok|'*) python=$path && return ;;
            '3.12|ok|'*) twelve=${twelve:-$path} ;;
            '3.13|ok|'*) thirteen=${thirteen:-$path} ;;
            *'|novenv|'*) novenv=${novenv:-${answer%%|*}} ;;
            *'|'*'|'*)
                fitness=${answer#*|}
                fitness=${fitness%%|*}
                case $fitness in
                    old | new) other=${answer%%|*} ;;
                    *) other="${answer%%|*} ($fitness)" ;;
                esac
                case ", $others," in
                    *", $other,"*) ;;
                    *) others=${others:+$others, }$other ;;
                esac
                ;;
        esac
    done <<LIST
$(candidates)
LIST
    python=${twelve:-$thirteen}
}

if [ -n "${ATELIER_PYTHON:-}" ]; then
    python=$ATELIER_PYTHON
elif [ -x "$root/.venv/bin/python" ] && "$root/.venv/bin/python" -c '' 2>/dev/null; then
    python=$root/.venv/bin/python
else
    choose_python
    if [ -z "$python" ] && [ -n "$novenv" ]; then
        echo "Atelier: Python $novenv was found but has no venv module: install it (sudo apt install python$novenv-venv), then run ./launch.sh again." >&2
        exit 1
    elif [ -z "$python" ]; then
        echo "Atelier needs Python 3.11, 3.12 or 3.13 (64-bit) but found ${others:+only }${others:-none}: install Python 3.11 with your package manager or from python.org, then run ./launch.sh again." >&2
        exit 1
    fi
fi

exec "$python" "$root/core/setup/launch.py" "$@"
