"""What the operator wants: hosts, profile, quant, context, sources, services. From `r1prov.yml` and flags.

keys      what the file may say
sources   the part of it that names addresses
load      file and flags -> Site
"""

from r1prov.site.keys import (
    TESTED_LLAMA_CPP,
    TESTED_OLLAMA,
    TESTED_OLLAMA_SHA256,
    TESTED_OPEN_WEBUI,
    Certificate,
    Check,
    Engine,
    Host,
    LocalAuthority,
    Site,
    SiteFile,
)
from r1prov.site.load import load, validated

__all__ = [
    "TESTED_LLAMA_CPP",
    "TESTED_OLLAMA",
    "TESTED_OLLAMA_SHA256",
    "TESTED_OPEN_WEBUI",
    "Certificate",
    "Check",
    "Engine",
    "Host",
    "LocalAuthority",
    "Site",
    "SiteFile",
    "load",
    "validated",
]
