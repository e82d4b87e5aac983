"""What the operator wants: hosts, profile, quant, context, sources, services. From `r1prov.yml` and flags.

keys      what the file may say
host      the part of it that names one server
sources   the part of it that names addresses
fleet     how its hosts and groups contradict each other
load      file and flags -> Site
"""

from r1prov.site.host import Host
from r1prov.site.keys import (
    TESTED_LLAMA_CPP,
    TESTED_OLLAMA,
    TESTED_OLLAMA_SHA256,
    TESTED_OPEN_WEBUI,
    Certificate,
    Check,
    Engine,
    LocalAuthority,
    SiteFile,
)
from r1prov.site.load import load, validated
from r1prov.site.site import Site

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
