"""The form of secrets that people set; every message leaves the value out."""

import re

# Long enough that guessing over the network is hopeless; SCRAM slows each guess further.
PASSWORD_LENGTH = 16


def checked_password(password: str) -> str:
    """Check a database password.

    Raises:
        ValueError: when it is short or holds characters that environment files would change.
    """
    if len(password) < PASSWORD_LENGTH or not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", password):
        msg = (
            f"a database password needs at least {PASSWORD_LENGTH} characters of A-Z a-z 0-9 "
            ". _ ~ + / = -, because it also stands in environment files, where others are quoted"
        )
        raise ValueError(msg)
    return password


def checked_certificate(pem: str) -> str:
    """Check that a PEM text holds a certificate and a private key, as HAProxy's `crt` needs.

    Raises:
        ValueError: when one of them is missing.
    """
    for part in ("CERTIFICATE", "PRIVATE KEY"):
        if f"{part}-----" not in pem:
            msg = f"the door's PEM text has no {part}: HAProxy reads chain and key from one file"
            raise ValueError(msg)
    return pem
