#!/bin/sh
# Prints an initrd for the guest's root directory $1: busybox, and the modules that find the root disk and the CD-ROM
# with cloud-init's seed. The latter and the network card must be there before systemd starts: that is when cloud-init
# looks what it runs on and, finding no card, gives up on EC2.
# The distribution's own starts udev and libraries with it: under emulation that costs five seconds of every boot.
set -eu
root=$1
version=$(basename "$root"/lib/modules/*)
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT
mkdir -p "$tree/bin" "$tree/dev" "$tree/proc" "$tree/system" "$tree/modules"
cp "$root/bin/busybox" "$tree/bin/busybox"

# In the order they load: each with what it needs before it, without repetitions.
modules=""
for name in virtio_blk virtio_net crc32c_generic ext4 ahci ata_piix isofs sr_mod; do
    for path in $(chroot "$root" modprobe --set-version "$version" --show-depends "$name" | sed -n 's/^insmod //p'); do
        case " $modules " in *" $path "*) continue ;; esac
        modules="$modules $path"
        xz -dc "$root$path" >"$tree/modules/$(basename "$path" .xz)"
    done
done

{
    echo '#!/bin/busybox sh'
    echo '/bin/busybox mount -t devtmpfs devtmpfs /dev'
    echo '/bin/busybox mount -t proc proc /proc'
    for path in $modules; do
        echo "/bin/busybox insmod /modules/$(basename "$path" .xz)"
    done
    # fsck is left to nobody: ext4 replays its journal itself.
    cat <<'INIT'
tries=0
until [ -b /dev/vda ] || [ "$tries" -ge 100 ]; do
    /bin/busybox usleep 100000
    tries=$((tries + 1))
done
/bin/busybox mount -t ext4 -o rw /dev/vda /system
/bin/busybox umount /proc
/bin/busybox mount -o move /dev /system/dev
exec /bin/busybox switch_root /system /sbin/init
INIT
} >"$tree/init"
chmod 755 "$tree/init"
ln -s busybox "$tree/bin/sh"
(cd "$tree" && find . | cpio --quiet --create --format=newc --owner=0:0)
