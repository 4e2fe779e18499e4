#!/usr/bin/env bash
# Builds the C core without Python, under a sanitizer, and works it hard: threads on one mapping,
# and (not for TSan, which sees only threads) processes that are killed.
#
#     tests/c/run.sh [--seconds S] [--seed N] [--build release|debug] asan|ubsan|tsan|plain ...
#
# Exit status: 0 pass; 1 a report or a wrong answer; 77 a sanitizer's runtime is missing here.
# Sanitizers have no suppressions. With a seed that failed before, the same mix runs again.
set -euo pipefail
cd "$(dirname "$0")/../.."

seconds=3
seed=$RANDOM
dentries=160 # so few that names are reclaimed, and some do not fit
builds=(release debug)
sanitizers=()
while [ $# -gt 0 ]; do
  case $1 in
    --seconds) seconds=$2; shift ;;
    --seed) seed=$2; shift ;;
    --build) builds=("$2"); shift ;;
    asan | ubsan | tsan | plain) sanitizers+=("$1") ;;
    *) sed -n 's/^# \?//p' "$0" | sed -n '2,8p' >&2; exit 2 ;;
  esac
  shift
done
[ ${#sanitizers[@]} -gt 0 ] || sanitizers=(asan ubsan tsan)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
flags=(-std=gnu11 -O1 -g -fno-omit-frame-pointer -pthread
  -Wall -Wextra -Wshadow -Wstrict-prototypes -Werror -Icsrc)

export ASAN_OPTIONS=halt_on_error=1:detect_leaks=1:abort_on_error=0
export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1

flags_of() {
  case $1 in
    asan) echo -fsanitize=address -fsanitize-address-use-after-scope ;;
    ubsan) echo -fsanitize=undefined -fno-sanitize-recover=all ;;
    tsan) echo -fsanitize=thread ;;
    plain) ;;
  esac
}

# How to start a program under this sanitizer: older TSan runtimes cannot live with as much address
# randomization as newer kernels have.
starter() {
  local probe=$work/probe-$1
  echo 'int main(void) { return 0; }' >"$probe.c"
  # shellcheck disable=SC2046  # words on purpose
  gcc $(flags_of "$1") -o "$probe" "$probe.c" 2>"$probe.log" || return 1
  if "$probe" 2>>"$probe.log"; then
    echo env
  elif setarch "$(uname -m)" -R "$probe" 2>>"$probe.log"; then
    echo "setarch $(uname -m) -R"
  else
    return 1
  fi
}

# compile SANITIZER BUILD MACRO...
compile() {
  local dir=$work/$1-$2 own file
  own=$(flags_of "$1")
  mkdir "$dir"
  {
    for file in csrc/*.c tests/c/*.c; do
      [ "$file" = csrc/pylock.c ] || echo "$file"
    done
  } | xargs -P "$(nproc)" -I{} sh -c 'out=$1; shift; exec gcc "$@" -c {} -o "$out/$(basename {} .c).o"' \
    compile "$dir" "${flags[@]}" $own "${@:3}"
  for program in threads processes; do
    find "$dir" -name '*.o' ! -name threads.o ! -name processes.o -print0 |
      xargs -0 gcc -pthread $own -o "$dir/$program" "$dir/$program.o"
  done
}

for sanitizer in "${sanitizers[@]}"; do
  if ! start=$(starter "$sanitizer"); then
    echo "the $sanitizer runtime is missing or does not work here:" >&2
    cat "$work/probe-$sanitizer.log" >&2
    exit 77
  fi
  for build in "${builds[@]}"; do
    macro=()
    [ $build = release ] || macro=(-DSHMLOCK_DEBUG=1)
    compile "$sanitizer" $build "${macro[@]}"
    programs=(threads)
    [ "$sanitizer" = tsan ] || programs+=(processes)
    for program in "${programs[@]}"; do
      echo "--- $sanitizer $build: $program (seed $seed)"
      if ! $start "$work/$sanitizer-$build/$program" 4 "$seconds" "$seed" "$dentries"; then
        echo "FAILED: tests/c/run.sh --seconds $seconds --seed $seed $sanitizer ($build $program)" >&2
        exit 1
      fi
    done
  done
done
echo "sanitizers: no report"
