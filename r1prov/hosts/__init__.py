"""Reads hosts, over ssh or on this machine itself, and opens tunnels to them. It changes nothing on a host.

Login, met     how the operator logs in; open connections to all hosts at once
contact_all    the first contact with all hosts at once, which says who can be used and why others cannot
adopt          the host keys that the operator's ssh knows, for plain ansible-playbook
connect        one open connection, with `run`, `follow` and `open_http`
ProgressWatch  what long steps are doing, while Ansible runs
read_status    what is installed, running and healthy
read_lock      the run that holds a host
read_releases  which releases lie on a host
read_pause     the measurement that keeps the engine from answering
ask            what one of our programs, which is sent there, tells of a host
look           whether a host is still as its last run has left it
read_secret    a secret that the host holds, for a new controller to take over
Tunnel         a port of this machine that leads to a port of a host
"""

from r1prov.hosts.adoption import adopt
from r1prov.hosts.asking import ask
from r1prov.hosts.connection import HostConnection, Result, Sudo, connect
from r1prov.hosts.first import Contact, Meeting, at_once, contact_all
from r1prov.hosts.login import Login, Passwords, meet, met
from r1prov.hosts.looking import Difference, Expectation, FileDiff, Look, look, prepare_looks
from r1prov.hosts.reading import (
    Pause,
    Progress,
    ProgressWatch,
    Releases,
    read_lock,
    read_pause,
    read_releases,
    read_secret,
    read_status,
)
from r1prov.hosts.ssh import Access, StrangerError
from r1prov.hosts.tunnel import Tunnel

__all__ = [
    "Access",
    "Contact",
    "Difference",
    "Expectation",
    "FileDiff",
    "HostConnection",
    "Login",
    "Look",
    "Meeting",
    "Passwords",
    "Pause",
    "Progress",
    "ProgressWatch",
    "Releases",
    "Result",
    "StrangerError",
    "Sudo",
    "Tunnel",
    "adopt",
    "ask",
    "at_once",
    "connect",
    "contact_all",
    "look",
    "meet",
    "met",
    "prepare_looks",
    "read_lock",
    "read_pause",
    "read_releases",
    "read_secret",
    "read_status",
]
