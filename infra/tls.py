"""TLS of our HTTP services, where the settings name a certificate."""

from __future__ import annotations

import ssl
from pathlib import Path
from urllib.parse import urlsplit

from infra.settings import SETTINGS, SettingError, Settings

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""Of TLS 1.2: forward secret and authenticated alone. TLS 1.3 has no others; older ones are not spoken."""


def files(settings: Settings) -> tuple[str, str] | None:
    """Certificate and key, or None for plain HTTP. Raises `SettingError`."""
    found = {name: settings.text(name) for name in ("tls_certificate", "tls_key")}
    if not any(found.values()):
        return None
    for name, path in found.items():
        variable = SETTINGS[name].variable
        if not path:
            raise SettingError(f"{variable} is not set, but its companion is; set both, or none")
        if not Path(path).is_file():
            raise SettingError(f"{variable}={path!r} is no file; name the PEM file, or unset it")
    key = found["tls_key"]
    if Path(key).stat().st_mode & 0o077:
        raise SettingError(
            f"{SETTINGS['tls_key'].variable}={key!r} can be read by others; run `chmod 600 {key}`"
        )
    return found["tls_certificate"], key


def of_our_own(settings: Settings, port: int) -> tuple[str, ssl.SSLContext | None]:
    """Where a process of ours serves over loopback, and what to ask it with: trusts our certificate alone,
    whatever host that names."""
    certificate = settings.text("tls_certificate")
    served = {
        *(urlsplit(url).port for url in (settings.api_url, settings.gateway_url)),
        *(own for service in ("api", "gateway") for own in settings.http_ports(service)),
    }
    if not certificate or port not in served:
        return f"http://127.0.0.1:{port}", None
    context = ssl.create_default_context(cafile=certificate)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return f"https://127.0.0.1:{port}", context
