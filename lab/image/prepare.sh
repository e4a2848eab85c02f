#!/bin/sh
# Runs with the guest's root directory as $1 before its packages are unpacked: what their installation must find.
set -eu
root=$1

# The lab boots with an initrd of its own (initrd.sh); the distribution's is only kept from taking long to make.
mkdir -p "$root/etc/initramfs-tools/conf.d"
echo 'MODULES=list' >"$root/etc/initramfs-tools/conf.d/lab"

# A cluster made while the image is built would give every machine the same data directory.
mkdir -p "$root/etc/postgresql-common/createcluster.d"
echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.d/lab.conf"
