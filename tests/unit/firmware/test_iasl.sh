#!/bin/sh
# usage: test_iasl.sh DUMP_TABLES IASL
# Disassembles every ACPI table of several machines and compiles the result again: no error, no warning.
set -eu
dump=$1
iasl=$2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
tables=0
for machine in "none 1" "crb 1" "tis 4" "crb 255"; do
    dir=$work/$(echo "$machine" | tr ' ' '-')
    mkdir "$dir"
    # shellcheck disable=SC2086
    "$dump" "$dir" $machine
    for table in "$dir"/*.dat; do
        tables=$((tables + 1))
        base=${table%.dat}
        case $(basename "$base") in
        SSDT*) set -- -e "$dir/DSDT.dat" ;;
        *) set -- ;;
        esac
        if ! "$iasl" -vs "$@" -d "$table" >"$base.log" 2>&1 || grep -qE 'ACPI (Error|Warning|BIOS)|\*\*\*\*' "$base.log"; then
            echo "iasl -d: $machine $(basename "$table")"
            cat "$base.log"
            failed=1
            continue
        fi
        "$iasl" -vs -vw 2173 -we -p "$base.again" "$base.dsl" >"$base.log" 2>&1 || true
        if ! grep -q 'Compilation successful. 0 Errors, 0 Warnings' "$base.log"; then
            echo "iasl: $machine $(basename "$table")"
            cat "$base.log"
            failed=1
        fi
    done
done
echo "$tables tables, failed: $failed"
[ "$tables" -ge 40 ] && exit "$failed"
