#!/bin/sh
# First contact with a machine that was born with a bootstrap ECDSA host key: gives it the Ed25519 key of its life.
# Reads that private key on standard input. The bootstrap key stays valid until baseline.py retires it over the new one.
set -eu
umask 077
directory=/etc/ssh
key=$directory/ssh_host_ed25519_key
new=$directory/.new-ssh_host_ed25519_key

trap 'rm -f "$new" "$new.pub"' EXIT
rm -f "$new" "$new.pub"
cat >"$new"
if ! ssh-keygen -y -P '' -f "$new" >"$new.pub" 2>/dev/null; then
    echo "error: $(hostname): standard input holds no unencrypted private SSH key. Run \`pulumi up\` again" >&2
    exit 1
fi
chmod 0644 "$new.pub"

changed=
if ! cmp -s "$new" "$key" || ! cmp -s "$new.pub" "$key.pub"; then
    mv -f "$new.pub" "$key.pub"
    mv -f "$new" "$key"
    changed=yes
fi
# An image may name its host keys, and one that names others only would not offer ours.
mkdir -p /run/sshd
if ! sshd -T 2>/dev/null | grep -qix "hostkey $key"; then
    (
        umask 022
        echo "HostKey $key" >"$directory/sshd_config.d/05-fortress-host-key.conf"
    )
    changed=yes
fi
if [ -z "$changed" ]; then
    echo unchanged
    exit 0
fi

sshd -t
systemctl reload ssh.service
wanted=$(cut -d ' ' -f 2 "$key.pub")
port=$(sshd -T | awk '$1 == "port" { print $2; exit }')
tries=0
until ssh-keyscan -T 5 -t ed25519 -p "$port" 127.0.0.1 2>/dev/null | grep -qF "$wanted"; do
    tries=$((tries + 1))
    if [ "$tries" -ge 30 ]; then
        echo "error: $(hostname): sshd does not offer $key after its reload. Look at: journalctl -u ssh" >&2
        exit 1
    fi
    sleep 1
done
echo "changed: $key"
