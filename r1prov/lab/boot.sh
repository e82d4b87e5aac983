# The first process of a rented container, as the platform writes it: no init system, but sshd, the user's hook, and then nothing.
# bash reaps whatever the others leave behind.
mkdir -p /run/sshd
/usr/sbin/sshd

if [ -f /etc/autodl.sh ]; then
    bash /etc/autodl.sh >/tmp/autodl.sh.log 2>&1 </dev/null &
fi

while :; do
    sleep infinity
done
