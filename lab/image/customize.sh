#!/bin/sh
# Runs with the guest's root directory as $1 after its packages are installed: what a published cloud image has done to it.
set -eu
root=$1

# One image, many machines: identity is made at first boot.
rm -f "$root"/etc/ssh/ssh_host_*_key "$root"/etc/ssh/ssh_host_*_key.pub
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root/etc/hostname" "$root/etc/resolv.conf"

# The whole disk is one file system, so that cloud-init's resizefs grows it without a partition table.
echo '/dev/vda / ext4 defaults,errors=remount-ro 0 0' >"$root/etc/fstab"

# Installed, but started by whoever configures them.
for unit in haproxy.service postgresql.service iperf3.service unattended-upgrades.service \
    netavark-dhcp-proxy.service netavark-dhcp-proxy.socket netavark-firewalld-reload.service \
    podman-auto-update.timer podman-auto-update.service podman-restart.service podman.socket podman.service \
    podman-clean-transient.service; do
    systemctl --root="$root" disable "$unit" >/dev/null 2>&1 || true
done
systemctl --root="$root" enable --quiet systemd-networkd.service

# Timers that would ask a package mirror nobody can reach, and units that only cost boot time under emulation.
systemctl --root="$root" mask --quiet \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
    man-db.timer cloud-init-hotplugd.socket cloud-init-hotplugd.service systemd-pstore.service \
    systemd-networkd-wait-online.service modprobe@drm.service getty@tty1.service \
    proc-sys-fs-binfmt_misc.automount systemd-binfmt.service \
    systemd-journal-catalog-update.service systemd-hwdb-update.service
mkdir -p "$root/etc/systemd/system-generators"
ln -s /dev/null "$root/etc/systemd/system-generators/systemd-ssh-generator"
printf 'blacklist %s\n' cfg80211 psmouse pcspkr iTCO_wdt i2c_i801 lpc_ich xhci_pci >"$root/etc/modprobe.d/lab.conf"

mkdir -p "$root/etc/cloud/cloud.cfg.d"
cat >"$root/etc/cloud/cloud.cfg.d/95-lab.cfg" <<'CONFIGURATION'
datasource_list: [NoCloud, Ec2, None]
datasource:
  Ec2:
    metadata_urls: ["http://169.254.169.254"]
    max_wait: 240
    timeout: 20
    apply_full_imds_network_config: false
# An RSA key takes seconds to make under emulation.
ssh_genkeytypes: [ed25519]
cloud_init_modules:
  - bootcmd
  - write_files
  - growpart
  - resizefs
  - disk_setup
  - mounts
  - set_hostname
  - update_hostname
  - update_etc_hosts
  - users_groups
  - ssh
  - set_passwords
cloud_config_modules:
  - runcmd
cloud_final_modules:
  - package_update_upgrade_install
  - write_files_deferred
  - scripts_vendor
  - scripts_per_once
  - scripts_per_boot
  - scripts_per_instance
  - scripts_user
  - final_message
CONFIGURATION

# The installation wrote at full speed; a running machine must not.
rm -f "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/log/apt "$root"/var/log/dpkg.log

# What cloud-init calls, without its Python front end and the reload of all of systemd: five seconds under emulation.
cat >"$root/usr/local/sbin/netplan" <<'WRAPPER'
#!/bin/sh
[ "$*" = generate ] && exec /usr/libexec/netplan/generate
exec /usr/sbin/netplan "$@"
WRAPPER
chmod 755 "$root/usr/local/sbin/netplan"

# Newer than /usr, or the first boot rebuilds ldconfig's cache and more.
newer=$(($(stat --format=%Y "$root/usr") + 1))
rm -f "$root/etc/.updated" "$root/var/.updated"
touch --date="@$newer" "$root/etc/.updated" "$root/var/.updated"
