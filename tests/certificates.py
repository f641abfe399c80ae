"""Certificates for tests: a CA, and what it signs, as files."""

from __future__ import annotations

import os
from pathlib import Path

import trustme

from raftify_ffi import TlsConfig


class Authority:
    """A CA whose files lie in `directory`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.ca = trustme.CA()

    def issue(self, name: str, *identities: str, believes: list[Authority] | None = None) -> TlsConfig:
        """A certificate for these hosts (127.0.0.1 if none is named), in files that replace those of the same name."""
        pair = self.ca.issue_cert(*(identities or ("127.0.0.1",)))
        believed = b"".join(one.ca.cert_pem.bytes() for one in believes or [self])
        files = {
            "cert": b"".join(pem.bytes() for pem in pair.cert_chain_pems),
            "key": pair.private_key_pem.bytes(),
            "ca": believed,
        }
        paths = {kind: self.directory / f"{name}-{kind}.pem" for kind in files}
        for kind, data in files.items():
            new = paths[kind].with_suffix(".new")
            new.write_bytes(data)
            os.replace(new, paths[kind])
        return TlsConfig(paths["cert"], paths["key"], paths["ca"])
