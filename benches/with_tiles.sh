#!/usr/bin/env bash
# Runs a program of halfseg's as if the processor had AMX: benches/amx-stand-in.c executes tile instructions in software. For
# processors with AVX-512 and its dot products of bf16; slow, to see whether kernels for tiles are right.
#
#   benches/with_tiles.sh PROGRAM ARGUMENT ...
#   AMX_FP16=1 benches/with_tiles.sh PROGRAM ...      with tiles of f16, too
#
# Exit status: the program's; 75 where that cannot be done here, or where there are tiles.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -gt 0 ] || { sed -n '2,/^set/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2; }

cannot() {
  echo "with_tiles.sh: $1" >&2
  exit 75
}
features=$(grep -m1 '^flags' /proc/cpuinfo || true)
for feature in avx512f avx512bw avx512dq avx512vl avx512_bf16; do
  [[ " $features " == *" $feature "* ]] || cannot "the processor has no $feature"
done
[[ " $features " != *" amx_bf16 "* ]] || cannot "the processor has tiles itself"
for tool in cc objdump; do
  command -v "$tool" >/dev/null || cannot "there is no $tool"
done

program=$(command -v "$1") || cannot "there is no program $1"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cc -O2 -mavx512f -mavx512bw -mf16c -fPIC -shared -o "$folder/amx.so" "$here/amx-stand-in.c"
# All places that ask the processor what it has, and the one that asks Linux for tiles: a system call soon after the number of
# arch_prctl.
objdump -d --no-show-raw-insn "$program" | awk '
  { sub(":", "", $1) }
  $2 == "cpuid" { print $1, "cpuid" }
  /\$0x9e,%[er]ax/ { line = NR }
  $2 == "syscall" && line && NR - line < 12 { print $1, "syscall"; line = 0 }' >"$folder/sites"
grep -q syscall "$folder/sites" || cannot "$program has no kernels for tiles, or asks for them in another way"
shift
LD_PRELOAD=$folder/amx.so AMX_SITES=$folder/sites "$program" "$@"
