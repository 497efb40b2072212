#!/usr/bin/env bash
# clang-tidy over the host sources of a build folder with compile_commands.json, two at a time, newest changes first, for at most LIMIT seconds
# (default 600); what was not reached is said. Usage: scripts/tidy.sh BUILD_DIR [LIMIT]
set -euo pipefail
cd "$(dirname "$0")/.."
build=${1:?build folder}
limit=${2:-600}
# Files by the time of their last commit, newest first: a bounded run covers what changed.
mapfile -t files < <(git ls-files 'src/*.cpp' 'apps/*.cpp' | while read -r f; do echo "$(git log -1 --format=%ct -- "$f") $f"; done | sort -rn | cut -d' ' -f2)
state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
export build state
end=$(($(date +%s) + limit))
export end
check() {
  [ "$(date +%s)" -lt "$end" ] || { echo "$1" >>"$state/unreached"; return 0; }
  grep -q "\"file\": \".*/$1\"" "$build/compile_commands.json" || return 0  # not part of this build (CUDA)
  if ! timeout $((end - $(date +%s) + 120)) clang-tidy-14 --quiet --extra-arg=-Wno-unknown-warning-option -p "$build" "$1" >"$state/$$.log" 2>/dev/null; then
    echo "$1" >>"$state/failed"
    cat "$state/$$.log"
  fi
  echo "$1" >>"$state/checked"
}
export -f check
printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -I{} bash -c 'check {}'
count() { if [ -f "$state/$1" ]; then wc -l <"$state/$1"; else echo 0; fi; }
echo "== clang-tidy: $(count checked) files checked, $(count failed) with findings, $(count unreached) not reached in $limit s"
[ "$(count failed)" -eq 0 ]
