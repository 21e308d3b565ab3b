"""Makes a certificate authority and a server certificate for loopback, valid for thirty days, with ``openssl``."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sfroute.errors import ConfigError

from ._supervisor import LocalClusterError

__all__ = ["Certificates", "make_certificates"]

# Python 3.13 checks certificates strictly: they need key identifiers and key usage.
_CONFIG: Final = """
[req]
distinguished_name = name
prompt = no
[name]
CN = sfroute local cluster
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth, clientAuth
subjectAltName = IP:127.0.0.1, DNS:localhost
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


@dataclass(frozen=True, slots=True)
class Certificates:
    """Paths of PEM files."""

    ca: Path
    certificate: Path
    key: Path


def make_certificates(directory: Path) -> Certificates:
    """Make a new authority, and a server certificate for 127.0.0.1 and localhost that it signs.

    Raises:
        ConfigError: the ``openssl`` command was not found.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        raise ConfigError(
            "TLS needs the openssl command to make certificates, and it is not on PATH; "
            "install the package openssl"
        )

    def run(*args: str) -> None:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [openssl, *args],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise LocalClusterError(
                f"openssl {args[0]} failed: {done.stderr.decode(errors='replace').strip()}"
            )

    (directory / "openssl.cnf").write_text(_CONFIG)
    new_key = ("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out")
    request = ("req", "-new", "-config", "openssl.cnf")
    run(*new_key, "ca.key")
    run(*request, "-x509", "-key", "ca.key", "-extensions", "authority", "-days", "30", "-out", "ca.crt")  # fmt: skip
    run(*new_key, "server.key")
    run(*request, "-key", "server.key", "-subj", "/CN=127.0.0.1", "-out", "server.csr")
    run("x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "30",
        "-extfile", "openssl.cnf", "-extensions", "server", "-out", "server.crt")  # fmt: skip
    return Certificates(
        ca=directory / "ca.crt", certificate=directory / "server.crt", key=directory / "server.key"
    )
