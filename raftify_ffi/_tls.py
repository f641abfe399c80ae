"""`TlsConfig`: the certificates of a node or of a client."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ._errors import InvalidConfig
from ._settings import checked, invalid


@dataclass(frozen=True)
class TlsConfig:
    """Paths of PEM files. With them every connection is TLS 1.3, and both sides show a certificate of a CA in `ca`.

    `cert` holds this side's certificate, then those between it and the CA; `key` its private key, not encrypted. A node's certificate
    names the host of its `raft_addr` (or `server_name`, where one name stands for all nodes) and is good for a server and for a client;
    a client's may name anybody. Whoever has one is trusted as a member is: keep `ca` for this cluster alone.

    The files are read when the node or client starts (`TlsError` names what is wrong with one), and again before a connection when they
    have changed: replace them while the program runs. Ones that cannot be used leave those from before in use, and a line in the log.
    """

    cert: str | os.PathLike[str]
    key: str | os.PathLike[str]
    ca: str | os.PathLike[str]
    #: What the certificate of a node that is dialled has to name; None: the host that is dialled.
    server_name: str | None = None

    def __post_init__(self) -> None:
        for name in ("cert", "key", "ca"):
            object.__setattr__(self, name, checked(f"tls.{name}", "path", getattr(self, name)))
        if self.server_name is not None:
            checked("tls.server_name", "text", self.server_name)

    def settings(self) -> dict[str, str]:
        """Name and value as the library knows them."""
        given = {"tls_cert": self.cert, "tls_key": self.key, "tls_ca": self.ca, "tls_server_name": self.server_name}
        return {name: os.fspath(value) for name, value in given.items() if value is not None}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TlsConfig:
        """From plain data with the names above. `InvalidConfig` names what is missing or unknown."""
        names = {"cert", "key", "ca", "server_name"}
        for name in sorted(settings.keys() - names):
            raise InvalidConfig(
                f"tls.{name}: there is no setting of this name; use cert, key, ca and server_name", field=f"tls.{name}"
            )
        for name in sorted(names - settings.keys() - {"server_name"}):
            raise InvalidConfig(
                f"tls.{name}: is not set; TLS takes cert, key and ca together", field=f"tls.{name}", value=None
            )
        return cls(**settings)


def checked_tls(value: object) -> TlsConfig | None:
    if value is not None and not isinstance(value, TlsConfig):
        raise invalid("tls", value, "is not a TlsConfig")
    return value
