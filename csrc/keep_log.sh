#!/bin/sh
# Runs a compiler; what it says stays beside the object, too: OBJECT.txt.
# Usage: keep_log.sh COMPILER ... -o OBJECT ...
for word; do
  [ "$before" = -o ] && object=$word
  before=$word
done
"$@" 2>"$object.txt"
status=$?
cat "$object.txt" >&2
exit $status
