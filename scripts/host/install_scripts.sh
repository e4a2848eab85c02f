#!/bin/sh
# Puts the host scripts in place: reads a JSON object {relative path: text} on standard input.
set -eu
umask 022
exec 3<&0 </dev/null

# Its generator leaves this file at boot; an installed cloud-init that is not enabled would be awaited in vain.
if [ -e /run/cloud-init/enabled ]; then
    # Status 2 is "recoverable": it finished, and a module had something to warn of.
    status=0
    timeout 600 cloud-init status --wait >/dev/null 2>&1 || status=$?
    if [ "$status" -ne 0 ] && [ "$status" -ne 2 ]; then
        echo "error: $(hostname): cloud-init did not finish well within 600 seconds (status $status):" \
            "$(cloud-init status --long 2>&1 | tr '\n' ' '). Look at /var/log/cloud-init.log" >&2
        exit 1
    fi
fi

if ! command -v python3 >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    if ! { apt-get update -q && apt-get install -q -y --no-install-recommends -o DPkg::Lock::Timeout=600 python3; } >&2; then
        echo "error: $(hostname): python3 is missing and apt-get could not install it: the host scripts need it. Install it by hand" >&2
        exit 1
    fi
fi

# A whole directory changes places, so that scripts of two versions never meet.
# shellcheck disable=SC2016
exec python3 -c '
import json, pathlib, shutil, sys

target = pathlib.Path("/usr/local/lib/fortress/host")
fresh, old = target.with_name(".host.new"), target.with_name(".host.old")
try:
    wanted = json.load(sys.stdin)
except ValueError:
    sys.exit("error: standard input is not JSON. Run `pulumi up` again")
found = {
    str(path.relative_to(target)): path.read_text()
    for path in target.rglob("*")
    if path.is_file() and path.suffix != ".pyc"
}
if found == wanted:
    print("unchanged")
    sys.exit()
for leftover in (fresh, old):
    shutil.rmtree(leftover, ignore_errors=True)
for name, text in wanted.items():
    path = fresh / name
    if fresh not in path.parents or ".." in path.parts:
        sys.exit(f"error: {name} leads out of {target}. Name files relative to it")
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.write_text(text)
if target.exists():
    target.rename(old)
fresh.rename(target)
shutil.rmtree(old, ignore_errors=True)
changed = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
print("changed: " + ", ".join(changed))
' <&3
