# The first process of the namespaces: installs Causeway over the machine's files, and becomes systemd.
# Everything it writes is in memory and ends with the mount namespace.
set -e
mount --make-rprivate /
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /sys/fs/cgroup
umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
for dir in etc usr/bin usr/lib; do
    layer=/run/layers/$dir
    mkdir -p "$layer/upper" "$layer/work"
    mount -t overlay overlay -o "lowerdir=/$dir,upperdir=$layer/upper,workdir=$layer/work" "/$dir"
done

install -m 755 "$APPLIANCE" /usr/bin/causeway-appliance
install -m 755 "$GATEWAY" /usr/bin/causeway-gateway
install -m 755 "$DIRECTOR" /usr/bin/causeway-director
install -D -m 644 "$APPLIANCE_OBJECT" /usr/lib/causeway/appliance.bpf.o
install -D -m 644 "$GATEWAY_OBJECT" /usr/lib/causeway/gateway.bpf.o
mkdir -p /etc/causeway
umask 077
printf '%s' "$APPLIANCE_CONFIG" > /etc/causeway/appliance.toml
printf '%s' "$GATEWAY_CONFIG" > /etc/causeway/gateway.toml
systemd-sysusers "$GATEWAY_SYSUSERS"
chgrp causeway-gateway /etc/causeway/gateway.toml
chmod 640 /etc/causeway/gateway.toml
chmod 755 /etc/causeway
causeway-appliance keygen --private-key /etc/causeway/tunnel.key > /dev/null
umask 022
# As docs/director.md says.
printf '%s' "$DIRECTOR_CONFIG" > /etc/causeway/director.toml
systemd-sysusers "$DIRECTOR_SYSUSERS"
install -d -m 700 -o causeway-director -g causeway-director /var/lib/causeway-director
runuser -u causeway-director -- causeway-director init --config /etc/causeway/director.toml > /dev/null

ip link set lo up
for link in uplink lan front; do
    ip link add $link type veth peer name $link-peer
    ip link set $link up
    ip link set $link-peer up
done
ip address add 192.0.2.1/24 dev uplink
ip address add 198.51.100.1/24 dev front

# The shipped units, byte for byte. What they want of the rest of the machine is masked.
rm -rf /etc/systemd/system/*
cp "$APPLIANCE_UNIT" "$GATEWAY_UNIT" "$DIRECTOR_UNIT" /etc/systemd/system/
mkdir -p /run/systemd/system /run/logs
ln -s /dev/null /run/systemd/system/network-online.target
for unit in causeway-appliance causeway-gateway causeway-director; do
    mkdir "/run/systemd/system/$unit.service.d"
    printf '[Unit]\nDefaultDependencies=no\n[Service]\nStandardOutput=append:/run/logs/%s\nStandardError=append:/run/logs/%s\n' \
        $unit $unit > "/run/systemd/system/$unit.service.d/test.conf"
done
printf '[Unit]\nDefaultDependencies=no\nWants=causeway-appliance.service causeway-gateway.service causeway-director.service\n' \
    > /run/systemd/system/causeway-test.target
exec /lib/systemd/systemd --system --unit=causeway-test.target
