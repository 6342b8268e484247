#!/usr/bin/env bash
# Builds a CPython without the GIL from Debian's source package, for tests of stube on such a Python, because Debian has
# no binary package of one. See --help. The source is fetched with a private configuration of apt, so that the system's
# own list of sources is not changed. Only the released tarball is used, without the distribution's patches, because they
# remove ensurepip, which a virtual environment needs.

set -euo pipefail

suite=testing
wanted=(3.14 3.13) # the first one that is available is built
prefix=${XDG_CACHE_HOME:-$HOME/.cache}/stube/python-free-threaded
force=no
# Debian packages that the build needs: a compiler, the libraries for pip, and ctypes, which pytest-timeout may use.
needed=(gcc libc6-dev make pkg-config xz-utils ca-certificates libssl-dev zlib1g-dev libffi-dev)

usage() {
  cat <<HELP
usage: tools/build-free-threaded.sh [--python SERIES] [--suite SUITE] [--force] [PREFIX]

Builds a free-threaded CPython and installs it under PREFIX, by default
$prefix.
Takes about two minutes on two cores, 40 MB of downloads, 0.5 GB of scratch space
(under TMPDIR) and 80 MB at PREFIX, a folder of its own: a later build empties it.
If the Python is installed there already, this only reports it.

  --python SERIES  3.13 or later (default: the first available one of ${wanted[*]})
  --suite SUITE    the suite of Debian whose source package is used (default: $suite)
  --force          build again, even if the Python is installed already
  --help           this text

It needs Debian, with apt set up and its lists fetched (apt-get update). If root runs
this, missing packages are installed; otherwise they are named. Make a virtual
environment from it with

  PREFIX/bin/python3 -m venv .venv-free-threaded
HELP
}

fail() { # WHAT FIX
  printf '%s\n%s\n' "build-free-threaded.sh: $1" "$2" >&2
  exit 1
}

say() {
  printf '## %s\n' "$*"
}

while [ $# -gt 0 ]; do
  case $1 in
    --python | --suite) [ $# -ge 2 ] || fail "$1 needs a value." "See --help for the options." ;;
  esac
  case $1 in
    --help | -h) usage && exit 0 ;;
    --force) force=yes ;;
    --python) wanted=("$2") && shift ;;
    --suite) suite=$2 && shift ;;
    -*) fail "There is no option $1." "See --help for the options." ;;
    *) prefix=$1 ;;
  esac
  shift
done
[ -n "$prefix" ] || fail "PREFIX is empty." "Give a folder, or leave it out."
for series in "${wanted[@]}"; do
  [[ $series =~ ^3\.[0-9]+$ && ${series#3.} -ge 13 ]] ||
    fail "There is no free-threaded Python '$series'." "Give --python 3.13, or a later one, without the micro version."
done
mark=$prefix/.built-for-stube # contains the series when the installation is complete; empty before
python=$prefix/bin/python3

report() {
  "$python" - <<'PYTHON'
import sys, sysconfig
import ctypes, ensurepip, ssl, zlib, venv  # modules that a test environment needs

assert sysconfig.get_config_var("Py_GIL_DISABLED") == 1, "this Python was built with the GIL"
print(f"Python {sys.version}\nsys._is_gil_enabled() = {sys._is_gil_enabled()}\n{sys.executable}")
PYTHON
}

if [ "$force" = no ] && [ -s "$mark" ] && [[ " ${wanted[*]} " == *" $(cat "$mark") "* ]]; then
  report || fail "The Python at $prefix does not work." "Build it again with --force."
  exit 0
fi
if [ -n "$(ls -A "$prefix" 2>/dev/null)" ] && [ ! -e "$mark" ]; then
  fail "$prefix contains files that this script has not made." "Give another folder, or empty that one."
fi

# -- the packages for the build -----------------------------------------------------------------------------------

for tool in apt-get dpkg-query; do
  command -v "$tool" >/dev/null ||
    fail "There is no $tool here, and this script builds from Debian's source package." "Run it on Debian."
done
missing=()
for package in "${needed[@]}"; do
  [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] ||
    missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  [ "$(id -u)" -eq 0 ] ||
    fail "The build needs packages that are not installed." "Run: apt-get install --no-install-recommends ${missing[*]}"
  say "installing ${missing[*]}"
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null
fi

# -- the source ---------------------------------------------------------------------------------------------------

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
chmod 755 "$scratch" # apt downloads with a user of its own

# Use the mirror from which this machine's apt takes the installed release.
# shellcheck source=/dev/null
distribution=$(. /etc/os-release && echo "$ID")
# shellcheck source=/dev/null
release=$(. /etc/os-release && echo "${VERSION_CODENAME:-$suite}")
# shellcheck disable=SC2016 # apt fills these in
mirror=$(apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
  awk -v release="$release" '$1 == release && $2 == "main" { print $3; exit }')
[ -n "$mirror" ] ||
  fail "apt knows no mirror of $distribution's $release here." "Run apt-get update, or set up apt's list of sources."
keyring=/usr/share/keyrings/$distribution-archive-keyring.gpg
[ -e "$keyring" ] ||
  fail "The keys of $distribution's archive are not here." "Run: apt-get install $distribution-archive-keyring"

mkdir -p "$scratch/apt/lists/partial" "$scratch/apt/archives/partial" "$scratch/source"
cat >"$scratch/apt/sources.sources" <<SOURCES
Types: deb-src
URIs: $mirror
Suites: $suite
Components: main
Signed-By: $keyring
SOURCES
cat >"$scratch/apt/conf" <<CONF
Dir::Etc::sourcelist "$scratch/apt/sources.sources";
Dir::Etc::sourceparts "-";
Dir::State::lists "$scratch/apt/lists";
Dir::Cache "$scratch/apt";
Acquire::Languages "none";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
CONF
privately() { # COMMAND ARGUMENTS...: run a command of apt with the private configuration, which is read last
  "$1" -c "$scratch/apt/conf" "${@:2}"
}

fetch() { # SERIES: fetch it into the scratch folder; fails if it is not available
  local folder=$scratch/source/$1
  mkdir -m 777 "$folder" # so that apt's own user can write
  say "fetching the source of Python $1"
  (cd "$folder" && privately apt-get -qq source --download-only "python$1") || return 1
  local found=("$folder/python$1"_*.orig.tar.*)
  tarball=${found[0]}
  [ -e "$tarball" ]
}

say "fetching the list of sources of $suite"
privately apt-get -qq update -o APT::Update::Error-Mode=any ||
  fail "apt cannot fetch the suite '$suite' with its sources." "Give another --suite, or see apt's output above."
# shellcheck disable=SC2016 # apt fills this in
index=$(privately apt-get indextargets --format '$(FILENAME)' 'Created-By: Sources')
there=$(privately /usr/lib/apt/apt-helper cat-file "$index" | sed -n 's/^Package: python\(3\.[0-9]*\)$/\1/p' | sort -uV)
tarball=
for series in "${wanted[@]}"; do
  if grep -qxF "$series" <<<"$there" && fetch "$series"; then break; fi
  say "the source of Python $series is not available from $suite"
done
[ -e "$tarball" ] ||
  fail "The source of Python ${wanted[*]} is not available from '$suite', which lists ${there//$'\n'/, }." \
    "Choose with --python, or give another --suite."

# -- the build ----------------------------------------------------------------------------------------------------

step() { # WHAT COMMAND...
  say "$1"
  "${@:2}" >"$scratch/log" 2>&1 || {
    tail -n 40 "$scratch/log" >&2
    fail "This step failed: $1." "See its last lines above; is there enough room in ${TMPDIR:-/tmp} and at $prefix?"
  }
}

install_it() {
  mkdir -p "$prefix"
  find "$prefix" -mindepth 1 -delete # the files of an earlier build
  : >"$mark"
  make install
}

mkdir "$scratch/build"
step unpacking tar -xf "$tarball" -C "$scratch/build" --strip-components 1
prefix=$(mkdir -p "$prefix" && cd "$prefix" && pwd)
mark=$prefix/.built-for-stube
python=$prefix/bin/python3
cd "$scratch/build"
# Without -g and without the modules for Python's own tests, which would only cost time and space.
step configuring ./configure --disable-gil --prefix="$prefix" --with-ensurepip=install --disable-test-modules \
  --without-static-libpython CFLAGS=-g0
step building make -j"$(nproc)"
step "installing at $prefix" install_it
report || fail "The Python that was built does not work, or lacks a module." "See the error above."
echo "$series" >"$mark"
