#!/bin/busybox sh
# First process of a guest: the machine's / read-only under an overlay, a filesystem of its own for what is written,
# pure cgroup v2. Then the plan runs in it, and the guest powers off. Console: ttyS0; results: ttyS1.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin
busybox mkdir -p /proc /sys /dev /lower /disk /new
busybox mount -t proc proc /proc
busybox mount -t sysfs sys /sys
busybox mount -t devtmpfs dev /dev
while read -r module; do
    busybox insmod "/modules/$module" || echo "insmod $module failed"
done </modules/order
. /settings
{
    busybox mount -t virtiofs -o ro root /lower &&
        busybox mount -t ext4 /dev/vda /disk &&
        busybox mkdir -p /disk/upper /disk/work /disk/tmp &&
        busybox mount -t overlay -o lowerdir=/lower,upperdir=/disk/upper,workdir=/disk/work overlay /new
} || busybox poweroff -f
for part in proc sys dev; do busybox mount --move /$part /new/$part; done
# Not on the overlay: overlays of containers cannot have their upper directories on one.
busybox chmod 1777 /disk/tmp
busybox mount --bind /disk/tmp /new/tmp
for path in $KEEP; do
    busybox mkdir -p "/new$path"
    busybox mount --bind "/lower$path" "/new$path"
done
busybox mount -t tmpfs -o mode=0755 tmpfs /new/run
busybox mkdir -p /new/run/lock /new/dev/pts /new/dev/shm /new/lib/modules
busybox mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /new/dev/pts
busybox mount -t tmpfs -o mode=1777 tmpfs /new/dev/shm
busybox mount -t tmpfs tmpfs /new/lib/modules
busybox mkdir "/new/lib/modules/$RELEASE"
busybox mount --bind "/lower$MODULES" "/new/lib/modules/$RELEASE"
busybox mount -t cgroup2 -o nsdelegate cgroup2 /new/sys/fs/cgroup
busybox mount -t bpf -o mode=0700 bpf /new/sys/fs/bpf
busybox hostname guest
busybox ifconfig lo 127.0.0.1 up
busybox ln -sf /proc/self/fd /new/dev/fd
busybox ln -sf /proc/self/fd/0 /new/dev/stdin
busybox ln -sf /proc/self/fd/1 /new/dev/stdout
busybox ln -sf /proc/self/fd/2 /new/dev/stderr
busybox cp /plan /new/run/plan
busybox stty -F /new/dev/ttyS1 raw
# Not chroot: what the kernel itself starts (modprobe) would be looked for in this first root.
export HOME=/root LANG=C.UTF-8
exec busybox switch_root /new /bin/sh -c '/bin/sh /run/plan; busybox poweroff -f' </new/dev/null >/new/dev/ttyS1 2>&1
