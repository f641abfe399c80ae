#!/bin/sh
# Shows that nothing of the crate `raftify`, of its fork of raft, or of its network stack is in a library.
# Usage: check_symbols.sh LIBRARY...      0: none of it; 1: some of it, listed; 2: nothing could be shown.
#
# Looks for symbols (both ways of mangling) and for the source paths that panics and debug information carry, so a stripped
# library tells as well. It has to find traces of our own engine, or the file proves nothing.
set -eu

# Symbols begin with a crate's name behind its length; paths with its name and version.
symbols='_ZN7raftify[0-9]|_7raftify[0-9NC]|\$raftify\.\.|[^_[:alnum:]]raftify\.\.raft_|16jopemachine_raft|jopemachine_raft\.\.'
paths='(raftify-0\.1\.[0-9]+|jopemachine-raft-[0-9.]+|tonic-0\.[0-9]\.[0-9]+|h2-0\.3\.[0-9]+|hyper-0\.14\.[0-9]+|axum-0\.6\.[0-9]+|tower-0\.4\.[0-9]+|rustls-webpki-0\.10[0-2]\.[0-9]+|bincode-1\.[0-9.]+)/src'
ours='14raftify_engine|raftify_engine\.\.|engine/src/core/'

test $# -gt 0 || { echo "usage: $0 LIBRARY..." >&2; exit 2; }
for library in "$@"; do
    if ! LC_ALL=C grep -aqE "$ours" "$library"; then
        echo "$library: no trace of our own engine, so nothing can be shown" >&2
        exit 2
    fi
    if found=$(LC_ALL=C grep -aoE "($symbols)[[:alnum:]_.\$]*|$paths" "$library"); then
        echo "$library holds code of upstream's:" >&2
        echo "$found" | sort | uniq -c | sort -rn | head -20 >&2
        exit 1
    fi
    echo "$library: nothing of upstream's"
done
