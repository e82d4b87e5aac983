#!/bin/sh
# Fills a folder with Debian 12's python3.11 on a host with a newer Debian, from the mirrors where that host finds its own. apt fetches and
# checks the packages.
# The folder appears whole or not at all, and nothing of the host's own apt and dpkg is changed.
# Usage: sh -s FOLDER < debian-12-python.sh
set -eu
export LC_ALL=C
umask 022
folder=$1
key=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p "${folder%/*}"
new=$(mktemp -d "${folder%/*}/.new.XXXXXX")
trap 'rm -rf "$new"' EXIT
mkdir "$new/lists" "$new/cache" "$new/debs" "$new/parts" "$new/python"

apt-get --quiet update --print-uris < /dev/null |
    sed -nE "s#^'([^']+)/dists/(trixie|forky|testing)(-updates|-security)?/InRelease' .*#deb [signed-by=$key] \1 bookworm\3 main#p" |
    sort -u > "$new/sources.list"
if ! [ -s "$new/sources.list" ]; then
    echo 'The package sources of this host name no mirror of Debian.' >&2
    exit 1
fi

# The folder that the packages are fetched to is root's, so apt may not fetch as another user.
bookworm() {
    apt-get --quiet -o Dir::Etc::sourcelist="$new/sources.list" -o Dir::Etc::sourceparts="$new/parts" -o Dir::State::lists="$new/lists" \
        -o Dir::Cache="$new/cache" -o APT::Sandbox::User=root -o Acquire::Retries=5 "$@" < /dev/null # the input is this script
}
bookworm update || true # what could not be fetched is missed by the next command
cd "$new/debs"
bookworm download python3.11-minimal libpython3.11-minimal libpython3.11-stdlib python3.11
for deb in *.deb; do
    dpkg-deb --extract "$deb" "$new/python"
done
"$new/python/usr/bin/python3.11" -I -c 'import bz2, ctypes, lzma, sqlite3, ssl, uuid, zlib'
sync
mv -T "$new/python" "$folder"
