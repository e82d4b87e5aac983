"""Reads hosts, over ssh or locally: first contact, progress, status, a tunnel. Changes nothing.

Login, met     how the operator logs in; open connections to all hosts at once
contact_all    first contact with all hosts at once, and every problem at once
connect        one open connection: run, follow, open_http
ProgressWatch  what long steps are doing, while Ansible runs
read_status    what is installed, running and healthy
read_secret    what a new controller takes over
Tunnel         a port here that leads to a port there
"""

from r1prov.hosts.connection import HostConnection, Result, Sudo, connect
from r1prov.hosts.first import Contact, contact_all
from r1prov.hosts.login import Login, Passwords, met
from r1prov.hosts.reading import Progress, ProgressWatch, read_secret, read_status
from r1prov.hosts.ssh import Access
from r1prov.hosts.tunnel import Tunnel

__all__ = [
    "Access",
    "Contact",
    "HostConnection",
    "Login",
    "Passwords",
    "Progress",
    "ProgressWatch",
    "Result",
    "Sudo",
    "Tunnel",
    "connect",
    "contact_all",
    "met",
    "read_secret",
    "read_status",
]
