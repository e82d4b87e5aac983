"""Tries things in the place of the program that a run leaves on a host, and prints which of them worked."""

import shlex
import subprocess

PID = "$(systemctl show --value --property=MainPID r1prov-files)"
CONNECT = "import socket; socket.create_connection(('10.209.0.1', 8090), 2).close()"
TRIES = {
    "read a credential": "cat /etc/r1prov/files/token",
    "read the variables of a process": f"cat /proc/{PID}/environ",
    "see the program of a process": f"readlink /proc/{PID}/exe",
    "ask systemd": "systemctl show r1prov-files",
    "read the rules of the private network": "nsenter --net=/run/netns/r1prov nft list table inet r1prov",
    "list the interfaces of the private network": "ip -json -netns r1prov link show",
    "try rules in an empty network": "unshare --net nft --file /etc/r1prov/network/network.nft",
    "act as a user": "setpriv --reuid r1prov-files --clear-groups true",
    "write to its folder": "touch /var/lib/r1prov/watch/written",
    "write to the configuration": "touch /etc/r1prov/written",
    "write below var": "touch /var/lib/r1prov/written",
    "write to run": "touch /run/r1prov-written",
    "write to a home": "touch /root/written",
    "make a namespace of users": "unshare --user true",
    "load a module": "modprobe dummy",
    "talk to another host": f"python3 -c {shlex.quote(CONNECT)}",
    "give a file to another": "chown r1prov-files /var/lib/r1prov/watch/written",
}
for what, how in TRIES.items():
    if subprocess.run(how, shell=True, capture_output=True, check=False).returncode == 0:
        print(what)
